"""From a job's two pipes into its log, until both have ended."""

import asyncio
import fcntl
import os
from collections.abc import Callable

from telehandler.log import PIPE_BYTES, JobLog, Stream

_DISCARD_BYTES = 1 << 20


def enlarge(pipe_fd: int) -> None:
    """A larger pipe means fewer wake-ups; over the user's share of pipe memory it stays as it is."""
    try:
        fcntl.fcntl(pipe_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        pass


class Pump:
    """Owns the two fds. `on_error` is called once, at the first failure: LogFull at the cap, or the disk's.

    After a failure nothing more is read, so the job waits in its next write, until `end` or its kill.
    """

    def __init__(self, log: JobLog, stdout_fd: int, stderr_fd: int, on_error: Callable[[OSError], None]) -> None:
        self._log, self._on_error = log, on_error
        self._loop = asyncio.get_running_loop()
        self._open = {stdout_fd: Stream.STDOUT, stderr_fd: Stream.STDERR}
        self._drained = asyncio.Event()
        self._failed = self._paused = False
        self.discarded = 0  # bytes that the log did not take
        for fd in self._open:
            os.set_blocking(fd, False)
            enlarge(fd)
            self._loop.add_reader(fd, self._move, fd)

    async def drained(self) -> None:
        """Returns once both pipes have ended, and every byte is in the log or counted in `discarded`.

        For a job that has ended: what a log that failed cannot take is read and counted.
        """
        if self._failed:
            for fd in list(self._open):
                self._discard(fd)
        await self._drained.wait()

    def hashed(self) -> None:
        """More of the log is hashed: a log that drops its oldest may have room again."""
        try:
            self._log.drop()
        except OSError as error:
            return self._fail(error)
        if self._paused and not self._failed and not self._log.overdue:
            self._paused = False
            for fd in self._open:
                self._loop.add_reader(fd, self._move, fd)

    def _move(self, fd: int) -> None:
        try:
            moved = self._log.splice(fd, self._open[fd])
        except BlockingIOError:
            return
        except OSError as error:
            return self._fail(error)
        if not moved:
            self._close(fd)
        elif self._log.overdue:
            self._pause()

    def _fail(self, error: OSError) -> None:
        self._pause()
        if not self._failed:
            self._failed = True
            self._on_error(error)

    def _pause(self) -> None:
        self._paused = True
        for fd in self._open:
            self._loop.remove_reader(fd)

    def _discard(self, fd: int) -> None:
        """Its writers are dead: what the pipe holds is all there will be."""
        try:
            while piece := os.read(fd, _DISCARD_BYTES):
                self.discarded += len(piece)
        except BlockingIOError:  # a writer lives on somewhere: it has been given up
            pass
        self._close(fd)

    def _close(self, fd: int) -> None:
        self._loop.remove_reader(fd)
        os.close(fd)
        del self._open[fd]
        if not self._open:
            self._drained.set()
