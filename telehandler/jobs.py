"""The jobs of one server: started through the link, logged, recorded, stopped, adopted, lost."""

import asyncio
import errno
import os
import shutil
import sqlite3
import sys
import time
import uuid as uuids
from collections.abc import Collection, Coroutine
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

from helper.wire import Stage
from telehandler import digest, room, states
from telehandler.errors import Exhausted, HelperRefused, TelehandlerError
from telehandler.link import HelperLink, LiveJob, Order, Unreceived
from telehandler.log import NO_CAP, Cap, JobLog, LogFull, Stream
from telehandler.pump import RETRY_S, Pump
from telehandler.records import Keep, Place, Record, Records
from telehandler.retention import Retention
from telehandler.states import Reason, State

DEFAULT_ENV = {
    b"PATH": b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    b"HOME": b"/tmp",
    b"USER": b"job",
    b"LANG": b"C.UTF-8",
    b"TERM": b"dumb",
}
DEFAULT_GRACE_S = 10.0
MAX_GRACE_S = 3600.0


class Request(NamedTuple):
    """What a user asks for."""

    owner: str
    argv: list[bytes]
    env: dict[bytes, bytes]
    cwd: bytes  # empty: the server's own where the job may enter it, else /
    limits: dict[str, int]
    profile: str
    log_cap: Cap = NO_CAP
    log_kill: bool = False  # at the cap, if it does not drop the oldest; else the job waits


class Job:
    """A job, running or ended. `log` is kept while it runs; `Jobs.open_log` is for everybody else."""

    def __init__(self, record: Record, log: JobLog | None) -> None:
        self.record, self.log = record, log
        self.handle = -1  # the helper's, while it knows the job
        self.stopping = False
        self.pump: Pump | None = None  # while it runs
        self.ended = asyncio.Event()


class Jobs:
    """Owns records, logs and the link's events. One event loop."""

    def __init__(
        self, directory: Path, link: HelperLink, records: Records, cwd: bytes, keep: Keep | None = None
    ) -> None:
        self._directory, self._link, self._records, self._cwd = directory / "jobs", link, records, cwd
        self._starting = 0  # jobs that are asked for and not yet there
        self._retention = Retention(self._directory, records, keep or Keep())
        self._live: dict[int, Job] = {}  # by handle
        self._jobs: dict[str, Job] = {}  # running, by uuid
        self._exits: dict[int, asyncio.Future[dict[str, int] | None]] = {}  # EXITED by handle; None: lost
        self._tasks: set[asyncio.Task[None]] = set()
        self._logs: WeakValueDictionary[str, JobLog] = WeakValueDictionary()  # of ended jobs, while they are watched
        link.on_exited = self._exited
        link.on_closed = self._lost

    async def adopt(self) -> None:
        """Greets the helper; the jobs it runs go on, those it does not know were lost."""
        _, adopted = await self._link.hello()
        recorded = {record.uuid: record for record in self._records.running()}
        for tag, live in adopted:
            record = recorded.pop(str(uuids.UUID(bytes=tag)), None)
            if record is None:  # the api before died between START and its record: nobody knows of it
                record = Record(str(uuids.UUID(bytes=tag)), "", [])
                await self._kill(live.handle)
            log = self._new_log(record)
            log.recount()
            self._track(Job(record, log), log, live)
        for record in recorded.values():
            log = self._new_log(record)
            log.recount()
            self._end(record, State.FAILED, Reason.LOST, log)
            log.release()
            self._jobs[record.uuid] = _ended(record)
            self._spawn(self._recorded(record))
        self._spawn(self._retention.sweep(self._retention.orphans(self._jobs)))

    async def check(self, request: Request) -> list[bytes]:
        """What a job of this request would get, a name and a value each. Raises as start does."""
        order = self._order(request, uuids.UUID(int=0))
        fallback = [] if request.cwd else [b"cwd_fallback /"]  # as in start
        return [*(b"env " + entry for entry in order.env), *await self._link.check(order), *fallback]

    async def start(self, request: Request) -> Job:
        """A running job. Raises HelperRefused, HelperUnavailable, or Exhausted where it could not be kept."""
        uuid = uuids.uuid4()
        record = Record(str(uuid), request.owner, request.argv)
        if request.log_cap.max_bytes:
            policy = "drop" if request.log_cap.drop_oldest else "kill" if request.log_kill else "block"
            record.extra |= {"log_max_bytes": str(request.log_cap.max_bytes), "log_policy": policy}
        log, live = None, None
        try:
            room.check(self._directory.parent, self._starting)
            log = self._new_log(record)  # before it runs: what cannot be kept is not started
            live = await self._ordered(request, uuid)
            record.start_ns, record.job_uid = time.time_ns(), live.uid
            self._records.save(record)
        except BaseException as error:
            await self._unmade(record, log, live)
            if isinstance(error, Unreceived):
                await self._end_unkept(error.handle)
            if isinstance(error, sqlite3.OperationalError) or (
                isinstance(error, OSError) and error.errno in room.ERRORS
            ):
                text = error.strerror if isinstance(error, OSError) else error
                raise Exhausted(f"the server cannot keep a job in its state directory: {text}") from None
            raise
        job = Job(record, log)
        self._track(job, log, live)
        return job

    async def _ordered(self, request: Request, uuid: uuids.UUID) -> LiveJob:
        order = self._order(request, uuid)
        self._starting += 1
        try:
            return await self._link.start(order)
        except HelperRefused as refused:
            if refused.stage != Stage.CHDIR or request.cwd:
                raise
            return await self._link.start(order._replace(cwd=b"/"))  # the server's own directory is hidden from jobs
        finally:
            self._starting -= 1

    async def _unmade(self, record: Record, log: JobLog | None, live: LiveJob | None) -> None:
        """Takes back what was made of a start that failed."""
        if log:
            log.release()
        shutil.rmtree(self._directory / record.uuid, ignore_errors=True)  # two empty files
        if live:
            for fd in (live.stdout_fd, live.stderr_fd, live.cgroup_fd):
                os.close(fd)
            await self._end_unkept(live.handle)

    async def _end_unkept(self, handle: int) -> None:
        await self._kill(handle)
        self._spawn(self._release(handle))

    def find(self, uuid: str) -> Job | None:
        """A job by its UUID, running or ended."""
        if job := self._jobs.get(uuid):
            return job
        record = self._records.get(uuid)
        return _ended(record) if record else None

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
        job.stopping = True
        if job.pump and self._exit(job.handle).done():
            job.pump.give_up()  # it waits for the disk alone
        try:
            if grace_s > 0:
                await self.signal(job, number)
                async with asyncio.timeout(grace_s):
                    await job.ended.wait()
        except TimeoutError:
            pass
        if not job.ended.is_set():
            if job.pump:
                job.pump.give_up()
            await self._kill(job.handle)
            await job.ended.wait()

    async def signal(self, job: Job, number: int) -> None:
        """Raises HelperRefused when the job has just ended, unless it is being stopped."""
        try:
            await self._link.signal(job.handle, number)
        except HelperRefused as refused:
            if refused.stage != Stage.NO_SUCH_JOB or not job.stopping:
                raise

    async def drain(self) -> None:
        """Waits for what is under way after the last event."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _order(self, request: Request, uuid: uuids.UUID) -> Order:
        env = [name + b"=" + value for name, value in (DEFAULT_ENV | request.env).items()]
        return Order(uuid.bytes, request.profile, request.cwd or self._cwd, request.argv, env, request.limits)

    def _new_log(self, record: Record) -> JobLog:
        cap = Cap(int(record.extra.get("log_max_bytes", 0)), record.extra.get("log_policy") == "drop")
        return JobLog(self._directory / record.uuid, cap)

    async def _kill(self, handle: int) -> None:
        try:
            await self._link.kill(handle)
        except HelperRefused:
            pass  # it has just ended

    def _track(self, job: Job, log: JobLog, live: LiveJob) -> None:
        os.close(live.cgroup_fd)  # statistics while it runs come with a later verb
        job.handle = live.handle
        self._live[live.handle] = self._jobs[job.record.uuid] = job
        pump = job.pump = Pump(log, live.stdout_fd, live.stderr_fd, lambda error: self._log_stuck(job, error))
        self._spawn(self._follow(job, log, pump))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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
            self._spawn(self._kill(job.handle))
        elif isinstance(error, LogFull):
            self._spawn(self._saved(job.record))

    async def _follow(self, job: Job, log: JobLog, pump: Pump) -> None:
        """A job's way to its end: the pipes to EOF first, so that its last bytes come before its end."""
        handle = job.handle
        digests = asyncio.create_task(digest.follow(log, pump.hashed))
        facts = await self._exit(handle)
        stopped = job.stopping
        await pump.drained()
        if pump.discarded:  # nothing is lost silently
            job.record.extra["log_error"] += f"; {pump.discarded} more bytes were not kept"
        log.finish()
        found = await digests
        job.record.stdout_sha256, job.record.stderr_sha256 = found[Stream.STDOUT], found[Stream.STDERR]
        if facts:
            self._record_end(job, log, facts, stopped)
        else:
            self._end(job.record, State.FAILED, Reason.LOST, log)
        job.log = job.pump = None
        job.ended.set()
        log.release()
        await self._recorded(job.record)
        self._live.pop(handle, None)
        self._spawn(self._tidy(job))
        await self._release(handle)  # only now: until then, an api after us learns of its end from the helper

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

    async def _release(self, handle: int) -> None:
        """Has the helper forget a job, once it has ended."""
        await self._exit(handle)
        self._exits.pop(handle, None)
        try:
            await self._link.release(handle)
        except TelehandlerError:
            pass  # the helper is gone, and all it held

    def _exit(self, handle: int) -> "asyncio.Future[dict[str, int] | None]":
        """EXITED may come before the task that recorded the start has run on: either side makes the future."""
        if handle not in self._exits:
            self._exits[handle] = asyncio.get_running_loop().create_future()
        return self._exits[handle]

    def _exited(self, facts: dict[str, int]) -> None:
        if not (exit_ := self._exit(facts["handle"])).done():
            exit_.set_result(facts)

    def _lost(self) -> None:
        """The helper died, and every job with it."""
        for handle in {*self._live, *self._exits}:
            if not (exit_ := self._exit(handle)).done():
                exit_.set_result(None)

    def _record_end(self, job: Job, log: JobLog, facts: dict[str, int], stopped: bool) -> None:
        number, code = facts["signal"], facts["exit_code"]
        job.record.signal, job.record.exit_code = number, 128 + number if number else code
        job.record.cpu_usec, job.record.memory_peak_bytes = facts["cgroup_usec"], facts["memory_peak_bytes"]
        state, reason = states.end(facts, stopped)
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


def _ended(record: Record) -> Job:
    job = Job(record, None)
    job.ended.set()
    return job
