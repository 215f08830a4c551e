"""All jobs of one server: what the service calls."""

from collections.abc import Collection
from pathlib import Path
from weakref import WeakValueDictionary

from telehandler.common.states import State
from telehandler.jobs import adoption
from telehandler.jobs.helper_link import HelperLink
from telehandler.jobs.helper_requests import Starter
from telehandler.jobs.job import Job, ended_job
from telehandler.jobs.lifecycle import Lifecycle
from telehandler.jobs.records import Keep, Records
from telehandler.jobs.request import Request
from telehandler.jobs.restarts import Restarts
from telehandler.jobs.retention import Retention
from telehandler.jobs.selection import ANY_MARKS, Cursor, Marks
from telehandler.jobs.start import Starts
from telehandler.output.log import JobLog

MAX_GRACE_S = 3600.0


class Jobs:
    """Owns the link to the helper, the records and the logs. One event loop."""

    def __init__(
        self,
        directory: Path,
        link: HelperLink,
        records: Records,
        cwd: bytes,
        keep: Keep | None = None,
        max_jobs_per_user: int = 0,
    ) -> None:
        """`max_jobs_per_user` 0: a share of what the helper's policy allows, see Starts."""
        self._directory, self._link, self._records = directory / "jobs", link, records
        self._retention = Retention(self._directory, records, keep or Keep())
        self._lifecycle = Lifecycle(self._directory, records, self._retention)
        self._starter = Starter(cwd)
        self._restarts = Restarts(records, self._lifecycle)
        self._starts = Starts(
            self._directory, records, self._lifecycle, self._starter, self._restarts, max_jobs_per_user
        )
        self._restarts.start = self.start
        self._watched: WeakValueDictionary[str, JobLog] = WeakValueDictionary()  # that were opened
        self._retention.watched = lambda uuid: bool((log := self._watched.get(uuid)) and not log.closed)
        self._logs: WeakValueDictionary[str, JobLog] = WeakValueDictionary()  # of ended jobs, while they are watched

    async def adopt(self) -> None:
        """At the start: takes up the jobs that the helper runs. Raises HelperUnavailable: see adoption.py."""
        await adoption.adopt(self._link, self._records, self._lifecycle)
        self._lifecycle.spawn(self._retention.sweep(self._retention.orphans(self._lifecycle.running)))
        for record in self._records.to_remove():
            self._retention.expire(record)
        self._restarts.resume()

    async def connect(self, link: HelperLink) -> None:
        """A new helper, in the place of one that died: it starts the jobs from now on, and has none yet."""
        self._link = link
        _, adopted = await link.hello()
        for _, live in adopted:
            live.close()

    async def end(self, kill: bool) -> None:
        """No more starts; returns once no job runs. With `kill` all are stopped, without a grace."""
        if kill:
            await self._link.cancel_starts()
        await self._restarts.close()
        await self._starts.close()
        await self._lifecycle.stop_all(kill)

    async def check(self, request: Request) -> list[bytes]:
        """What a job of this request would get, a name and a value each. Raises as start does."""
        self._starts.check_name(request)
        return await self._starter.check(self._link, request)

    async def unenforced(self, request: Request) -> list[str]:
        """Of the limits that a request sets, those that nothing enforces here: see limits.py."""
        return await self._starter.unenforced(self._link, request)

    async def start(self, request: Request) -> Job:
        """A running job, or the one that this request id has started already: see Starts.start."""
        return await self._starts.start(request, lambda: self._link)

    def find(self, uuid: str) -> Job | None:
        """A job by its UUID, running or ended."""
        if job := self._lifecycle.running.get(uuid):
            return job
        record = self._records.get(uuid)
        return ended_job(record) if record else None

    @property
    def running(self) -> int:
        """How many run now."""
        return len(self._lifecycle.running)

    def list_jobs(
        self,
        owner: str | None,
        states: Collection[State],
        prefix: str,
        after: Cursor | None,
        count: int,
        marks: Marks = ANY_MARKS,
    ) -> tuple[list[Job], bool]:
        """One page, the newest first, and whether there are more: see Records.page."""
        records, more = self._records.page(owner, states, after, count, prefix, marks)
        return [self._lifecycle.job_of(record) for record in records], more

    def named(self, owner: str, name: str) -> Job | None:
        """The job of its owner with this given name; of several runs the newest."""
        record = self._records.named(owner, name)
        return self._lifecycle.job_of(record) if record else None

    async def stop(self, job: Job, number: int, grace_s: float) -> None:
        """`number`, a grace, then SIGKILL to the whole tree; returns once the job, or its newest run, has ended."""
        await self._restarts.stop(job, number, grace_s)

    async def next_run(self, job: Job) -> Job:
        """The job as it is once it has ended and its next run has started, or there will be none."""
        await self._restarts.next_run(job)
        return self.find(job.record.uuid) or job

    def waits_for_restart(self, job: Job) -> bool:
        """Whether it has ended and is about to be started again."""
        return self._restarts.waits(job)

    async def signal(self, job: Job, number: int) -> None:
        """Raises HelperRefused when the job has just ended, unless it is being stopped."""
        await self._lifecycle.signal(job, number)

    async def delete(self, job: Job) -> None:
        """Removes a job that has ended, and the commands that ran in it, with their output."""
        for command in self._lifecycle.commands_in(job):
            await command.ended.wait()  # they end with it
        await self._retention.remove([job.record.uuid], job.record.owner)

    def open_log(self, job: Job) -> JobLog:
        """The log of a job, running or ended; the caller's to release."""
        log = job.log or self._logs.get(job.record.uuid)
        if log and not log.closed:
            self._watched[job.record.uuid] = log
            return log.retain()
        try:
            log = JobLog(self._directory / job.record.uuid, ended=True)
        except FileNotFoundError:
            log = self._lifecycle.new_log(job.record)  # removed by hand: empty
        self._logs[job.record.uuid] = self._watched[job.record.uuid] = log
        log.finish()
        return log

    async def drain(self) -> None:
        """Waits for what is under way after the last event."""
        await self._lifecycle.drain()

    def close(self) -> None:
        """Lets go of the jobs that run: their pipes are the next api's to read."""
        self._link.close()
