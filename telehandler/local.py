"""`telehandler local`: the same helper, link, log and jobs, with no server, certificate or port.

Runs in the user's own process. What it shows goes to the sinks that its caller gives: it prints nothing itself.
Imports `jobs`, `output`, `supervisor` (for the helper alone) and `common`.
"""

import asyncio
import os
import signal
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from helper.wire import Stage
from telehandler.common import limits, process_state
from telehandler.common.errors import HelperRefused, Interrupted, OutputFailed, not_executed
from telehandler.common.states import Reason
from telehandler.jobs.helper_link import HelperLink
from telehandler.jobs.job import Job
from telehandler.jobs.manager import Jobs
from telehandler.jobs.records import Records
from telehandler.jobs.request import Request as Request  # what `run` and `check` take
from telehandler.output.log import CHUNK_BYTES, Stream
from telehandler.supervisor import helper_process

T = TypeVar("T")

READER_S = 2.0  # for a reader that does not read, once the job was ended by a signal to us
_SLICE_S = 0.2  # of waiting for a reader, between looks at what else has come
_STOP_S = 10.0  # the grace of a job that ends with us
# The signals that would end this process, and leave the state directory behind. Not those of a fault in it.
_ENDING = {
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGTERM),
    *(signal.SIGSTKFLT, signal.SIGXCPU, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO, signal.SIGPWR),
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
}


class Sinks(NamedTuple):
    """Where a job's output and notes for its user go."""

    # Whether it is of stderr, the bytes, and how long to wait for room: how many were written.
    write: Callable[[bool, memoryview, float], int]
    note: Callable[[str], None]


class End(NamedTuple):
    """How a job ended; `detail`: why not all output was kept."""

    reason: str
    exit_code: int | None
    signal: int
    detail: str


class Signals:
    """Those that would end this process, from the start of the helper to the end of what it needs.

    They are only noted: whoever works looks between its steps, so that no step is left half done.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._listener: Callable[[int], None] | None = None
        # Python runs a handler before it waits or when the wait is interrupted: one that comes between the two would
        # be attended to at the next event only. What is written here is one (signal.set_wakeup_fd).
        self._wakeups, self._waker = socket.socketpair()
        self._wakeups.setblocking(False)
        self._waker.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        self._before = {
            number: signal.signal(number, self._on_signal)
            for number in sorted(_ENDING)
            if signal.getsignal(number) not in (signal.SIG_IGN, None)  # ignored when we were started: it stays so
        }

    def listen(self, listener: Callable[[int], object]) -> None:
        """Also for what has come before. Called between two steps of the event loop that runs now."""
        loop = asyncio.get_running_loop()

        def hand_over(number: int) -> None:
            loop.call_soon_threadsafe(listener, number)

        self._listener = hand_over
        loop.add_reader(self._wakeups, self._on_wakeup)
        for number in self.received:
            listener(number)

    def check(self) -> None:
        """Raises Interrupted when one has come."""
        if self.received:
            raise Interrupted(self.received[0])

    def close(self) -> None:
        self._listener = None
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        self._wakeups.close()
        self._waker.close()

    def _on_wakeup(self) -> None:
        with suppress(BlockingIOError):
            self._wakeups.recv(1024)

    def _on_signal(self, number: int, _: object) -> None:
        self.received.append(number)
        if self._listener:
            self._listener(number)


def run(request: Request, cgroup_root: str | None, policy: str | None, sinks: Sinks) -> End:
    """Runs the job to its end. Raises TelehandlerError."""
    try:
        return with_jobs(cgroup_root, policy, lambda jobs, signals: _Run(jobs, sinks, signals).run(request))
    except HelperRefused as refused:
        if refused.stage == Stage.EXEC:
            refused.exit_code = not_executed(refused.errno)
        raise


def check(request: Request, cgroup_root: str | None, policy: str | None) -> list[bytes]:
    """What the job would get, a name and a value each. Raises TelehandlerError."""
    rows = with_jobs(cgroup_root, policy, lambda jobs, _: jobs.check(request))
    return limits.marked(rows, limits.without_file(rows))


def with_jobs(cgroup_root: str | None, policy: str | None, work: Callable[[Jobs, Signals], Awaitable[T]]) -> T:
    """`work` with a helper and a state directory of its own, both gone at the end, also by a signal: Interrupted."""
    signals = Signals()
    try:
        process, sock = helper_process.start(cgroup_root, policy)

        async def serve(directory: Path) -> T:
            link = HelperLink(sock)
            records = Records(directory)
            jobs = Jobs(directory, link, records, os.fsencode(process_state.working_directory()))
            try:
                me = asyncio.current_task()
                assert me is not None
                signals.listen(lambda _: me.cancel())
                await jobs.adopt()
                return await work(jobs, signals)
            except asyncio.CancelledError:
                signals.check()
                raise
            finally:
                link.close()
                records.close()

        try:
            signals.check()
            with tempfile.TemporaryDirectory(prefix="telehandler-") as directory:
                return asyncio.run(serve(Path(directory)))
        finally:
            sock.close()
            process.wait()
    finally:
        signals.close()


class _Run:
    """One job: its output copied to the sinks, and signals to us that are its own, or its end."""

    def __init__(self, jobs: Jobs, sinks: Sinks, signals: Signals) -> None:
        self._jobs, self._sinks, self._signals = jobs, sinks, signals
        self._tasks: set[asyncio.Task[None]] = set()
        self._interrupted = False
        self._attended = 0  # signals

    async def run(self, request: Request) -> End:
        job = await self._jobs.start(request)
        self._signals.listen(lambda number: self._act(job, number))
        if text := limits.warning(await self._jobs.unenforced(request)):
            self._sinks.note(text)
        log, offset = self._jobs.open_log(job), 0
        while await log.wait(offset):
            chunk = log.run(offset, offset + CHUNK_BYTES)
            await self._write(job, chunk.stream is Stream.STDERR, log.bytes_at(offset, chunk.end - offset))
            offset = chunk.end
        log.release()
        await job.ended.wait()
        await self._jobs.drain()
        record = job.record
        code = None if record.reason is Reason.LOST else record.exit_code
        return End(record.reason.name.lower(), code, record.signal, record.extra.get("log_error", ""))

    async def _write(self, job: Job, stderr: bool, data: bytes) -> None:
        """All of it. While a reader does not read, nothing else goes on, and the job waits, through its pipe.

        A signal is attended to all the same. Raises OutputFailed.
        """
        view, progress = memoryview(data), time.monotonic()
        while view:
            if count := self._sinks.write(stderr, view, _SLICE_S):
                view, progress = view[count:], time.monotonic()
                continue
            if self._tasks or self._attended < len(self._signals.received):
                await self._attend()
            if self._signals.received and job.ended.is_set() and time.monotonic() - progress > READER_S:
                raise OutputFailed("the job was ended, and nobody reads the rest of its output")

    async def _attend(self) -> None:
        """Lets the event loop run, for signals that have come, but for no longer than that takes."""
        self._attended = len(self._signals.received)
        await asyncio.sleep(0)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_SLICE_S)

    def _act(self, job: Job, number: int) -> None:
        """The first Ctrl-C goes to the job, the second kills it; every other signal that would end us stops it."""
        if number == signal.SIGINT and not self._interrupted:
            self._interrupted = True
            work = self._interrupt(job)
        else:
            work = self._jobs.stop(job, signal.SIGTERM, 0 if number in (signal.SIGINT, signal.SIGQUIT) else _STOP_S)
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    async def _interrupt(self, job: Job) -> None:
        await self._jobs.signal(job, signal.SIGINT)
        self._sinks.note("interrupt passed to the job; once more kills it")

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._sinks.note(str(error))
