"""From an fd of this process to a job's stdin or terminal, with no more than a piece kept between: for `local -i`."""

import asyncio
import os
from collections.abc import Callable

from telehandler.common.errors import TelehandlerError

_PIECE_BYTES = 1 << 16


class Feed:
    """Owns the job's fd. While the job reads nothing, nothing is read for it.

    The source is the caller's, and is not made non-blocking, since other processes may share it. When it ends, or when
    the job has closed its own end, the job's fd is closed and `on_end` is called. A terminal has no end: its fd stays.
    """

    def __init__(self, source_fd: int, job_fd: int, terminal: bool, on_end: Callable[[], None]) -> None:
        self._source_fd, self._fd, self._terminal, self._on_end = source_fd, job_fd, terminal, on_end
        self._loop = asyncio.get_running_loop()
        self._rest = memoryview(b"")
        self._always = False  # a file, which is never waited for
        self._due: asyncio.Handle | None = None
        self.failed: asyncio.Future[None] = self._loop.create_future()  # with TelehandlerError
        os.set_blocking(job_fd, False)
        self._listen()

    def close(self) -> None:
        """Reads no more, and closes the job's fd."""
        if self._fd < 0:
            return
        self._loop.remove_reader(self._source_fd)
        self._loop.remove_writer(self._fd)
        if self._due:
            self._due.cancel()
        os.close(self._fd)
        self._fd = -1

    def _listen(self) -> None:
        if self._always:
            self._due = self._loop.call_soon(self._move)
            return
        try:
            self._loop.add_reader(self._source_fd, self._move)
        except PermissionError:  # epoll_ctl(2): a file or a directory
            self._always = True
            self._listen()

    def _move(self) -> None:
        try:
            piece = os.read(self._source_fd, _PIECE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._loop.remove_reader(self._source_fd)
            if not self.failed.done():
                self.failed.set_exception(TelehandlerError(f"stdin cannot be read: {error.strerror}"))
            return
        if not piece:
            return self._end()
        self._rest = memoryview(piece)
        self._write()
        if self._rest and self._fd >= 0:
            self._loop.remove_reader(self._source_fd)
            self._loop.add_writer(self._fd, self._go_on)
        elif self._always and self._fd >= 0:
            self._listen()

    def _write(self) -> None:
        try:
            while self._rest:
                self._rest = self._rest[os.write(self._fd, self._rest) :]
        except BlockingIOError:
            pass
        except OSError:  # EPIPE, EIO: the job reads no more
            self._rest = memoryview(b"")
            self._end(gone=True)

    def _go_on(self) -> None:
        self._write()
        if not self._rest and self._fd >= 0:
            self._loop.remove_writer(self._fd)
            self._listen()

    def _end(self, gone: bool = False) -> None:
        if self._terminal and not gone:
            self._loop.remove_reader(self._source_fd)
            return
        self.close()
        self._on_end()
