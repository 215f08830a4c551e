"""From a job's pipes to fds of this process, with nothing kept between: what `local` has in the place of a log."""

import asyncio
import os
import stat
from collections.abc import Callable

from telehandler.common import streams
from telehandler.common.errors import OutputFailed
from telehandler.output.log import PIPE_BYTES, Stream
from telehandler.output.pump import at_end
from telehandler.output.terminal import read

_PIECE_BYTES = 1 << 16  # of what is copied: into all that is no pipe


class Relay:
    """A pump's target. While one of the fds has no room, nothing is taken for the other either.

    So the order of both streams stays as it came, and no more is held than what the pipes hold, and one piece. The fds
    are the caller's; they are not made non-blocking, since other processes may share them.
    """

    may_wait = waits_soon = False

    def __init__(self, stdout_fd: int, stderr_fd: int, terminal: bool = False) -> None:
        """`terminal`: what comes is of one, from which no pipe takes a splice on every kernel."""
        self._fds = {Stream.STDOUT: stdout_fd, Stream.STDERR: stderr_fd}
        self._pipes = {fd for fd in self._fds.values() if stat.S_ISFIFO(os.fstat(fd).st_mode) and not terminal}
        self._loop = asyncio.get_running_loop()
        self._rest = memoryview(b"")  # of the last piece
        self.overdue = False
        self.count = 0  # bytes that went on
        self.on_room: Callable[[], None] = lambda: None  # once `overdue` is over: the pump's resume
        self.failed: asyncio.Future[None] = self._loop.create_future()  # with OutputFailed

    def splice(self, pipe_fd: int, stream: Stream) -> int:
        """See pump.Target. What cannot be written sets `failed`, and nothing more is taken."""
        fd = self._fds[stream]
        try:
            return self._splice(pipe_fd, fd) if fd in self._pipes else self._copy(pipe_fd, fd)
        except BlockingIOError:
            if fd in self._pipes:  # of a copy it says that there is nothing to read: a write that has to wait returns
                self._wait(fd)
            raise
        except OutputFailed as error:
            self._fail(error)
            raise BlockingIOError from None

    def drop(self, more: int = 0) -> bool:
        """See pump.Target: nothing is kept."""
        return False

    def _splice(self, pipe_fd: int, fd: int) -> int:
        """The kernel looks at the room for more before it looks whether there is more: at the end that is no matter."""
        try:
            moved = streams.splice(pipe_fd, fd, PIPE_BYTES)
        except (BlockingIOError, OutputFailed):
            if at_end(pipe_fd):
                return 0
            raise
        self.count += moved
        return moved

    def _copy(self, pipe_fd: int, fd: int) -> int:
        piece = read(pipe_fd, _PIECE_BYTES)
        self._rest = memoryview(piece)
        self._write(fd)
        return len(piece)

    def _write(self, fd: int) -> None:
        """What there is room for; the rest once there is more."""
        while self._rest:
            count = streams.write_some(fd, self._rest, 0)
            if not count:
                return self._wait(fd)
            self._rest = self._rest[count:]
            self.count += count

    def _wait(self, fd: int) -> None:
        """A pipe whose reader has gone counts as writable; the write then tells."""
        self.overdue = True
        self._loop.add_writer(fd, self._go_on, fd)

    def _go_on(self, fd: int) -> None:
        self._loop.remove_writer(fd)
        self.overdue = False
        try:
            self._write(fd)
        except OutputFailed as error:
            self._fail(error)
        if not self.overdue:
            self.on_room()

    def _fail(self, error: OutputFailed) -> None:
        self.overdue = True
        if not self.failed.done():
            self.failed.set_exception(error)
