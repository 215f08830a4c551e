"""A job's output on disk: one spool of bytes in the order of arrival, and an index of its segments.

The index has one record for each segment: offset, stream and time of its first byte. It is written before the
bytes are spliced from the pipe into the spool, so that an api that is killed loses nothing it took: a record's
length is the next one's offset less its own, the last one's the spool's size less its own.

A crash of the machine may leave either file shorter than it was, or with a tail of zeros. What is there then is kept:
records that are cut off, void, or of bytes that are not there are dropped when the log is opened, and bytes without a
record of their own count as more of the last segment, or, when there is no record at all, as stdout.

A log with a cap either takes no more (its reader decides what then happens to the job), or frees its oldest blocks:
the spool gets a hole, offsets stay, and what lies before `floor` is gone. Where the hole ends is all that says so.
"""

import asyncio
import errno
import os
import struct
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from enum import IntEnum
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

from telehandler.output import file_space, message_bytes, terminal
from telehandler.output.compressed_chunks import CompressedChunks

CHUNK_BYTES = 256 * 1024  # the most that a segment holds, and what is read back at once
PIPE_BYTES = 1 << 20
_SAME_SEGMENT_NS = 5_000_000  # output this close in time is one segment
_RECORD = struct.Struct("<QQB7x")  # offset, time in ns since the epoch, stream
_RECORDS_AT_ONCE = 512
_NEAR_PIPES = 4
_RUN_SEGMENTS = 4096  # of one chunk: who reads single bytes takes no more than a few milliseconds at once
_BLOCK_BYTES = 4096  # holes begin and end at these
_serials = count()


class Stream(IntEnum):
    """As in the API's OutputStream."""

    STDOUT = 1
    STDERR = 2


class Cap(NamedTuple):
    """The most bytes that are kept, 0 for no cap; whether the oldest make room for more."""

    max_bytes: int = 0
    drop_oldest: bool = False


NO_CAP = Cap()


class LogFull(OSError):
    """The cap is reached, and the log keeps what it has."""


class State(NamedTuple):
    """What a reader in another process must know besides the files: see FollowedLog."""

    size: int
    records: int
    last: tuple[int, int, int]  # the last record
    floor: int
    ended: bool


class Segment(NamedTuple):
    """Bytes of one stream from `offset` to `end`, counted over both in the order of arrival."""

    offset: int
    end: int
    stream: Stream
    time_ns: int


class JobLog:
    """The log of one job. One writer, any number of readers, all on one event loop; `segments` from any thread."""

    def __init__(self, directory: Path, cap: Cap = NO_CAP, ended: bool = False) -> None:
        """Makes what is not there, unless the job has `ended`: then it is read from a read-only disk too."""
        flags = os.O_RDONLY if ended else os.O_RDWR | os.O_CREAT
        if not ended:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._spool_fd = os.open(directory / "output", flags | os.O_CLOEXEC, 0o600)
        try:
            self._index_fd = os.open(directory / "index", flags | os.O_CLOEXEC, 0o600)
        except OSError:
            os.close(self._spool_fd)
            raise
        self._cap = cap
        self.serial = next(_serials)  # tells this log's chunks in a cache from another's
        self.size = os.fstat(self._spool_fd).st_size
        self.floor = _first_data(self._spool_fd)
        self.takers = 0  # watchers that take compressed chunks: see watch
        self.plain_until = 0  # the offset at which compressing is tried again: see chunks
        self.compressed = CompressedChunks(directory)
        self.hashed = 0  # what lies behind it may not be dropped yet: set by the digests
        self._count = self._repaired(writable=not ended)
        self._last = self._record(self._count - 1) if self._count else (0, 0, 0)
        self.sizes = dict.fromkeys(Stream, 0)
        self.ended = False
        self._users = 1
        self._changed = asyncio.Event()

    # Writing

    def splice(self, pipe_fd: int, stream: Stream) -> int:
        """Moves what is in the pipe or terminal to the spool: the count of bytes, 0 at its end.

        Raises BlockingIOError when there is nothing yet, LogFull at the cap, OSError when the disk takes no more.
        """
        room = PIPE_BYTES
        if self._cap.max_bytes and not self.drops:
            room = min(room, self._cap.max_bytes - self.size)
            if room <= 0:
                raise LogFull(errno.EFBIG, f"the log's cap of {self._cap.max_bytes} bytes is reached")
        now = time.time_ns()
        offset, began, last_stream = self._last
        fresh = last_stream != stream or now - began > _SAME_SEGMENT_NS or self.size - offset >= CHUNK_BYTES
        if fresh or not self._count:
            # A record without bytes is written over. Written before it is counted: another thread may read on.
            last = (self.size, now, stream)
            total = self._count + (not self._count or offset < self.size)
            if os.pwrite(self._index_fd, _RECORD.pack(*last), (total - 1) * _RECORD.size) < _RECORD.size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # full amid a record, which does not count
            self._last, self._count = last, total
        moved = terminal.move(pipe_fd, self._spool_fd, room, self.size)
        if moved:
            self.size += moved
            self.sizes[stream] += moved
            self._wake()
        return moved

    @property
    def drops(self) -> bool:
        return self._cap.drop_oldest

    @property
    def may_wait(self) -> bool:
        """Whether it has a cap beyond which it takes no more: its writer must never be far ahead."""
        return bool(self._cap.max_bytes) and not self.drops

    @property
    def waits_soon(self) -> bool:
        """Whether it comes near such a cap."""
        return self.may_wait and self._cap.max_bytes - self.size < _NEAR_PIPES * PIPE_BYTES

    @property
    def overdue(self) -> bool:
        """Whether more is kept than the cap allows, because it is not hashed yet: the writer must wait."""
        return self.drops and self.size - self.floor > self._cap.max_bytes + CHUNK_BYTES

    def drop(self, more: int = 0) -> bool:
        """Frees the oldest blocks over the cap, and `more` bytes, as far as they are hashed; whether there were any.

        OSError where holes cannot be. The last block stays: a file that is a hole alone tells no floor.
        """
        over = max(self.size - self._cap.max_bytes, more and self.floor + more)
        blocks = min(-(-over // _BLOCK_BYTES), self.hashed // _BLOCK_BYTES, (self.size - 1) // _BLOCK_BYTES)
        floor = blocks * _BLOCK_BYTES
        if not self.drops or floor <= self.floor:
            return False
        file_space.punch(self._spool_fd, self.floor, floor - self.floor)
        self.floor = floor
        return True

    def finish(self) -> None:
        """No more output will come."""
        self.ended = True
        self._wake()

    def recount(self) -> None:
        """Sums `sizes` up anew, for a log that an api before this one wrote."""
        self.sizes = dict.fromkeys(Stream, 0)
        for segment in self.segments(0):
            self.sizes[segment.stream] += segment.end - segment.offset

    def _repaired(self, writable: bool) -> int:
        """The number of records, once the index has only whole ones of bytes that are there.

        What is torn is mended when the job is adopted or found lost: one that has ended has at most a record too many.
        """
        status = os.fstat(self._index_fd)
        count = status.st_size // _RECORD.size
        while count and not self._plausible(count - 1):
            count -= 1
        if not writable:
            return count
        if not count and self.size:
            os.pwrite(self._index_fd, _RECORD.pack(0, status.st_mtime_ns, Stream.STDOUT), 0)
            count = 1
        if count * _RECORD.size < status.st_size:
            os.ftruncate(self._index_fd, count * _RECORD.size)
        return count

    def _plausible(self, number: int) -> bool:
        """A record without bytes is as good as none; one behind the first begins behind it."""
        offset, _, stream = self._record(number)
        return stream in set(Stream) and offset < self.size and (offset > 0) == (number > 0)

    # Reading

    @property
    def state(self) -> State:
        return State(self.size, self._count, self._last, self.floor, self.ended)

    async def wait(self, offset: int) -> bool:
        """True once there is output behind `offset`, False when the log has ended without any."""
        while self.size <= offset and not self.ended:
            await self._changed.wait()
        return self.size > offset

    def run(self, offset: int, end: int) -> Segment:
        """From `offset`, which lies before the size, to the next change of stream or to `end`: one chunk's bytes."""
        following = self.segments(offset)
        first = next(following)
        stop = first.end
        for segment in islice(following, _RUN_SEGMENTS):
            if stop >= end or segment.stream is not first.stream:
                break
            stop = segment.end
        return first._replace(end=min(stop, end))

    def segments(self, offset: int) -> Iterator[Segment]:
        """What there is now from `offset` on, in order."""
        size, total = self.size, self._count
        number = self._find(offset, total)
        following: tuple[int, int, int] | None = None
        while number < total and offset < size:
            at_once = min(_RECORDS_AT_ONCE, total - number)
            block = os.pread(self._index_fd, at_once * _RECORD.size, number * _RECORD.size)
            for record in _RECORD.iter_unpack(block):
                if following and following[0] < record[0] and offset < size:
                    end = min(record[0], size)
                    yield Segment(offset, end, Stream(following[2]), following[1])
                    offset = end
                following = record
            number += at_once
        if following and offset < size:
            yield Segment(offset, size, Stream(following[2]), following[1])

    def bytes_at(self, offset: int, length: int) -> bytes:
        return os.pread(self._spool_fd, length, offset)

    def read_behind(self, head: bytes, offset: int, length: int) -> bytes:
        """`head` and the `length` bytes at `offset`, in one piece, copied once. Raises OSError, also when cut short."""
        return message_bytes.read_behind(self._spool_fd, head, offset, length)

    def first_kept(self) -> int:
        """Where the hole ends, by the file itself; in any thread."""
        return _first_data(self._spool_fd)

    def at_time(self, time_ns: int) -> int:
        """The offset of the first segment that began at `time_ns` or later; the size when there is none."""
        number = bisect_left(range(self._count), time_ns, key=lambda number: self._record(number)[1])
        return self._record(number)[0] if number < self._count else self.size

    def backward(self) -> Iterator[Segment]:
        """What there is now, the last segment first."""
        end, number = self.size, self._count
        while number and end > self.floor:
            first = max(0, number - _RECORDS_AT_ONCE)
            block = os.pread(self._index_fd, (number - first) * _RECORD.size, first * _RECORD.size)
            for offset, time_ns, stream in reversed(list(_RECORD.iter_unpack(block))):
                if max(offset, self.floor) < end:
                    yield Segment(max(offset, self.floor), end, Stream(stream), time_ns)
                end = min(end, offset)
            number = first

    # Its users

    def retain(self) -> "JobLog":
        """One more user, who calls `release`."""
        self._users += 1
        return self

    @property
    def closed(self) -> bool:
        return not self._users

    def release(self) -> None:
        """The last user's closes the files."""
        self._users -= 1
        if not self._users:
            os.close(self._spool_fd)
            os.close(self._index_fd)
            self.compressed.close()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _record(self, number: int) -> tuple[int, int, int]:
        offset, time_ns, stream = _RECORD.unpack(os.pread(self._index_fd, _RECORD.size, number * _RECORD.size))
        return offset, time_ns, stream

    def _find(self, offset: int, total: int) -> int:
        """The number of the segment that holds `offset`; the last one first, where a live watcher reads."""
        if self._last[0] <= offset:
            return total - 1
        return bisect_right(range(total), offset, key=lambda number: self._record(number)[0]) - 1


def _first_data(fd: int) -> int:
    """Where the hole at the beginning ends; lseek(2)."""
    try:
        return os.lseek(fd, 0, os.SEEK_DATA)
    except OSError:  # ENXIO: empty
        return 0
