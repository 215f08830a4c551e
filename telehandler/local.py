"""`telehandler local`: the same helper, link, log and jobs, with no server, certificate or port.

Runs in the user's own process. What it shows goes to the sinks that its caller gives: it prints nothing itself.
"""

import asyncio
import os
import signal
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from helper.wire import Stage
from telehandler.common.errors import HelperRefused, not_executed
from telehandler.jobs.helper_link import HelperLink
from telehandler.jobs.job import Job
from telehandler.jobs.manager import Jobs
from telehandler.jobs.records import Records
from telehandler.jobs.request import Request as Request  # what `run` and `check` take
from telehandler.output.log import CHUNK_BYTES, Stream
from telehandler.supervisor import helper_process

T = TypeVar("T")


class Sinks(NamedTuple):
    """Where a job's output and notes for its user go."""

    write: Callable[[bool, bytes], None]  # whether it is of stderr, and the bytes; one that blocks blocks the job
    note: Callable[[str], None]


class End(NamedTuple):
    """How a job ended; `detail`: why not all output was kept."""

    reason: str
    exit_code: int
    signal: int
    detail: str


def run(request: Request, cgroup_root: str | None, policy: str | None, sinks: Sinks) -> End:
    """Runs the job to its end. Raises TelehandlerError."""
    try:
        return with_jobs(cgroup_root, policy, lambda jobs: _run(request, jobs, sinks))
    except HelperRefused as refused:
        if refused.stage == Stage.EXEC:
            refused.exit_code = not_executed(refused.errno)
        raise


def check(request: Request, cgroup_root: str | None, policy: str | None) -> list[bytes]:
    """What the job would get, a name and a value each. Raises TelehandlerError."""
    return with_jobs(cgroup_root, policy, lambda jobs: jobs.check(request))


def with_jobs(cgroup_root: str | None, policy: str | None, work: Callable[[Jobs], Awaitable[T]]) -> T:
    """`work` with a helper and a state directory of its own, both gone at the end."""
    process, sock = helper_process.start(cgroup_root, policy)

    async def serve(directory: Path) -> T:
        link = HelperLink(sock)
        records = Records(directory)
        jobs = Jobs(directory, link, records, os.fsencode(os.getcwd()))
        try:
            await jobs.adopt()
            return await work(jobs)
        finally:
            link.close()
            records.close()

    with tempfile.TemporaryDirectory(prefix="telehandler-") as directory:
        try:
            return asyncio.run(serve(Path(directory)))
        finally:
            sock.close()
            process.wait()


async def _run(request: Request, jobs: Jobs, sinks: Sinks) -> End:
    job = await jobs.start(request)
    _pass_signals(jobs, job, sinks.note)
    log, offset = jobs.open_log(job), 0
    while await log.wait(offset):
        chunk = log.run(offset, offset + CHUNK_BYTES)
        # Blocking: a reader that stops stops the job, through its pipe.
        sinks.write(chunk.stream is Stream.STDERR, log.bytes_at(offset, chunk.end - offset))
        offset = chunk.end
    log.release()
    await job.ended.wait()
    await jobs.drain()
    record = job.record
    return End(record.reason.name.lower(), record.exit_code, record.signal, record.extra.get("log_error", ""))


def _pass_signals(jobs: Jobs, job: Job, note: Callable[[str], None]) -> None:
    """The first Ctrl-C goes to the job, the second kills it; SIGTERM stops it."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    interrupted = False

    def act(number: int) -> None:
        nonlocal interrupted
        if number == signal.SIGINT and not interrupted:
            interrupted = True
            note("interrupt passed to the job; once more kills it")
            work = jobs.signal(job, number)
        else:
            work = jobs.stop(job, signal.SIGTERM, 0 if number == signal.SIGINT else 10)
        tasks.add(loop.create_task(work))

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, act, number)
