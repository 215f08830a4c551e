"""From a job's two pipes, or its terminal, to where its output goes, a log or a relay, until both have ended."""

import asyncio
import fcntl
import os
import select
from collections.abc import Callable
from typing import Protocol

from telehandler.output.log import PIPE_BYTES, LogFull, Stream

RETRY_S = 1.0  # no event tells that a disk has room again; one attempt a job costs a write or two
REST_S = 0.001  # of a pipe whose output comes fast: so that not each line wakes every watcher
_FAST_S = 0.002  # two pieces this close
_LARGE_BYTES = 1 << 16  # pieces of so much, whose cost is their size, wait for nothing
_DISCARD_BYTES = 1 << 20


def enlarge(pipe_fd: int) -> None:
    """A larger pipe means fewer wake-ups; over the user's share of pipe memory it stays as it is."""
    try:
        fcntl.fcntl(pipe_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        pass


def shrink(pipe_fd: int) -> None:
    """A page is what a pipe holds at least: so much may its writer be ahead of a log that is about to take no more.

    One that holds more stays as it is, until it is emptier (fcntl(2): EBUSY).
    """
    try:
        if fcntl.fcntl(pipe_fd, fcntl.F_GETPIPE_SZ) > select.PIPE_BUF:
            fcntl.fcntl(pipe_fd, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    except OSError:
        pass


class Target(Protocol):
    """Where output goes: see JobLog, and Relay."""

    @property
    def may_wait(self) -> bool: ...

    @property
    def waits_soon(self) -> bool: ...

    @property
    def overdue(self) -> bool:
        """Whether nothing more may come until `Pump.resume`."""

    def splice(self, pipe_fd: int, stream: Stream) -> int:
        """Takes what is in the pipe: the count of bytes, 0 at its end. Raises BlockingIOError for nothing now."""

    def drop(self, more: int = 0) -> bool: ...


class Pump:
    """Owns the two fds. While the target takes no more, nothing is read, so the job waits in its next write.

    At a log's cap that is for good; with the disk it is tried again, and a log that drops its oldest frees some first.
    `on_stuck` is told the error when a wait begins, and None when it is over. After small pieces that come fast, a
    pipe rests for `rest_s`; when the other one has something meanwhile, it is read first, so that their order stays.
    """

    def __init__(
        self,
        target: Target,
        stdout_fd: int,
        stderr_fd: int,
        on_stuck: Callable[[OSError | None], None],
        rest_s: float = 0,
    ) -> None:
        self._target, self._on_stuck = target, on_stuck
        self._loop = asyncio.get_running_loop()
        self._open = {stdout_fd: Stream.STDOUT, stderr_fd: Stream.STDERR}
        self._rest_s = rest_s
        self._moved_s = dict.fromkeys(self._open, 0.0)  # when, by the loop's clock
        self._resting: dict[int, asyncio.TimerHandle] = {}
        self._drained = asyncio.Event()
        self._paused = self._ended = self._given_up = False
        self._error: OSError | None = None
        self._retry: asyncio.TimerHandle | None = None
        self.discarded = 0  # bytes that the log did not take
        for fd in self._open:
            os.set_blocking(fd, False)
            if target.waits_soon:
                shrink(fd)
            elif not target.may_wait:  # a quick writer never lets a large pipe become empty enough to be made small
                enlarge(fd)
            self._loop.add_reader(fd, self._move, fd)

    async def drained(self) -> None:
        """Returns once both pipes have ended, and every byte is in the log or counted in `discarded`.

        For a job that has ended: what a log at its cap cannot take is read and counted; a disk is waited for, unless
        it is given up.
        """
        self._ended = True
        for fd in list(self._resting):
            self._end_rest(fd)
        self._discard_what_is_left()
        await self._drained.wait()

    def give_up(self) -> None:
        """Once the job has ended, the disk is no longer waited for."""
        self._given_up = True
        self._discard_what_is_left()

    def resume(self) -> None:
        """The target may have room again: a log that drops its oldest, once more of it is hashed; a relay."""
        try:
            self._target.drop()
        except OSError as error:
            return self._stick(error)
        if self._paused and not self._target.overdue and not isinstance(self._error, LogFull):
            self._go_on()

    def _go_on(self) -> None:
        self._paused = False
        self._stop_retry()
        for fd in self._open:
            self._loop.add_reader(fd, self._move, fd)

    def _move(self, fd: int) -> None:
        for other in list(self._resting):
            self._end_rest(other)
            if other != fd:
                self._move(other)
        if self._paused:
            return
        try:
            moved = self._target.splice(fd, self._open[fd])
        except BlockingIOError:
            return self._pause() if self._target.overdue else None
        except OSError as error:
            if at_end(fd):  # nothing is left to be written
                return self._close(fd)
            return self._stick(error)
        if self._error:
            self._error = None
            self._on_stuck(None)
        if moved and self._target.waits_soon:
            shrink(fd)
        if not moved:
            self._close(fd)
        elif self._target.overdue:
            self._pause()
        elif self._rest_s and not self._ended:
            self._rest(fd, moved)

    def _rest(self, fd: int, moved: int) -> None:
        now = self._loop.time()
        fast, self._moved_s[fd] = now - self._moved_s[fd] < _FAST_S, now
        if fast and moved < _LARGE_BYTES:
            self._loop.remove_reader(fd)
            self._resting[fd] = self._loop.call_later(self._rest_s, self._move, fd)

    def _end_rest(self, fd: int) -> None:
        self._resting.pop(fd).cancel()
        if not self._paused:
            self._loop.add_reader(fd, self._move, fd)

    def _stick(self, error: OSError) -> None:
        full = isinstance(error, LogFull)
        for fd in self._open if full else []:
            shrink(fd)
        try:
            if not full and self._target.drop(PIPE_BYTES):
                return  # its reader comes again at once
        except OSError:
            pass  # then not even that
        self._pause()
        began, self._error = self._error is None or self._error.errno != error.errno, error
        if not full:
            self._stop_retry()
            self._retry = self._loop.call_later(RETRY_S, self.resume)
        if began:
            self._on_stuck(error)
        self._discard_what_is_left()

    def _stop_retry(self) -> None:
        if self._retry:
            self._retry.cancel()
            self._retry = None

    def _pause(self) -> None:
        self._paused = True
        for fd in self._open:
            self._loop.remove_reader(fd)

    def _discard_what_is_left(self) -> None:
        if self._ended and (isinstance(self._error, LogFull) or (self._error and self._given_up)):
            for fd in list(self._open):
                self._discard(fd)

    def _discard(self, fd: int) -> None:
        """Its writers are dead: what the pipe holds is all there will be."""
        try:
            while piece := os.read(fd, _DISCARD_BYTES):
                self.discarded += len(piece)
        except OSError:  # a writer lives on somewhere: it has been given up; or the end of a terminal
            pass
        self._close(fd)

    def _close(self, fd: int) -> None:
        self._loop.remove_reader(fd)
        if fd in self._resting:
            self._resting.pop(fd).cancel()
        os.close(fd)
        del self._open[fd]
        if not self._open:
            self._stop_retry()
            self._drained.set()


def at_end(pipe_fd: int) -> bool:
    """Whether a pipe is empty and has no writer left."""
    poll = select.poll()
    poll.register(pipe_fd, select.POLLIN)
    return poll.poll(0) == [(pipe_fd, select.POLLHUP)]
