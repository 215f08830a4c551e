"""The jobs of one server: started through the link, logged, recorded, stopped, adopted, lost."""

import asyncio
import errno
import os
import shutil
import signal
import sqlite3
import sys
import time
import uuid as uuids
from collections.abc import Collection, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from helper.wire import Stage
from telehandler.common import capacity, states
from telehandler.common.errors import HelperRefused, HelperUnavailable, RequestReused, ServerEnding, TelehandlerError
from telehandler.common.states import Reason, State
from telehandler.jobs.helper_link import HelperLink, LiveJob, Order, Unreceived
from telehandler.jobs.records import Keep, Place, Record, Records
from telehandler.jobs.retention import Retention
from telehandler.jobs.start import DEFAULT_ENV, Request, ask_helper, new_record, told
from telehandler.output import digest
from telehandler.output.log import Cap, JobLog, LogFull, Stream
from telehandler.output.pump import RETRY_S, Pump

_STOP_BY = "stop_by_ns"  # when a stop's grace ends, by the monotonic clock, which all processes share
DEFAULT_GRACE_S = 10.0
MAX_GRACE_S = 3600.0


class Job:
    """A job, running or ended. `log` is kept while it runs; `Jobs.open_log` is for everybody else."""

    def __init__(self, record: Record, log: JobLog | None) -> None:
        self.record, self.log = record, log
        self.handle = -1  # the helper's, while it knows the job
        self.link: HelperLink | None = None  # to the helper that knows it
        self.pump: Pump | None = None  # while it runs
        self.ended = asyncio.Event()

    @property
    def stopping(self) -> bool:
        """Whether a stop was asked for: recorded, so that it outlives the api."""
        return _STOP_BY in self.record.extra


class Jobs:
    """Owns records, logs and the link's events. One event loop."""

    def __init__(
        self, directory: Path, link: HelperLink, records: Records, cwd: bytes, keep: Keep | None = None
    ) -> None:
        self._directory, self._link, self._records, self._cwd = directory / "jobs", link, records, cwd
        self._retention = Retention(self._directory, records, keep or Keep())
        self._jobs: dict[str, Job] = {}  # running, by uuid
        self._tasks: set[asyncio.Task[Any]] = set()
        self._starts: set[asyncio.Task[Job]] = set()  # under way
        self._starting: dict[tuple[str, str], asyncio.Task[Job]] = {}  # those with an id, by owner and request id
        self._ending = False
        self._logs: WeakValueDictionary[str, JobLog] = WeakValueDictionary()  # of ended jobs, while they are watched

    async def adopt(self) -> None:
        """At the start: greets the helper; the jobs it runs go on, those it does not know were lost.

        A helper that is dead knows none. Raises HelperUnavailable for one that lives and does not answer.
        """
        recorded = {record.uuid: record for record in self._records.running()}
        begun = {record.uuid: record for record in self._records.begun()}
        try:
            _, adopted = await self._link.hello()
        except HelperUnavailable:
            if not self._link.closed:
                raise
            adopted = []
        for tag, live in adopted:
            uuid = str(uuids.UUID(bytes=tag))
            record = recorded.pop(uuid, None) or begun.pop(uuid, None)
            if record is None and self._records.get(uuid):  # the api before died between its record and RELEASE
                live.close()
                self._spawn(self._release(self._link, live.handle))
                continue
            unknown = record is None  # it died between START and its record: nobody knows of the job
            record = record or Record(uuid, "", [])
            if not unknown and not record.job_uid:  # there too, but who asked has a request id to ask again with
                record.job_uid = live.uid
                self._records.save(record)
            log = self._new_log(record)
            log.recount()
            job = Job(record, log)
            self._track(job, log, live, self._link)
            if unknown:
                await self._kill(job)
            elif job.stopping:
                self._spawn(self._kill_when_due(job))
        for record in recorded.values():
            log = self._new_log(record)
            log.recount()
            self._end(record, State.FAILED, Reason.LOST, log)
            log.release()
            self._jobs[record.uuid] = _ended(record)
            self._spawn(self._recorded(record))
        for record in begun.values():  # never ran, or died with its helper unseen: the next one who asks starts it
            self._records.forget(record)
        self._spawn(self._retention.sweep(self._retention.orphans(self._jobs)))

    async def connect(self, link: HelperLink) -> None:
        """A new helper, in the place of one that died: it starts the jobs from now on, and has none yet."""
        self._link = link
        _, adopted = await link.hello()
        for _, live in adopted:
            live.close()

    async def end(self, kill: bool) -> None:
        """No more starts; returns once no job runs. With `kill` all are stopped, without a grace."""
        self._ending = True
        if self._starts:
            await asyncio.wait(self._starts)
        jobs = list(self._jobs.values())
        work = [self.stop(job, signal.SIGKILL, 0) if kill else job.ended.wait() for job in jobs]
        await asyncio.gather(*work, return_exceptions=True)

    async def check(self, request: Request) -> list[bytes]:
        """What a job of this request would get, a name and a value each. Raises as start does."""
        order = self._order(request, uuids.UUID(int=0))
        fallback = [] if request.cwd else [b"cwd_fallback /"]  # as in start
        return [*(b"env " + entry for entry in order.env), *await self._link.check(order), *fallback]

    async def start(self, request: Request) -> Job:
        """A running job, or the one that this request id has started already.

        A caller who is cancelled does not cancel it. Raises HelperRefused, HelperUnavailable,
        ServerEnding, RequestReused, or Exhausted where it could not be kept.
        """
        key = request.owner, request.request_id
        starting = self._starting.get(key)
        if not starting:
            if request.request_id and (record := self._records.of_request(*key)):
                return _same(self._jobs.get(record.uuid) or _ended(record), request)
            if self._ending:
                raise ServerEnding("the server is ending, and starts no more jobs: try again when it is back")
            starting = asyncio.get_running_loop().create_task(self._start(request, self._link))
            self._starts.add(starting)
            starting.add_done_callback(self._starts.discard)
            starting.add_done_callback(lambda task: task.cancelled() or task.exception())  # heard, if by nobody else
            if request.request_id:
                self._starting[key] = starting
                starting.add_done_callback(lambda _: self._starting.pop(key))
        return _same(await asyncio.shield(starting), request)

    async def _start(self, request: Request, link: HelperLink) -> Job:
        record = new_record(request)
        log, live = None, None
        try:
            capacity.check(self._directory.parent, len(self._starts) - 1)
            log = self._new_log(record)  # before it runs: what cannot be kept is not started
            if record.request_id and not self._records.begin(record):
                raise HelperUnavailable("the helper has not answered a start of this request id: it is not known yet")
            live = await ask_helper(link, self._order(request, uuids.UUID(record.uuid)), anywhere=not request.cwd)
            record.job_uid, record.start_ns = live.uid, time.time_ns()
            self._records.save(record)
        except Exception as error:
            await self._unmade(record, log, live, link, error)
            raise told(error, request) from None
        job = Job(record, log)
        self._track(job, log, live, link)
        return job

    async def _unmade(
        self, record: Record, log: JobLog | None, live: LiveJob | None, link: HelperLink, error: Exception
    ) -> None:
        """Takes back what was made of a start that failed."""
        if log:
            log.release()
        shutil.rmtree(self._directory / record.uuid, ignore_errors=True)  # two empty files
        if live:
            live.close()
        handle = live.handle if live else error.handle if isinstance(error, Unreceived) else None
        if handle is not None:
            await _kill(link, handle)
            self._spawn(self._release(link, handle))
        # A helper that lives and does not answer may have started it: `adopt` will see.
        if link.lost or not isinstance(error, HelperUnavailable):
            with suppress(sqlite3.OperationalError):  # no room: as if the helper had not answered
                self._records.forget(record)

    def find(self, uuid: str) -> Job | None:
        """A job by its UUID, running or ended."""
        if job := self._jobs.get(uuid):
            return job
        record = self._records.get(uuid)
        return _ended(record) if record else None

    @property
    def running(self) -> int:
        """How many run now."""
        return len(self._jobs)

    def list_jobs(
        self, owner: str | None, states: Collection[State], after: Place | None, count: int
    ) -> tuple[list[Job], bool]:
        """One page, the newest first, and whether there are more: see Records.page."""
        records, more = self._records.page(owner, states, after, count)
        return [self._jobs.get(record.uuid) or _ended(record) for record in records], more

    async def delete(self, job: Job) -> None:
        """Removes a job that has ended, with its output."""
        await self._retention.remove([job.record.uuid])

    def open_log(self, job: Job) -> JobLog:
        """The log of a job, running or ended; the caller's to release."""
        log = job.log or self._logs.get(job.record.uuid)
        if log and not log.closed:
            return log.retain()
        try:
            log = JobLog(self._directory / job.record.uuid, ended=True)
        except FileNotFoundError:
            log = self._new_log(job.record)  # removed by hand: empty
        self._logs[job.record.uuid] = log
        log.finish()
        return log

    async def stop(self, job: Job, number: int, grace_s: float) -> None:
        """`number`, a grace, then SIGKILL to the whole tree; returns once the job has ended."""
        if job.ended.is_set():
            return
        self._intend(job, time.monotonic_ns() + int(grace_s * 1e9))
        if job.pump and _exited(job).done():
            job.pump.give_up()  # it waits for the disk alone
        if grace_s > 0 and job.stopping:
            await self.signal(job, number)
        await asyncio.shield(self._spawn(self._kill_when_due(job)))  # also when who asked has gone
        await job.ended.wait()

    def _intend(self, job: Job, stop_by_ns: int) -> None:
        """Records that a job is to be stopped by then. One that has exited already was not stopped."""
        extra = job.record.extra
        if not _exited(job).done() and stop_by_ns < int(extra.get(_STOP_BY, stop_by_ns + 1)):
            extra[_STOP_BY] = str(stop_by_ns)
            try:
                if job.record.owner:
                    self._records.save(job.record)
            except sqlite3.OperationalError:  # no room for it now
                self._spawn(self._saved(job.record))

    async def _kill_when_due(self, job: Job) -> None:
        """When the grace of its stop has ended and it has not."""
        grace_ns = int(job.record.extra.get(_STOP_BY, 0)) - time.monotonic_ns()
        try:
            async with asyncio.timeout(max(grace_ns / 1e9, 0)):
                await job.ended.wait()
        except TimeoutError:
            if job.pump:
                job.pump.give_up()
            await self._kill(job)

    async def signal(self, job: Job, number: int) -> None:
        """Raises HelperRefused when the job has just ended, unless it is being stopped."""
        assert job.link is not None
        try:
            await job.link.signal(job.handle, number)
        except HelperRefused as refused:
            if refused.stage != Stage.NO_SUCH_JOB or not job.stopping:
                raise
        except HelperUnavailable:
            if not (job.stopping and job.link.closed):  # with the helper the job has ended
                raise

    async def drain(self) -> None:
        """Waits for what is under way after the last event."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def close(self) -> None:
        """Lets go of the jobs that run: their pipes are the next api's to read."""
        self._link.close()

    def _order(self, request: Request, uuid: uuids.UUID) -> Order:
        env = [name + b"=" + value for name, value in (DEFAULT_ENV | request.env).items()]
        return Order(uuid.bytes, request.profile, request.cwd or self._cwd, request.argv, env, request.limits)

    def _new_log(self, record: Record) -> JobLog:
        cap = Cap(int(record.extra.get("log_max_bytes", 0)), record.extra.get("log_policy") == "drop")
        return JobLog(self._directory / record.uuid, cap)

    async def _kill(self, job: Job) -> None:
        assert job.link is not None
        await _kill(job.link, job.handle)

    def _track(self, job: Job, log: JobLog, live: LiveJob, link: HelperLink) -> None:
        os.close(live.cgroup_fd)  # statistics while it runs come with a later verb
        job.handle, job.link = live.handle, link
        self._jobs[job.record.uuid] = job
        pump = job.pump = Pump(log, live.stdout_fd, live.stderr_fd, lambda error: self._log_stuck(job, error))
        self._spawn(self._follow(job, log, pump, link))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _log_stuck(self, job: Job, error: OSError | None) -> None:
        """A job whose output cannot be kept now waits, or is ended by its policy, and its record says why."""
        extra = job.record.extra
        if error is None:
            extra.pop("log_error", None)
            return
        reason = error.strerror or os.strerror(error.errno or errno.EIO)
        extra["log_error"] = reason if isinstance(error, LogFull) else f"the output waits for the disk: {reason}"
        if extra.get("log_policy") == "kill" or error.errno == errno.EOPNOTSUPP:  # this disk has no holes
            if job.pump:
                job.pump.give_up()
            self._spawn(self._kill(job))
        elif isinstance(error, LogFull):
            self._spawn(self._saved(job.record))

    async def _follow(self, job: Job, log: JobLog, pump: Pump, link: HelperLink) -> None:
        """A job's way to its end: the pipes to EOF first, so that its last bytes come before its end."""
        digests = asyncio.create_task(digest.follow(log, pump.hashed))
        facts = await _exited(job)
        await pump.drained()
        if pump.discarded:  # nothing is lost silently
            job.record.extra["log_error"] += f"; {pump.discarded} more bytes were not kept"
        log.finish()
        found = await digests
        job.record.stdout_sha256, job.record.stderr_sha256 = found[Stream.STDOUT], found[Stream.STDERR]
        if facts:
            self._record_end(job, log, facts)
        else:
            self._end(job.record, State.FAILED, Reason.LOST, log)
        job.log = job.pump = None
        job.ended.set()
        log.release()
        await self._recorded(job.record)
        self._spawn(self._tidy(job))
        await self._release(link, job.handle)  # only now: until then, an api after us learns of its end from the helper

    async def _recorded(self, record: Record) -> None:
        """Saves how a job ended; until that is done, it is found here."""
        await self._saved(record)
        self._jobs.pop(record.uuid, None)

    async def _saved(self, record: Record) -> None:
        """Saves a record; when the disk does not take it, again and again, unless the job is deleted meanwhile."""
        failed = False
        while record.owner and not (failed and not (self._directory / record.uuid).exists()):
            try:
                return self._records.save(record)
            except sqlite3.OperationalError as error:
                if not failed:
                    print(f"telehandler: a job's record waits for the disk: {error}", file=sys.stderr, flush=True)
                failed = True
            await asyncio.sleep(RETRY_S)

    async def _release(self, link: HelperLink, handle: int) -> None:
        """Has the helper forget a job, once it has ended."""
        await link.exited(handle)
        try:
            await link.release(handle)
        except TelehandlerError:
            pass  # the helper is gone, and all it held
        link.forget(handle)

    def _record_end(self, job: Job, log: JobLog, facts: dict[str, int]) -> None:
        number, code = facts["signal"], facts["exit_code"]
        job.record.signal, job.record.exit_code = number, 128 + number if number else code
        job.record.cpu_usec, job.record.memory_peak_bytes = facts["cgroup_usec"], facts["memory_peak_bytes"]
        state, reason = states.end(facts, job.stopping)
        self._end(job.record, state, reason, log)

    def _end(self, record: Record, state: State, reason: Reason, log: JobLog | None = None) -> None:
        states.check(record.state, state)
        record.state, record.reason, record.end_ns = state, reason, time.time_ns()
        if log:
            record.stdout_bytes, record.stderr_bytes = log.sizes.values()
            record.dropped_bytes = log.floor

    async def _tidy(self, job: Job) -> None:
        """Once a job has ended: what is now over a bound goes, and so does one that nobody knows of."""
        if not job.record.owner:
            await self.delete(job)
        await self._retention.prune()


async def _kill(link: HelperLink, handle: int) -> None:
    try:
        await link.kill(handle)
    except HelperRefused:
        pass  # it has just ended
    except HelperUnavailable:
        if not link.closed:  # else it has ended with the helper
            raise


def _exited(job: Job) -> "asyncio.Future[dict[str, int] | None]":
    assert job.link is not None
    return job.link.exited(job.handle)


def _same(job: Job, request: Request) -> Job:
    """The job, unless another request has started it. Raises RequestReused."""
    if job.record.request_sha256 != request.request_sha256:
        raise RequestReused(
            f"the request id {request.request_id} was that of another request, whose job is {job.record.name}: "
            "each new request needs an id of its own"
        )
    return job


def _ended(record: Record) -> Job:
    job = Job(record, None)
    job.ended.set()
    return job
