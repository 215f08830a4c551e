"""Restarts: a job that has failed is started again, as another job, where its request says so."""

import asyncio
import sqlite3
import time
import uuid as uuids
from collections.abc import Awaitable, Callable
from contextlib import suppress

from helper.wire import Stage
from telehandler.common.errors import Exhausted, HelperRefused, HelperUnavailable, TelehandlerError
from telehandler.common.states import State
from telehandler.jobs import request as requests
from telehandler.jobs.job import Job
from telehandler.jobs.lifecycle import Lifecycle
from telehandler.jobs.records import Record, Records
from telehandler.jobs.request import Request

FIRST_PAUSE_S, MAX_PAUSE_S = 0.1, 60.0  # before a restart; each is twice the one before
GOOD_RUN_S = 10.0  # a run of so long has the pauses begin anew
ERROR = "restart_error"  # in a record's extra: why it is not started again


class _Runs:
    """A job's runs, until there will be no more: the first one's UUID and request, and the newest one."""

    def __init__(self, first: str, request: Request, newest: Job) -> None:
        self.first, self.request, self.newest = first, request, newest
        self.waiting = False  # for the next start
        self.ending = asyncio.Event()  # no more restarts
        self.starting = asyncio.Lock()  # held while a run is started
        self.moved = asyncio.Event()  # of this `newest`: there is another one, or there will be none

    def next_request(self) -> Request:
        """Of the run behind the newest. Its id is the same whoever asks: a run is not started twice."""
        number = self.newest.record.restarts + 1
        life = self.request.life._replace(restart_of=self.first, restarts=number)
        return self.request._replace(request_id=str(uuids.uuid5(uuids.UUID(self.first), str(number))), life=life)


class Restarts:
    """The jobs that are restarted when they fail, and what becomes of them. One event loop."""

    def __init__(self, records: Records, lifecycle: Lifecycle) -> None:
        self._records, self._lifecycle = records, lifecycle
        self._runs: dict[str, _Runs] = {}  # by UUID of the first one
        self.start: Callable[[Request], Awaitable[Job]]  # as Starts.start; given once there is one

    def begin(self, uuid: str, request: Request) -> None:
        """Before a job is started that is to be restarted: so that it is, whatever becomes of this api."""
        if request.life.max_restarts is not None and not request.life.restart_of:
            self._records.save_restart(uuid, requests.dump(request))

    def follow(self, job: Job, request: Request) -> None:
        """From now on the job is restarted, if its request says so and it is a first run."""
        if request.life.max_restarts is None or request.life.restart_of:
            return
        self._follow_runs(_Runs(job.record.uuid, request, job))

    def resume(self) -> None:
        """After a restart of the api, once the jobs that run are known: goes on with what was begun."""
        for first, newest, text in self._records.restarts():
            record = self._records.get(newest)
            if record is None:  # never ran, or removed
                self._records.delete_restart(first)
                continue
            self._follow_runs(_Runs(first, requests.load(text), self._lifecycle.job_of(record)))

    def waiting(self, owner: str) -> int:
        """How many jobs of a user wait for their restart: to their share they count as jobs that run."""
        return sum(runs.waiting and runs.request.owner == owner for runs in self._runs.values())

    def waits(self, job: Job) -> bool:
        """Whether the job has failed and is about to be started again."""
        runs = self._of(job)
        if runs is None or runs.newest.record.uuid != job.record.uuid or runs.ending.is_set():
            return False
        return job.ended.is_set() and _again(job.record)

    async def next_run(self, job: Job) -> None:
        """Returns once the job has ended and its next run has started, or there will be none."""
        await job.ended.wait()
        while (runs := self._of(job)) and runs.newest.record.uuid == job.record.uuid:
            await runs.moved.wait()

    async def stop(self, job: Job, number: int, grace_s: float) -> None:
        """Ends the restarts of a job, by any of its runs, and stops the newest; else stops the job."""
        runs = self._of(job)
        if not runs:
            return await self._lifecycle.stop(job, number, grace_s)
        task = self._lifecycle.spawn(self._stop(runs, number, grace_s))
        task.add_done_callback(lambda task: task.cancelled() or task.exception())  # heard, if by nobody else
        await asyncio.shield(task)  # also when the client has gone

    async def close(self) -> None:
        """No more restarts."""
        for runs in list(self._runs.values()):
            runs.ending.set()
            if runs.waiting:
                await runs.moved.wait()

    def _of(self, job: Job) -> _Runs | None:
        return self._runs.get(job.record.restart_of or job.record.uuid)

    async def _stop(self, runs: _Runs, number: int, grace_s: float) -> None:
        runs.ending.set()
        async with runs.starting:
            pass  # what is being started is there now
        await self._lifecycle.stop(runs.newest, number, grace_s)
        self._forget(runs)

    def _follow_runs(self, runs: _Runs) -> None:
        self._runs[runs.first] = runs
        self._lifecycle.spawn(self._restart(runs))

    async def _restart(self, runs: _Runs) -> None:
        """Starts run after run, as long as they fail."""
        pause_s = min(FIRST_PAUSE_S * 2 ** min(runs.newest.record.restarts, 10), MAX_PAUSE_S)  # of an api before, too
        try:
            while True:
                began_s = time.monotonic()
                await runs.newest.ended.wait()
                if time.monotonic() - began_s >= GOOD_RUN_S:
                    pause_s = FIRST_PAUSE_S
                if not _again(runs.newest.record) or not await self._start_next(runs, pause_s):
                    break
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
        finally:
            with suppress(sqlite3.OperationalError):  # no room: the next api finds it and what became of it
                self._forget(runs)

    async def _start_next(self, runs: _Runs, pause_s: float) -> bool:
        """Starts the next run after a pause, and tries again while the server cannot; False: there will be none."""
        old = runs.newest.record
        while not runs.ending.is_set():
            runs.waiting = True
            old.restart_ns = time.time_ns() + int(pause_s * 1e9)
            self._update(old)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await runs.ending.wait()
            runs.waiting = False
            async with runs.starting:
                if runs.ending.is_set():
                    break
                try:
                    job = await self.start(runs.next_request())
                except (TelehandlerError, OSError, sqlite3.Error) as error:
                    if not _passes(error):
                        old.extra[ERROR] = f"it is not started again: {error}"
                        break
                    pause_s = min(2 * pause_s, MAX_PAUSE_S)
                    continue
                old.restart_ns, old.next_run, runs.newest = 0, job.record.uuid, job
            self._update(old)
            with suppress(sqlite3.OperationalError):  # the next api asks for the same run, and gets it
                self._records.move_restart(runs.first, job.record.uuid)
            runs.moved.set()
            runs.moved = asyncio.Event()
            return True
        return False

    def _update(self, record: Record) -> None:
        """Saves it, unless it was removed meanwhile or there is no room: it says nothing that is needed."""
        with suppress(sqlite3.OperationalError):
            if self._records.get(record.uuid):
                self._records.save(record)

    def _forget(self, runs: _Runs) -> None:
        if self._runs.pop(runs.first, None):
            runs.newest.record.restart_ns = 0
            runs.moved.set()
            self._update(runs.newest.record)
        self._records.delete_restart(runs.first)


def _again(record: Record) -> bool:
    """Whether a job that has ended is to be started again."""
    most = record.max_restarts
    return record.state is State.FAILED and most is not None and (not most or record.restarts < most)


def _passes(error: Exception) -> bool:
    """Whether a start that failed so may succeed later."""
    if isinstance(error, HelperRefused):
        return error.stage == Stage.CAPACITY
    return isinstance(error, Exhausted | HelperUnavailable | OSError | sqlite3.OperationalError)
