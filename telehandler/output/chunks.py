"""Chunks: what a watcher needs next of a log, framed once for all watchers of the same offset.

A chunk ends at the same places for everybody (multiples of its size in the log, or a change of stream), so that it is
read, compressed and framed once. The size shrinks with the number of watchers: grpc holds about one message for each
that does not read.

Large chunks are made in threads: reading and compressing never stall the event loop, and the next chunk is made while
grpc encrypts and sends the last one.
"""

import asyncio
import ctypes
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

import zstandard
from google.protobuf.timestamp_pb2 import Timestamp

from telehandler.common import capacity
from telehandler.output.log import JobLog
from telehandler.pb import telehandler_pb2 as pb

CHUNK_BYTES = 1 << 20  # the most that one chunk holds
# Framed chunks that are kept to be shared: watchers that are no further apart than that are served by one read.
CACHE_BYTES, _LEAST_CACHE_BYTES = 64 << 20, 4 << 20
# Of all watchers together, one chunk each: grpc holds one message for each that does not read, in clear and encrypted.
# Whole chunks for up to a hundred; less with the connections beyond that, which have buffers of their own.
IN_FLIGHT_BYTES, _LEAST_IN_FLIGHT_BYTES = 26 << 20, 6 << 20
_CROWD, _LESS_FOR_EACH_BYTES = 100, 22 << 10
_CROWD_CHUNK_BYTES = 256 << 10  # of the first of a crowd: what they get in larger pieces the others cannot share
_LESS_CACHE_FOR_EACH_BYTES = 64 << 10
_LEAST_CHUNK_BYTES = 16 << 10
_INLINE_BYTES = 64 << 10  # less than this is made at once: a thread would take longer to hear of it
_THREADS = 2
_FDS_OF_A_JOB = capacity.FDS_OF_A_START + 1  # its log's compressed chunks
_ZSTD_LEVEL = 1
_ZSTD_LEAST_BYTES = 4096
_ZSTD_PAYS = 0.9  # compressed to less than this share
_ZSTD_PAUSE_BYTES = 8 << 20  # after a chunk that did not pay
# A watcher whose connection drains less than this share of what compressing yields, times the watchers that share its
# chunks, gets compressed ones. On a faster link, a lone watcher is better off without.
_ZSTD_PAYS_BELOW = 0.5
_LEAST_COMPRESSING_BYTES_S = 50 << 20  # a measurement of less is of a machine that was busy for a moment
_FADING = 0.75  # of what earlier pieces count in a rate, for each that follows
_libc = ctypes.CDLL(None)


def _varint(number: int) -> bytes:
    """As protobuf's wire format has lengths."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes((*found, number))


def _tag(number: int) -> bytes:
    """Of a field that has a length."""
    return _varint(number << 3 | 2)


_ZSTD_FIELD, _DATA_FIELD = _tag(pb.JobOutput.ZSTD_FIELD_NUMBER), _tag(pb.JobOutput.DATA_FIELD_NUMBER)


class Rate:
    """Bytes a second of what comes piece by piece; the last pieces count most.

    Bytes and time are summed apart: a socket's buffer takes the first megabytes at the speed of memory, and a mean of
    the pieces' rates would hide for long that a link is slow.
    """

    def __init__(self) -> None:
        self._bytes = self._ns = 0.0

    @property
    def bytes_s(self) -> float:
        """0: not known yet."""
        return self._bytes * 1e9 / self._ns if self._ns else 0.0

    def add(self, count: int, since_ns: int) -> None:
        """A piece of `count` bytes that was begun at `since_ns` of the monotonic clock, and has ended now."""
        self._bytes = self._bytes * _FADING + count
        self._ns = self._ns * _FADING + max(time.monotonic_ns() - since_ns, 1)


class Dropped(Exception):
    """What was to be read has been dropped meanwhile: `floor` is where the log begins now."""

    def __init__(self, floor: int) -> None:
        super().__init__(floor)
        self.floor = floor


class Framed(NamedTuple):
    """A serialised JobOutput of the bytes up to `end`; `size` is the log's when it was made. `compressed`: by zstd."""

    end: int
    size: int
    message: bytes
    compressed: bool = False


class _Key(NamedTuple):
    """What tells one chunk from another. `exact`: of one segment alone."""

    serial: int  # the log's
    offset: int
    size: int
    exact: bool
    zstd: bool


class Chunks:
    """The framed chunks of all logs that were needed last. One event loop."""

    def __init__(self) -> None:
        self._framed: OrderedDict[_Key, Framed] = OrderedDict()
        self._bytes = 0
        self._making: dict[_Key, asyncio.Future[Framed]] = {}
        self._threads = ThreadPoolExecutor(_THREADS, "chunks")
        self._of_thread = threading.local()
        self._compressing = Rate()
        self.watchers = self._most = 0
        self.connections = 0  # at least: a crowd connects before each of it is a watcher
        self._own_fds = capacity.lowest_fd()

    def join(self, jobs: int) -> None:
        """One more watcher, who calls `leave`. `jobs`: how many run, whose fds are no connections."""
        self.watchers += 1
        self._most = max(self._most, self.watchers)
        with suppress(OSError):  # no fd is free: what it was will do
            self.connections = capacity.lowest_fd() - self._own_fds - jobs * _FDS_OF_A_JOB

    def leave(self) -> None:
        self.watchers -= 1
        if not self.watchers:
            if self._most >= _CROWD or self._bytes > _LEAST_CACHE_BYTES:
                self._framed.clear()
                self._bytes = 0
                _libc.malloc_trim(0)  # malloc_trim(3): else the heap's holes would stay ours, and the next crowd's grow
            self._most = 0

    @property
    def _beyond_a_crowd(self) -> int:
        return max(0, max(self.watchers, self.connections) - _CROWD)

    def chunk_bytes(self) -> int:
        """The size of a whole chunk now: a power of two."""
        most = max(_LEAST_IN_FLIGHT_BYTES, IN_FLIGHT_BYTES - self._beyond_a_crowd * _LESS_FOR_EACH_BYTES)
        size = min(CHUNK_BYTES, _CROWD_CHUNK_BYTES) if self._beyond_a_crowd else CHUNK_BYTES
        while size > _LEAST_CHUNK_BYTES and size * self.watchers > most:
            size //= 2
        return size

    def cache_bytes(self) -> int:
        return max(_LEAST_CACHE_BYTES, CACHE_BYTES - self._beyond_a_crowd * _LESS_CACHE_FOR_EACH_BYTES)

    @property
    def compressing_pays_bytes_s(self) -> float:
        """The fastest connection that gains by it when nobody shares its chunks, by what compressing yields now."""
        return _ZSTD_PAYS_BELOW * max(self._compressing.bytes_s, _LEAST_COMPRESSING_BYTES_S)

    async def get(self, log: JobLog, offset: int, exact: bool, zstd: bool) -> Framed:
        """The chunk at `offset`, which lies before the log's size. Raises OSError when it cannot be read, Dropped."""
        key = _Key(log.serial, offset, self.chunk_bytes(), exact, zstd)
        if found := self._kept(key, log):
            return found
        if min(log.size, _boundary(key)) - offset >= _INLINE_BYTES:
            with suppress(RuntimeError):  # no thread can be had
                return await asyncio.shield(self._start(log, key))
        made = self._make(log, key)
        self._keep(key, made)
        return made

    def prepare(self, log: JobLog, offset: int, exact: bool, zstd: bool) -> None:
        """Begins to make the chunk at `offset`, if all of it is there."""
        size = self.chunk_bytes()
        if size <= _INLINE_BYTES:
            return
        key = _Key(log.serial, offset, size, exact, zstd)
        fits = 2 * key.size * self.watchers <= self.cache_bytes()  # else it is evicted before it is sent
        if fits and _boundary(key) <= log.size and key not in self._framed:
            with suppress(RuntimeError):  # no thread can be had
                self._start(log, key)

    def _start(self, log: JobLog, key: _Key) -> "asyncio.Future[Framed]":
        """In a thread, once for all who need it."""
        making = self._making.get(key)
        if not making:
            making = asyncio.get_running_loop().run_in_executor(self._threads, self._make, log, key)
            log.retain()  # its files stay open meanwhile
            self._making[key] = making
            making.add_done_callback(lambda made: self._on_made(log, key, made))
        return making

    def _on_made(self, log: JobLog, key: _Key, made: "asyncio.Future[Framed]") -> None:
        del self._making[key]
        log.release()
        if not made.cancelled() and not made.exception() and self.watchers:
            self._keep(key, made.result())

    def _kept(self, key: _Key, log: JobLog) -> Framed | None:
        found = self._framed.get(key)
        # One that ended where the log did may be longer by now.
        if found and (found.end < found.size or found.end == _boundary(key) or found.size == log.size):
            self._framed.move_to_end(key)
            return found
        return None

    def _keep(self, key: _Key, made: Framed) -> None:
        if old := self._framed.pop(key, None):
            self._bytes -= len(old.message)
        self._framed[key] = made
        self._bytes += len(made.message)
        most = self.cache_bytes()
        while self._bytes > most:
            _, oldest = self._framed.popitem(last=False)
            self._bytes -= len(oldest.message)

    # In any thread

    def _make(self, log: JobLog, key: _Key) -> Framed:
        """A chunk of full size, if it is there and compresses, is kept in a file as long as the log is open."""
        whole = key.zstd and not key.exact and key.offset % key.size == 0
        if not whole or log.drops:  # what is dropped leaves nothing behind
            return self._frame(log, key)
        message = log.compressed.get(key.offset, key.size)
        if message is None:
            made = self._frame(log, key)
            if made.compressed and made.end == key.offset + key.size:
                log.compressed.put(key.offset, key.size, made.message)
            return made
        return Framed(key.offset + key.size, log.size, message, compressed=True)

    def _frame(self, log: JobLog, key: _Key) -> Framed:
        size, offset, boundary = log.size, key.offset, _boundary(key)
        segment = log.run(offset, boundary)
        end = min(next(log.segments(offset)).end, boundary) if key.exact else segment.end
        when = Timestamp()
        when.FromNanoseconds(segment.time_ns)
        output = pb.JobOutput(stream=pb.OutputStream.Name(segment.stream), offset=offset, time=when)
        compressed = self._compressed(log, offset, end) if key.zstd else None
        if compressed:
            _check_kept(log, offset)
            output.length = end - offset
            head = output.SerializeToString() + _ZSTD_FIELD + _varint(len(compressed))
            return Framed(end, size, head + compressed, compressed=True)
        # The bytes come last and are read into their place; protobuf itself would copy them in and out.
        head = output.SerializeToString() + _DATA_FIELD + _varint(end - offset)
        message = log.read_behind(head, offset, end - offset)
        _check_kept(log, offset)
        return Framed(end, size, message)

    def _compressed(self, log: JobLog, offset: int, end: int) -> bytes | None:
        """One zstd frame, where it pays. What does not compress is tried again some bytes later."""
        if offset < log.plain_until or end - offset < _ZSTD_LEAST_BYTES:
            return None
        began_ns = time.monotonic_ns()
        compressed = self._compressor().compress(log.bytes_at(offset, end - offset))
        if len(compressed) < (end - offset) * _ZSTD_PAYS:
            self._compressing.add(end - offset, began_ns)
            return compressed
        log.plain_until = end + _ZSTD_PAUSE_BYTES
        return None

    def _compressor(self) -> zstandard.ZstdCompressor:
        """One for each thread: it may not be shared."""
        if not hasattr(self._of_thread, "compressor"):
            self._of_thread.compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True)
        found: zstandard.ZstdCompressor = self._of_thread.compressor
        return found


def _boundary(key: _Key) -> int:
    return (key.offset // key.size + 1) * key.size


def _check_kept(log: JobLog, offset: int) -> None:
    """What was just read there may have become a hole before, which reads as zeros. Raises Dropped."""
    if log.drops and (floor := log.first_kept()) > offset:
        raise Dropped(floor)
