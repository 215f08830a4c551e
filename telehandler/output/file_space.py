"""Room in a file, taken before it is written and given back while it is read: fallocate(2), which Python has not."""

import ctypes
import errno
import os

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # FALLOC_FL_*
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


def punch(fd: int, offset: int, length: int) -> None:
    """Makes a hole there: it reads as zeros, and takes no room. Raises OSError."""
    _fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length)


def reserve(fd: int, offset: int, length: int) -> None:
    """Room for what is to be written there, where the file system can tell. Raises OSError."""
    try:
        _fallocate(fd, _KEEP_SIZE, offset, length)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
