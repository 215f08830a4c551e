"""A job's output on disk: one spool of bytes in the order of arrival, and an index of its segments.

The index has one record for each segment: offset, stream and time of its first byte. It is written before the
bytes are spliced from the pipe into the spool, so that an api that is killed loses nothing it took: a record's
length is the next one's offset less its own, the last one's the spool's size less its own.
"""

import asyncio
import fcntl
import os
import struct
import time
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

CHUNK_BYTES = 256 * 1024  # the most that one chunk of a watcher holds
PIPE_BYTES = 1 << 20
_SAME_SEGMENT_NS = 5_000_000  # output this close in time is one segment
_RECORD = struct.Struct("<QQB7x")  # offset, time in ns since the epoch, stream


class Stream(IntEnum):
    """As in the API's OutputStream."""

    STDOUT = 1
    STDERR = 2


class Chunk(NamedTuple):
    """Bytes of one stream, `offset` counted over both in the order of arrival."""

    offset: int
    stream: Stream
    time_ns: int
    data: bytes


class JobLog:
    """The log of one job. One writer, any number of readers, all on one event loop."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._spool_fd = os.open(directory / "output", flags, 0o600)
        self._index_fd = os.open(directory / "index", flags, 0o600)
        self.size = os.fstat(self._spool_fd).st_size
        self._segments = os.fstat(self._index_fd).st_size // _RECORD.size
        self._last = self._record(self._segments - 1) if self._segments else (0, 0, 0)
        self.sizes = dict.fromkeys(Stream, 0)
        self.ended = False
        self._users = 1
        self._changed = asyncio.Event()

    def splice(self, pipe_fd: int, stream: Stream) -> int:
        """Moves what is in the pipe to the spool: the count of bytes, 0 at its end.

        Raises BlockingIOError when there is nothing yet, OSError when the disk takes no more.
        """
        now = time.time_ns()
        offset, began, last_stream = self._last
        fresh = last_stream != stream or now - began > _SAME_SEGMENT_NS or self.size - offset >= CHUNK_BYTES
        if not self._segments or (fresh and offset < self.size):
            self._segments += 1
        if fresh:  # a record without bytes is written over
            self._last = (self.size, now, stream)
            os.pwrite(self._index_fd, _RECORD.pack(*self._last), (self._segments - 1) * _RECORD.size)
        count = os.splice(pipe_fd, self._spool_fd, PIPE_BYTES, offset_dst=self.size)
        if count:
            self.size += count
            self.sizes[stream] += count
            self._wake()
        return count

    def finish(self) -> None:
        """No more output will come."""
        self.ended = True
        self._wake()

    async def wait(self, offset: int) -> bool:
        """True once there is output behind `offset`, False when the log has ended without any."""
        while self.size <= offset and not self.ended:
            await self._changed.wait()
        return self.size > offset

    def read(self, offset: int) -> Chunk:
        """At most CHUNK_BYTES from `offset`, which must lie before the log's size."""
        number = self._find(offset)
        _, time_ns, stream = self._record(number)
        count = min(self._end(number) - offset, CHUNK_BYTES)
        return Chunk(offset, Stream(stream), time_ns, os.pread(self._spool_fd, count, offset))

    def recount(self) -> None:
        """Sums `sizes` up anew, for a log that an api before this one wrote."""
        self.sizes = dict.fromkeys(Stream, 0)
        for number in range(self._segments):
            offset, _, stream = self._record(number)
            self.sizes[Stream(stream)] += self._end(number) - offset

    def retain(self) -> "JobLog":
        """One more user, who calls `release`."""
        self._users += 1
        return self

    def release(self) -> None:
        """The last user's closes the files."""
        self._users -= 1
        if not self._users:
            os.close(self._spool_fd)
            os.close(self._index_fd)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _record(self, number: int) -> tuple[int, int, int]:
        offset, time_ns, stream = _RECORD.unpack(os.pread(self._index_fd, _RECORD.size, number * _RECORD.size))
        return offset, time_ns, stream

    def _end(self, number: int) -> int:
        return self._record(number + 1)[0] if number + 1 < self._segments else self.size

    def _find(self, offset: int) -> int:
        """The segment that holds `offset`; the last one first, where a live watcher reads."""
        low, high = 0, self._segments - 1
        if self._last[0] <= offset:
            return high
        while low < high:
            middle = (low + high + 1) // 2
            if self._record(middle)[0] <= offset:
                low = middle
            else:
                high = middle - 1
        return low


def enlarge(pipe_fd: int) -> None:
    """A larger pipe means fewer wake-ups; over the user's share of pipe memory it stays as it is."""
    try:
        fcntl.fcntl(pipe_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        pass


class Pump:
    """Moves a job's two pipes into its log until both have ended; owns the two fds."""

    def __init__(self, log: JobLog, stdout_fd: int, stderr_fd: int, on_error: Callable[[OSError], None]) -> None:
        self._log, self._on_error = log, on_error
        self._loop = asyncio.get_running_loop()
        self._open = {stdout_fd: Stream.STDOUT, stderr_fd: Stream.STDERR}
        self._drained = asyncio.Event()
        for fd in self._open:
            os.set_blocking(fd, False)
            enlarge(fd)
            self._loop.add_reader(fd, self._move, fd)

    async def drained(self) -> None:
        """Returns once both pipes have ended and every byte is in the log."""
        await self._drained.wait()

    def _move(self, fd: int) -> None:
        try:
            count = self._log.splice(fd, self._open[fd])
        except BlockingIOError:
            return
        except OSError as error:  # the disk is full or fails
            self._on_error(error)
            count = 0
        if not count:
            self._loop.remove_reader(fd)
            os.close(fd)
            del self._open[fd]
            if not self._open:
                self._drained.set()
