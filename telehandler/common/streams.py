"""stdout and stderr as callers hand them over: full, closed, non-blocking, a pipe whose reader has gone (R24).

What was asked for goes to stdout, and a write that fails is an error. Messages go to stderr, and one that nobody can
read holds up nothing.
"""

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import TextIO

from telehandler.common.errors import OutputFailed, ReaderGone

STDIN_FD, STDOUT_FD, STDERR_FD = 0, 1, 2
_NAMES = {STDOUT_FD: "stdout", STDERR_FD: "stderr"}
closed: set[int] = set()  # those that were not open when this process was started; see process_state


def write(fd: int, data: bytes | memoryview) -> None:
    """All of `data`. Waits while a reader is slow, also for a non-blocking fd. Raises ReaderGone, OutputFailed."""
    view = memoryview(data)
    while view:
        try:
            view = view[_write(fd, view) :]
        except BlockingIOError:
            wait(fd)


def write_some(fd: int, data: memoryview, timeout_s: float) -> int:
    """How much of `data` was written; 0 when nothing could be in this time. Raises as `write` does.

    A signal ends the wait of a blocking fd whose reader is slow: what was written until then counts.
    """
    try:
        return _write(fd, data) if wait(fd, timeout_s) else 0
    except BlockingIOError:
        return 0


def splice(pipe_fd: int, fd: int, size: int) -> int:
    """Moves up to `size` bytes between two pipes without a copy, never waiting: how many, 0 at the first one's end.

    Raises BlockingIOError when there is nothing to move, or no room for it, also where a write would wait; else as
    `write` does.
    """
    return _attempt(fd, lambda: os.splice(pipe_fd, fd, size, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE))


def wait(fd: int, timeout_s: float | None = None) -> bool:
    """Whether an fd can be written to, or has failed, within this time."""
    import select  # a few tenths of a millisecond of each start

    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))


def _write(fd: int, view: memoryview) -> int:
    """One write. Raises BlockingIOError when there is no room now."""
    return _attempt(fd, lambda: os.write(fd, view))


def _attempt(fd: int, output: Callable[[], int]) -> int:
    try:
        if fd in closed:
            raise OSError(errno.EBADF, "it is closed")
        return output()
    except BrokenPipeError:
        raise ReaderGone from None
    except BlockingIOError:
        raise
    except OSError as error:
        raise OutputFailed(f"{_NAMES.get(fd, 'a file')} cannot be written: {error.strerror}") from None


class _Results(io.RawIOBase):
    """fd 1, by `write`."""

    def fileno(self) -> int:
        return STDOUT_FD

    def isatty(self) -> bool:
        return os.isatty(STDOUT_FD)

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]  # any buffer
        write(STDOUT_FD, data)
        return len(data)


class _Messages(_Results):
    """fd 2; what cannot be written is dropped."""

    def fileno(self) -> int:
        return STDERR_FD

    def isatty(self) -> bool:
        return os.isatty(STDERR_FD)

    def write(self, data: bytes) -> int:  # type: ignore[override]
        try:
            write(STDERR_FD, data)
        except OutputFailed:
            pass
        return len(data)


def results() -> TextIO:
    """For sys.stdout. What the locale's encoding lacks is shown escaped."""
    return _text(_Results(), sys.stdout, line_buffering=os.isatty(STDOUT_FD))


def messages() -> TextIO:
    """For sys.stderr: a line at a time."""
    return _text(_Messages(), sys.stderr, line_buffering=True)


def _text(raw: io.RawIOBase, before: TextIO | None, line_buffering: bool) -> TextIO:
    encoding = before.encoding if before else None
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", line_buffering=line_buffering
    )
