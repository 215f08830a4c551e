"""Starts: one job for one request id, and nothing left of a start that fails."""

import asyncio
import errno
import shutil
import sqlite3
import time
import uuid as uuids
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from helper.wire import Stage
from telehandler.common import bounds, capacity
from telehandler.common.errors import (
    Exhausted,
    HelperRefused,
    HelperUnavailable,
    NameTaken,
    RequestReused,
    ServerEnding,
)
from telehandler.common.turns import Turns
from telehandler.jobs.helper_link import HelperLink, LiveJob, Unreceived
from telehandler.jobs.helper_requests import Starter, explained, kill, release
from telehandler.jobs.job import Job
from telehandler.jobs.lifecycle import Lifecycle, new_log
from telehandler.jobs.records import Record, Records
from telehandler.jobs.request import Request
from telehandler.jobs.restarts import Restarts
from telehandler.output.log import JobLog


class Starts:
    """The starts that are under way. One event loop.

    Users take turns: a start of one waits behind a few of another's, never behind all of them. And none has all of the
    jobs that the helper's policy allows: see `_check_share`.
    """

    def __init__(
        self,
        directory: Path,
        records: Records,
        lifecycle: Lifecycle,
        starter: Starter,
        restarts: Restarts,
        max_jobs_per_user: int,
    ) -> None:
        self._directory, self._records, self._lifecycle, self._starter = directory, records, lifecycle, starter
        self._restarts = restarts
        self._max_jobs_per_user = max_jobs_per_user  # 0: a share
        self._turns = Turns(bounds.MAX_STARTING_PER_USER)
        self._starting: Counter[str] = Counter()  # by owner
        self._names: set[tuple[str, str]] = set()  # owners and given names of the starts under way
        self._tasks: set[asyncio.Task[Job]] = set()
        self._of_requests: dict[tuple[str, str], asyncio.Task[Job]] = {}  # by owner and request id
        self._closed = False

    async def start(self, request: Request, link: Callable[[], HelperLink]) -> Job:
        """A running job, or the one that this request id has started already.

        A caller who is cancelled before it is the request's turn starts nothing; later, the start goes on. Raises
        HelperRefused, HelperUnavailable, ServerEnding, RequestReused, NameTaken, or Exhausted: over a share, or where
        it could not be kept.
        """
        if found := await self._known(request):
            return found
        async with self._turns.turn(request.owner):
            if found := await self._known(request):  # meanwhile
                return found
            return _of_same_request(await asyncio.shield(self._spawn(request, link())), request)

    async def _known(self, request: Request) -> Job | None:
        """The job of another start with the same request id."""
        key = request.owner, request.request_id
        if task := self._of_requests.get(key):
            return _of_same_request(await asyncio.shield(task), request)
        if request.request_id and (record := self._records.of_request(*key)):
            return _of_same_request(self._lifecycle.job_of(record), request)
        if self._closed:
            raise ServerEnding("the server is ending, and starts no more jobs: try again when it is back")
        return None

    def _spawn(self, request: Request, link: HelperLink) -> "asyncio.Task[Job]":
        key = request.owner, request.request_id
        self._check_share(request.owner, link.max_jobs)
        self.check_name(request)
        if request.life.given_name:
            self._names.add((request.owner, request.life.given_name))
        task = asyncio.get_running_loop().create_task(self._start(request, link))
        self._starting[request.owner] += 1
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._done(task, request))
        if request.request_id:
            self._of_requests[key] = task
            task.add_done_callback(lambda _: self._of_requests.pop(key))
        return task

    def _done(self, task: "asyncio.Task[Job]", request: Request) -> None:
        owner = request.owner
        self._names.discard((owner, request.life.given_name))
        self._tasks.discard(task)
        self._starting[owner] -= 1
        if not self._starting[owner]:
            del self._starting[owner]
        if not task.cancelled():
            task.exception()  # heard, if by nobody else

    def _check_share(self, owner: str, most: int) -> None:
        """Raises Exhausted when the owner has as many jobs as one user may have beside those of the others."""
        own = self._starting[owner] + sum(job.record.owner == owner for job in self._lifecycle.running.values())
        waiting = self._restarts.waiting(owner)
        others = self._starting.total() + len(self._lifecycle.running) - own
        share = self._max_jobs_per_user or max(1, int((most - others) * bounds.SHARE_OF_JOBS))
        if most and own + waiting >= share:
            text = f"{own} of this user's jobs run{f' and {waiting} wait for their restart' if waiting else ''}"
            raise Exhausted(f"{text}, and one user may have {share} now: end some")

    def check_name(self, request: Request) -> None:
        """Raises NameTaken where another job, or a start, of the owner has the given name. Runs of one job share it."""
        name, owner = request.life.given_name, request.owner
        if not name or request.life.restart_of:
            return
        noted = (record for record in self._records.begun() if (record.owner, record.given_name) == (owner, name))
        if record := self._records.named(owner, name) or next(noted, None):
            text = f"the name {name} is that of the job {record.uuid}: remove that one, or choose another name"
            raise NameTaken(text)
        if (owner, name) in self._names:
            raise NameTaken(f"a job of the name {name} is being started: choose another name")

    async def close(self) -> None:
        """No more starts; returns once none is under way."""
        self._closed = True
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _start(self, request: Request, link: HelperLink) -> Job:
        record = _new_record(request)
        log, live = None, None

        def full() -> bool:
            return len(self._lifecycle.running) >= link.max_jobs

        try:
            parent = self._parent(request)
            capacity.check(self._directory.parent, len(self._tasks) - 1)
            log = new_log(self._directory, record)  # before it runs: what cannot be kept is not started
            if record.request_id and not self._records.begin(record):
                raise HelperUnavailable("the helper has not answered a start of this request id: it is not known yet")
            self._restarts.begin(record.uuid, request)
            live = await self._starter.start(link, request, uuids.UUID(record.uuid), full, parent)
            record.job_uid, record.start_ns = live.uid, time.time_ns()
            self._records.save(record)
        except Exception as error:
            await self._undo(record, log, live, link, error)
            raise _explained(error, request) from None
        job = Job(record, log)
        self._lifecycle.follow(job, log, live, link)
        if job.stdin and request.terminal:
            job.stdin.resize(*request.size)
        self._restarts.follow(job, request)
        return job

    def _parent(self, request: Request) -> int:
        """The handle of the job that the command is to run in, or 0. Raises HelperRefused, as the helper would."""
        if not request.exec_in:
            return 0
        job = self._lifecycle.running.get(request.exec_in)
        if not job or job.exited.done():
            raise HelperRefused(Stage.NO_SUCH_JOB, errno.ESRCH, "the job has ended: no command can be run in it")
        return job.handle

    async def _undo(
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
            await kill(link, handle)
            self._lifecycle.spawn(release(link, handle))
        # A helper that lives and does not answer may have started it: adoption will see.
        if link.lost or not isinstance(error, HelperUnavailable):
            with suppress(sqlite3.OperationalError):  # no room: as if the helper had not answered
                self._records.forget(record)
                self._records.delete_restart(record.uuid)


def _new_record(request: Request) -> Record:
    """Of a job that is about to start."""
    life = request.life._asdict()
    record = Record(str(uuids.uuid4()), request.owner, request.argv, start_ns=time.time_ns(), **life)
    record.request_id, record.request_sha256 = request.request_id, request.request_sha256
    record.exec_in = request.exec_in
    if request.log_cap.max_bytes:
        policy = "drop" if request.log_cap.drop_oldest else "kill" if request.log_kill else "block"
        record.extra |= {"log_max_bytes": str(request.log_cap.max_bytes), "log_policy": policy}
    if request.stdin or request.terminal:
        record.extra["terminal" if request.terminal else "stdin"] = "1"
    return record


def _explained(error: Exception, request: Request) -> Exception:
    """What the user is told of a start that failed."""
    if isinstance(error, HelperRefused):
        return explained(error, request)
    if isinstance(error, sqlite3.OperationalError) or (isinstance(error, OSError) and error.errno in capacity.ERRORS):
        text = error.strerror if isinstance(error, OSError) else error
        return Exhausted(f"the server cannot keep a job in its state directory: {text}")
    return error


def _of_same_request(job: Job, request: Request) -> Job:
    """The job, unless another request has started it. Raises RequestReused."""
    if job.record.request_sha256 != request.request_sha256:
        raise RequestReused(
            f"the request id {request.request_id} was that of another request, whose job is {job.record.name}: "
            "each new request needs an id of its own"
        )
    return job
