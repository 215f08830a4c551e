"""A job's way from its start to its end: its output followed, its stop, its end recorded, its release."""

import asyncio
import errno
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from helper.wire import Stage
from telehandler.common import states
from telehandler.common.errors import HelperRefused, HelperUnavailable
from telehandler.common.states import Reason, State
from telehandler.common.turns import Threads
from telehandler.jobs.helper_link import HelperLink, LiveJob
from telehandler.jobs.helper_requests import kill, release
from telehandler.jobs.job import STOP_BY, Job, ended_job
from telehandler.jobs.records import Record, Records
from telehandler.jobs.retention import Retention
from telehandler.jobs.stdin import Stdin
from telehandler.output import digest
from telehandler.output.log import Cap, JobLog, LogFull, Stream
from telehandler.output.pump import REST_S, RETRY_S, Pump

_MAX_DIGEST_THREADS = 8


class Lifecycle:
    """The jobs that run, and those whose end is not recorded yet: `running`, by UUID. One event loop."""

    def __init__(self, directory: Path, records: Records, retention: Retention) -> None:
        self._directory, self._records, self._retention = directory, records, retention
        self.running: dict[str, Job] = {}
        threads = max(2, min(_MAX_DIGEST_THREADS, os.cpu_count() or 1))
        self._digests = Threads("digest", threads, threads - 1)  # one is always another user's
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Work that nobody waits for but `drain`."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def drain(self) -> None:
        """Waits for what is under way after the last event."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def new_log(self, record: Record) -> JobLog:
        return new_log(self._directory, record)

    def follow(self, job: Job, log: JobLog, live: LiveJob, link: HelperLink) -> None:
        """Takes a live job: from now on its output is read, and its end is awaited."""
        os.close(live.cgroup_fd)  # statistics while it runs come with a later verb
        job.handle, job.link = live.handle, link
        if job.takes_input:
            terminal, directory = "terminal" in job.record.extra, self._directory / job.record.uuid
            stdin = job.stdin = Stdin(live.stdin_fd, directory, link, live.handle, terminal)
            if stdin.ended:  # an api before us may have died before the helper's end was closed too
                self.spawn(stdin.end())
        self.running[job.record.uuid] = job
        on_stuck = partial(self._on_blocked, job)
        pump = job.pump = Pump(log, live.stdout_fd, live.stderr_fd, on_stuck, REST_S)
        self.spawn(self._follow(job, log, pump, link))

    def job_of(self, record: Record) -> Job:
        """The job of a record, running or ended."""
        return self.running.get(record.uuid) or ended_job(record)

    def commands_in(self, job: Job) -> list[Job]:
        """Those that run in a job."""
        return [other for other in self.running.values() if other.record.exec_in == job.record.uuid]

    async def stop(self, job: Job, number: int, grace_s: float) -> None:
        """`number`, a grace, then SIGKILL to the whole tree; returns once the job has ended."""
        if job.ended.is_set():
            return
        self._record_stop(job, time.monotonic_ns() + int(grace_s * 1e9))
        if job.pump and job.exited.done():
            job.pump.give_up()  # it waits for the disk alone
        if grace_s > 0 and job.stopping:
            await self.signal(job, number)
        await asyncio.shield(self.kill_when_due(job))  # also when the client has gone
        await job.ended.wait()

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

    async def kill(self, job: Job) -> None:
        """SIGKILL to the whole tree."""
        assert job.link is not None
        await kill(job.link, job.handle)

    def kill_when_due(self, job: Job) -> "asyncio.Task[None]":
        """Kills it when the grace of its stop has ended and it has not: one task, however often it is asked."""
        if not job.killer or job.killer.done():
            job.killer = self.spawn(self._kill_when_due(job))
            job.killer.add_done_callback(lambda task: task.cancelled() or task.exception())  # heard, if by nobody else
        job.hurry.set()
        return job.killer

    async def _kill_when_due(self, job: Job) -> None:
        while not job.ended.is_set():
            grace_ns = int(job.record.extra.get(STOP_BY, 0)) - time.monotonic_ns()
            try:
                async with asyncio.timeout(max(grace_ns / 1e9, 0)):
                    await job.hurry.wait()
                job.hurry.clear()
            except TimeoutError:
                if job.pump:
                    job.pump.give_up()
                return await self.kill(job)

    async def stop_all(self, kill: bool) -> None:
        """Returns once no job runs. With `kill` all are stopped, without a grace."""
        jobs = list(self.running.values())
        work = [self.stop(job, signal.SIGKILL, 0) if kill else job.ended.wait() for job in jobs]
        await asyncio.gather(*work, return_exceptions=True)

    def end(self, record: Record, state: State, reason: Reason, log: JobLog) -> None:
        """Puts a job's end into its record, which is not saved yet."""
        states.check(record.state, state)
        record.state, record.reason, record.end_ns = state, reason, time.time_ns()
        record.stdout_bytes, record.stderr_bytes = log.sizes.values()
        record.dropped_bytes = log.floor

    async def save_end(self, record: Record) -> None:
        """Saves how a job ended; until that is done, it is found in `running`."""
        await self._save(record)
        self.running.pop(record.uuid, None)
        self._retention.expire(record)

    def _record_stop(self, job: Job, stop_by_ns: int) -> None:
        """Records that a job is to be stopped by then. One that has exited already was not stopped."""
        extra = job.record.extra
        if not job.exited.done() and stop_by_ns < int(extra.get(STOP_BY, stop_by_ns + 1)):
            extra[STOP_BY] = str(stop_by_ns)
            try:
                if job.record.owner:
                    self._records.save(job.record)
            except sqlite3.OperationalError:  # no room for it now
                self.spawn(self._save(job.record))

    def _on_blocked(self, job: Job, error: OSError | None) -> None:
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
            self.spawn(self.kill(job))
        elif isinstance(error, LogFull):
            self.spawn(self._save(job.record))

    async def _follow(self, job: Job, log: JobLog, pump: Pump, link: HelperLink) -> None:
        """A job's way to its end: the pipes to EOF first, so that its last bytes come before its end."""
        digests = asyncio.create_task(digest.follow(log, pump.resume, partial(self._digests.run, job.record.owner)))
        facts = await job.exited
        await pump.drained()
        job.output_lost = pump.discarded > 0
        if pump.discarded:  # nothing is lost silently
            job.record.extra["log_error"] += f"; {pump.discarded} more bytes were not kept"
        if job.stdin:
            job.stdin.close()
        log.finish()
        found = await digests
        job.record.stdout_sha256, job.record.stderr_sha256 = found[Stream.STDOUT], found[Stream.STDERR]
        if facts:
            self._end_with_facts(job, log, facts)
        else:
            self.end(job.record, State.FAILED, Reason.LOST, log)
        job.log = job.pump = None
        job.ended.set()
        job.hurry.set()
        log.release()
        await self.save_end(job.record)
        self.spawn(self._tidy(job))
        await release(link, job.handle)  # only now: until then, an api after us learns of its end from the helper

    def _end_with_facts(self, job: Job, log: JobLog, facts: dict[str, int]) -> None:
        number, code = facts["signal"], facts["exit_code"]
        job.record.signal, job.record.exit_code = number, 128 + number if number else code
        job.record.cpu_usec, job.record.memory_peak_bytes = facts["cgroup_usec"], facts["memory_peak_bytes"]
        state, reason = states.end(facts, job.stopping, job.output_lost)
        self.end(job.record, state, reason, log)

    async def _save(self, record: Record) -> None:
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

    async def _tidy(self, job: Job) -> None:
        """Once a job has ended: what is now over a bound goes, and so does one that nobody knows of."""
        if not job.record.owner:
            await self._retention.remove([job.record.uuid])
        await self._retention.prune()


def new_log(directory: Path, record: Record) -> JobLog:
    """The log of a job that runs, below the `directory` of all jobs. Raises OSError."""
    cap = Cap(int(record.extra.get("log_max_bytes", 0)), record.extra.get("log_policy") == "drop")
    return JobLog(directory / record.uuid, cap)
