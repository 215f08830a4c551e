"""A job's terminal: its size, and its output; no file takes a splice of that, and its end is an error (pty(7))."""

import errno
import fcntl
import os
import struct
import termios

from telehandler.output import file_space

_PIECE_BYTES = 1 << 14


def read(fd: int, size: int) -> bytes:
    """What there is, b"" at the end. Raises BlockingIOError for nothing yet."""
    try:
        return os.read(fd, size)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return b""


def resize(fd: int, rows: int, columns: int) -> None:
    """By its master: ioctl_tty(2). Raises OSError."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))


def move(fd: int, file_fd: int, size: int, offset: int) -> int:
    """Moves what is in a pipe or terminal to `offset` of a file: the count of bytes, 0 at the end. Raises as splice."""
    try:
        return os.splice(fd, file_fd, size, offset_dst=offset)
    except OSError as error:
        if error.errno != errno.EINVAL or not os.isatty(fd):
            raise
    size = min(size, _PIECE_BYTES)
    file_space.reserve(file_fd, offset, size)  # what was read, and then found no room, would be lost
    piece = read(fd, size)
    if piece and os.pwrite(file_fd, piece, offset) < len(piece):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return len(piece)
