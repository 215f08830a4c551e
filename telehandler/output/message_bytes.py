"""Bytes of a file read straight into their place behind a message's head: one copy less than Python's own ways."""

import ctypes
import errno
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.pread.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long]
_libc.pread.restype = ctypes.c_ssize_t
_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.argtypes, _new_bytes.restype = [ctypes.c_void_p, ctypes.c_ssize_t], ctypes.py_object
_address_of = ctypes.pythonapi.PyBytes_AsString
_address_of.argtypes, _address_of.restype = [ctypes.py_object], ctypes.c_void_p


def read_behind(fd: int, head: bytes, offset: int, length: int) -> bytes:
    """`head` and the `length` bytes at `offset`, in one piece. Raises OSError, also when cut short.

    PyBytes_FromStringAndSize gives an object whose bytes may be written before anyone else has it (Python's C API).
    """
    message: bytes = _new_bytes(None, len(head) + length)
    address = _address_of(message)
    ctypes.memmove(address, head, len(head))
    done = 0
    while done < length:
        count = _libc.pread(fd, address + len(head) + done, length - done, offset + done)
        if count <= 0:
            number = ctypes.get_errno() if count else errno.EIO
            raise OSError(number, os.strerror(number))
        done += count
    return message
