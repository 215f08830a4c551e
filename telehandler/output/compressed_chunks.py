"""A log's compressed chunks, in an unnamed file beside it: each is compressed once, however far apart its watchers are.

A message lies where its chunk does in the log, behind its length, in a region for each size of chunk; the rest of the
file is holes. The file goes when the log is closed. It is a cache: what it does not take is compressed again.
"""

import os
import struct
import threading
from pathlib import Path

MOST_BYTES = 2 << 30  # of the messages of all logs
SPARE = 10  # one part in so many of the disk stays free, for the logs themselves
_REGION_BYTES = 1 << 39  # the one of 256 KiB, the 19th, ends within the 16 TiB of a file of ext4
_LENGTH = struct.Struct("<I")


class CompressedChunks:
    """Owns the file, which is made when there is something to keep. For any thread, but for `close`."""

    kept = 0  # bytes, of all logs
    _lock = threading.Lock()  # for what is counted, and for the making of a file

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fd = -1
        self._bytes = 0

    def get(self, offset: int, size: int) -> bytes | None:
        """The message of the chunk of `size` bytes at `offset`, a multiple of it."""
        if self._fd < 0:
            return None
        place = _place(offset, size)
        try:
            header = os.pread(self._fd, _LENGTH.size, place)
            if len(header) < _LENGTH.size or not (length := _LENGTH.unpack(header)[0]):
                return None  # behind the end, or in a hole
            return os.pread(self._fd, length, place + _LENGTH.size)
        except OSError:
            return None

    def put(self, offset: int, size: int, message: bytes) -> None:
        """Keeps it, where there is room: a message shorter than its chunk, which is not there yet."""
        length = _LENGTH.size + len(message)
        if length > size or offset + size > _REGION_BYTES or CompressedChunks.kept + length > MOST_BYTES:
            return
        try:
            with self._lock:
                if self._fd < 0:
                    self._fd = os.open(self._directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            disk = os.fstatvfs(self._fd)
            if disk.f_bavail * SPARE < disk.f_blocks:
                return
            place = _place(offset, size)
            # The length last: what was written in part is not there.
            if os.pwrite(self._fd, message, place + _LENGTH.size) == len(message):
                os.pwrite(self._fd, _LENGTH.pack(len(message)), place)
        except OSError:  # no unnamed files, no more fds, a full disk
            return
        with self._lock:
            self._bytes += length
            CompressedChunks.kept += length

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        CompressedChunks.kept -= self._bytes
        self._fd, self._bytes = -1, 0


def _place(offset: int, size: int) -> int:
    return size.bit_length() * _REGION_BYTES + offset
