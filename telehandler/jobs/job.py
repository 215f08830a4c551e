"""One job as this process has it: its record, and while it runs its log, its pump and the link to its helper."""

import asyncio

from telehandler.jobs.helper_link import HelperLink
from telehandler.jobs.records import Record
from telehandler.jobs.stdin import Stdin
from telehandler.output.log import JobLog
from telehandler.output.pump import Pump

STOP_BY = "stop_by_ns"  # in a record: when a stop's grace ends, by the monotonic clock, which all processes share


class Job:
    """A job, running or ended. `log` is kept while it runs; `Jobs.open_log` is for everybody else."""

    def __init__(self, record: Record, log: JobLog | None) -> None:
        self.record, self.log = record, log
        self.handle = -1  # the helper's, while it knows the job
        self.link: HelperLink | None = None  # to the helper that knows it
        self.pump: Pump | None = None  # while it runs
        self.stdin: Stdin | None = None  # while it runs, if it was started with one or with a terminal
        self.ended = asyncio.Event()
        self.output_lost = False  # some of it, at its end: told, and no success
        self.killer: asyncio.Task[None] | None = None  # waits for the end of a stop's grace
        self.hurry = asyncio.Event()  # for the killer: the grace is shorter now, or the job has ended

    @property
    def stopping(self) -> bool:
        """Whether a stop was requested: recorded, so that it outlives the api."""
        return STOP_BY in self.record.extra

    @property
    def takes_input(self) -> bool:
        """Whether it was started with a stdin or a terminal."""
        return bool({"stdin", "terminal"} & self.record.extra.keys())

    @property
    def exited(self) -> "asyncio.Future[dict[str, int] | None]":
        """The end of its processes: EXITED's fields, None when the helper died first."""
        assert self.link is not None
        return self.link.exited(self.handle)


def ended_job(record: Record) -> Job:
    """A job of which only the record is left."""
    job = Job(record, None)
    job.ended.set()
    return job
