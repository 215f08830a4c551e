"""A terminal as a source of output: no file takes a splice from it, and its end is an error (pty(7))."""

import ctypes
import errno
import os

_PIECE_BYTES = 1 << 14
_FALLOC_FL_KEEP_SIZE = 1
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


def read(fd: int, size: int) -> bytes:
    """What there is, b"" at the end. Raises BlockingIOError for nothing yet."""
    try:
        return os.read(fd, size)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return b""


def move(fd: int, file_fd: int, size: int, offset: int) -> int:
    """Moves what is in a pipe or terminal to `offset` of a file: the count of bytes, 0 at the end. Raises as splice."""
    try:
        return os.splice(fd, file_fd, size, offset_dst=offset)
    except OSError as error:
        if error.errno != errno.EINVAL or not os.isatty(fd):
            raise
    size = min(size, _PIECE_BYTES)
    _reserve(file_fd, offset, size)
    piece = read(fd, size)
    if piece and os.pwrite(file_fd, piece, offset) < len(piece):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return len(piece)


def _reserve(file_fd: int, offset: int, size: int) -> None:
    """The room for a piece: what was read, and then found none, would be lost. Raises OSError."""
    if _libc.fallocate(file_fd, _FALLOC_FL_KEEP_SIZE, offset, size):  # fallocate(2)
        number = ctypes.get_errno()
        if number not in (errno.EOPNOTSUPP, errno.ENOSYS):  # a file system that cannot tell
            raise OSError(number, os.strerror(number))
