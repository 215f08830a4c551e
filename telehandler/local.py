"""`telehandler local`: the same helper, link and pump, with no server, certificate, port, log or record.

Runs in the user's own process, and writes nothing to a disk. A job's output goes from its pipes to the sinks that the
caller gives, and so do notes: it prints nothing itself. Imports `jobs`, `output`, `supervisor` (for the helper alone)
and `common`.
"""

import asyncio
import os
import signal
import socket
import uuid as uuids
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

from helper.wire import Stage
from telehandler.common import limits, process_state, states
from telehandler.common.errors import HelperRefused, HelperUnavailable, Interrupted, OutputFailed, not_executed
from telehandler.common.states import Reason
from telehandler.jobs.helper_link import HelperLink, LiveJob
from telehandler.jobs.helper_requests import Starter, explained, kill
from telehandler.jobs.request import Request as Request  # what `run` and `check` take
from telehandler.output import terminal
from telehandler.output.feed import Feed
from telehandler.output.pump import REST_S, Pump
from telehandler.output.relay import Relay
from telehandler.supervisor import helper_process

T = TypeVar("T")

READER_S = 2.0  # for a reader that does not read, once the job was ended by a signal to us
_STOP_S = 10.0  # the grace of a job that ends with us
# The signals that would end this process, and with it, at once, the job. Not those of a fault in it.
_ENDING = {
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGTERM),
    *(signal.SIGSTKFLT, signal.SIGXCPU, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO, signal.SIGPWR),
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
}


class Sinks(NamedTuple):
    """Where a job's output and notes for its user go. The fds stay the caller's."""

    stdout_fd: int
    stderr_fd: int
    note: Callable[[str], None]
    stdin_fd: int = -1  # what the job gets as input, where its request has a stdin or a terminal; -1: nothing
    size: Callable[[], tuple[int, int]] = lambda: (24, 80)  # rows and columns of the user's terminal now


class End(NamedTuple):
    """How a job ended; no exit code for one that was lost."""

    reason: str
    exit_code: int | None
    signal: int


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
            if not loop.is_closed():  # else nothing is left that it could end
                loop.call_soon_threadsafe(listener, number)

        self._listener = hand_over
        loop.add_reader(self._wakeups, self._on_wakeup)
        for number in self.received:
            listener(number)

    def on_resize(self, listener: Callable[[], object]) -> None:
        """Of the user's terminal."""
        loop = asyncio.get_running_loop()
        self._before.setdefault(signal.SIGWINCH, signal.getsignal(signal.SIGWINCH))
        signal.signal(signal.SIGWINCH, lambda *_: loop.is_closed() or loop.call_soon_threadsafe(listener))

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

    async def work(link: HelperLink, starter: Starter, signals: Signals) -> End:
        unenforced = await starter.unenforced(link, request)
        live = await starter.start(link, request, uuids.uuid4())
        return await _Run(link, live, sinks, signals, request.terminal).run(unenforced)

    try:
        return _with_helper(cgroup_root, policy, work)
    except HelperRefused as error:
        refused = explained(error, request)
        if refused.stage == Stage.EXEC:
            refused.exit_code = not_executed(refused.errno)
        raise refused from None


def check(request: Request, cgroup_root: str | None, policy: str | None) -> list[bytes]:
    """What the job would get, a name and a value each. Raises TelehandlerError."""
    rows = _with_helper(cgroup_root, policy, lambda link, starter, _: starter.check(link, request))
    return limits.marked(rows, limits.without_file(rows))


def _with_helper(
    cgroup_root: str | None, policy: str | None, work: Callable[[HelperLink, Starter, Signals], Awaitable[T]]
) -> T:
    """`work` with a helper of its own, which ends with it and kills what it started, also at a signal: Interrupted."""
    signals = Signals()
    try:
        process, sock = helper_process.start(cgroup_root, policy)

        async def serve() -> T:
            link = HelperLink(sock)
            try:
                me = asyncio.current_task()
                assert me is not None
                signals.listen(lambda _: me.cancel())
                await link.hello()
                return await work(link, Starter(os.fsencode(process_state.working_directory())), signals)
            except asyncio.CancelledError:
                signals.check()
                raise
            finally:
                link.close()

        try:
            signals.check()
            return asyncio.run(serve())
        finally:
            sock.close()
            process.wait()
    finally:
        signals.close()


class _Run:
    """A job that runs: its output passed on to the sinks, and signals to us that are its own, or its end."""

    def __init__(self, link: HelperLink, live: LiveJob, sinks: Sinks, signals: Signals, terminal: bool) -> None:
        self._link, self._live, self._sinks, self._signals = link, live, sinks, signals
        os.close(live.cgroup_fd)
        self._terminal = terminal
        self._exited = link.exited(live.handle)
        self._tasks: set[asyncio.Task[None]] = set()
        self._interrupted = self._stopping = False

    async def run(self, unenforced: list[str]) -> End:
        """To its end, and that of its output. Raises OutputFailed; then the job ends with the helper."""
        self._signals.listen(self._act)
        if text := limits.warning(unenforced):
            self._sinks.note(text)
        feed = self._begin_input()
        relay = Relay(self._sinks.stdout_fd, self._sinks.stderr_fd, self._terminal)
        pump = Pump(relay, self._live.stdout_fd, self._live.stderr_fd, lambda _: None, REST_S)
        relay.on_room = pump.resume
        await _first(self._exited, relay.failed, *([feed.failed] if feed else []))
        if feed:
            if feed.failed.done():
                feed.failed.result()
            feed.close()
        drained = asyncio.ensure_future(pump.drained())
        while not drained.done():
            count = relay.count
            await _first(drained, relay.failed, timeout_s=READER_S)
            if relay.failed.done():
                relay.failed.result()
            if self._signals.received and relay.count == count and not drained.done():
                raise OutputFailed("the job was ended, and nobody reads the rest of its output")
        return self._end(self._exited.result())

    def _begin_input(self) -> Feed | None:
        """None where the job has none, or its user gives none."""
        fd = self._live.stdin_fd
        if fd < 0:
            return None
        if self._terminal:
            resize = partial(self._resize, fd)
            self._signals.on_resize(resize)
            resize()
        if self._sinks.stdin_fd < 0:
            return None  # a terminal's fd stays open, with its output
        return Feed(self._sinks.stdin_fd, fd, self._terminal, lambda: self._spawn(self._end_input()))

    def _resize(self, fd: int) -> None:
        with suppress(OSError):  # the job has ended
            terminal.resize(fd, *self._sinks.size())

    async def _end_input(self) -> None:
        with suppress(HelperRefused, HelperUnavailable):  # it has just ended, and the helper perhaps with it
            await self._link.close_stdin(self._live.handle)

    def _end(self, facts: dict[str, int] | None) -> End:
        if not facts:
            return End(Reason.LOST.name.lower(), None, 0)
        _, reason = states.end(facts, self._stopping)
        number = facts["signal"]
        return End(reason.name.lower(), 128 + number if number else facts["exit_code"], number)

    def _act(self, number: int) -> None:
        """The first Ctrl-C goes to the job, the second kills it; every other signal that would end us stops it."""
        if number == signal.SIGINT and not self._interrupted:
            self._interrupted = True
            work = self._interrupt()
        else:
            work = self._stop(0 if number in (signal.SIGINT, signal.SIGQUIT) else _STOP_S)
        self._spawn(work)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    async def _interrupt(self) -> None:
        if self._exited.done():
            return
        await self._link.signal(self._live.handle, signal.SIGINT)
        self._sinks.note("interrupt passed to the job; once more kills it")

    async def _stop(self, grace_s: float) -> None:
        """SIGTERM, a grace, then SIGKILL to the whole tree; without a grace SIGKILL at once."""
        if self._exited.done():
            return
        self._stopping = True
        if grace_s:
            with suppress(HelperRefused):  # it has just ended
                # A shell that somebody types to ends by no SIGTERM, but when its terminal goes.
                await self._link.signal(self._live.handle, signal.SIGHUP if self._terminal else signal.SIGTERM)
            await asyncio.wait([self._exited], timeout=grace_s)
        if not self._exited.done():
            await kill(self._link, self._live.handle)

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._sinks.note(str(error))


async def _first(*futures: "asyncio.Future[Any]", timeout_s: float | None = None) -> None:
    """Waits for one of them, and cancels none."""
    await asyncio.wait(futures, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
