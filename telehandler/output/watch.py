"""From a log to its watchers: each is an offset, and what one of them needs is made once for all.

A chunk ends at the same places for everybody (multiples of its size in the log, or a change of stream), so that it is
read, compressed and framed once. The size shrinks with the number of watchers: grpc holds about one message for each
that does not read.
"""

import asyncio
import ctypes
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

import zstandard
from google.protobuf.timestamp_pb2 import Timestamp

from telehandler.common import capacity
from telehandler.output.log import CHUNK_BYTES, JobLog, Segment, Stream
from telehandler.pb import telehandler_pb2 as pb

CACHE_BYTES = 4 << 20
# Of all watchers together, one chunk each: grpc holds one message for each that does not read, in clear and encrypted.
# Whole chunks for up to a hundred; less with the connections beyond that, which have buffers of their own.
IN_FLIGHT_BYTES, _LEAST_IN_FLIGHT_BYTES = 26 << 20, 6 << 20
_CROWD, _LESS_FOR_EACH_BYTES = 100, 22 << 10
_LEAST_CHUNK_BYTES = 16 << 10
_FDS_OF_A_JOB = capacity.FDS_OF_A_START + 1  # its log's compressed chunks
_SKIPPED_AT_ONCE = 1000  # segments of the other stream
_ZSTD_LEVEL = 1
_ZSTD_LEAST_BYTES = 4096
_ZSTD_PAYS = 0.9  # compressed to less than this share
_ZSTD_PAUSE_CHUNKS = 32  # after one that did not pay
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


class Framed(NamedTuple):
    """A serialised JobOutput of the bytes up to `end`; `size` is the log's when it was made. `compressed`: by zstd."""

    end: int
    size: int
    message: bytes
    compressed: bool = False


class Chunks:
    """The framed chunks of all logs that were needed last."""

    def __init__(self) -> None:
        self._framed: OrderedDict[tuple[int, int, int, bool, bool], Framed] = OrderedDict()
        self._bytes = 0
        self._compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True)
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
            if self._most >= _CROWD:
                _libc.malloc_trim(0)  # malloc_trim(3): else the heap's holes would stay ours, and the next crowd's grow
            self._most = 0

    def chunk_bytes(self) -> int:
        beyond = max(self.watchers, self.connections) - _CROWD
        most = max(_LEAST_IN_FLIGHT_BYTES, IN_FLIGHT_BYTES - max(0, beyond) * _LESS_FOR_EACH_BYTES)
        size = CHUNK_BYTES
        while size > _LEAST_CHUNK_BYTES and size * self.watchers > most:
            size //= 2
        return size

    def get(self, log: JobLog, offset: int, exact: bool, zstd: bool) -> Framed:
        """The chunk at `offset`, which lies before the log's size. `exact`: of one segment alone."""
        size = self.chunk_bytes()
        boundary = (offset // size + 1) * size
        key = (log.serial, offset, size, exact, zstd)
        found = self._framed.get(key)
        # One that ended where the log did may be longer by now.
        if found and (found.end < found.size or found.end == boundary or found.size == log.size):
            self._framed.move_to_end(key)
            return found
        whole = zstd and not exact and offset % size == 0 and not log.drops  # what is dropped leaves nothing behind
        made = self._whole(log, offset, size) if whole else self._frame(log, offset, boundary, exact, zstd)
        self._keep(key, made)
        return made

    def _whole(self, log: JobLog, offset: int, size: int) -> Framed:
        """A chunk of full size, if it is there and compresses: what is made once is kept as long as the log is open."""
        message = log.compressed.get(offset, size)
        if message is None:
            made = self._frame(log, offset, offset + size, exact=False, zstd=True)
            if made.compressed and made.end == offset + size:
                log.compressed.put(offset, size, made.message)
            return made
        return Framed(offset + size, log.size, message, compressed=True)

    def _keep(self, key: tuple[int, int, int, bool, bool], made: Framed) -> None:
        if old := self._framed.pop(key, None):
            self._bytes -= len(old.message)
        self._framed[key] = made
        self._bytes += len(made.message)
        while self._bytes > CACHE_BYTES:
            _, oldest = self._framed.popitem(last=False)
            self._bytes -= len(oldest.message)

    def _frame(self, log: JobLog, offset: int, boundary: int, exact: bool, zstd: bool) -> Framed:
        size = log.size
        segment = log.run(offset, boundary)
        end = min(next(log.segments(offset)).end, boundary) if exact else segment.end
        data = log.bytes_at(offset, end - offset)
        when = Timestamp()
        when.FromNanoseconds(segment.time_ns)
        output = pb.JobOutput(stream=pb.OutputStream.Name(segment.stream), offset=offset, time=when)
        compressed = self._compressed(log, data) if zstd else None
        if compressed:
            output.length = len(data)
        # The bytes come last and are copied once; protobuf itself would take them in, and then copy them out.
        head = output.SerializeToString()
        field, payload = (_ZSTD_FIELD, compressed) if compressed else (_DATA_FIELD, data)
        return Framed(end, size, b"".join((head, field, _varint(len(payload)), payload)), bool(compressed))

    def _compressed(self, log: JobLog, data: bytes) -> bytes | None:
        """One zstd frame, where it pays. What does not compress is tried again some chunks later."""
        if log.plain_chunks or len(data) < _ZSTD_LEAST_BYTES:
            log.plain_chunks = max(log.plain_chunks - 1, 0)
            return None
        compressed = self._compressor.compress(data)
        if len(compressed) < len(data) * _ZSTD_PAYS:
            return compressed
        log.plain_chunks = _ZSTD_PAUSE_CHUNKS
        return None


class WatchOptions(NamedTuple):
    """What a watcher wants, from `offset` on."""

    offset: int
    follow: bool
    stream: Stream | None
    until_ns: int  # 0: no end
    zstd: bool
    exact: bool  # a message never holds bytes of two segments


async def messages(log: JobLog, chunks: Chunks, options: WatchOptions) -> AsyncIterator[bytes]:
    """Serialised JobOutputs to the end of the log, or of what was asked for."""
    offset, filtered = options.offset, bool(options.stream or options.until_ns)
    exact = options.exact or bool(options.until_ns)
    while True:
        if offset < log.floor:
            yield pb.JobOutput(offset=log.floor, gap_bytes=log.floor - offset).SerializeToString()
            offset = log.floor
        if not await _more(log, offset, options):
            return
        if offset < log.floor:  # while it waited
            continue
        if filtered:
            segment = _first_of(log, offset, options.stream)
            if options.until_ns and segment.time_ns >= options.until_ns:
                return
            if options.stream not in (None, segment.stream):
                offset = segment.end
                await asyncio.sleep(0)  # there may be millions of them: others come first
                continue
            offset = segment.offset
        chunk = chunks.get(log, offset, exact, options.zstd)
        yield chunk.message
        offset = chunk.end


def _first_of(log: JobLog, offset: int, stream: Stream | None) -> Segment:
    """The first segment from `offset` on of `stream`, or the last one that was looked at."""
    for segment in islice(log.segments(offset), _SKIPPED_AT_ONCE):
        if stream in (None, segment.stream):
            break
    return segment


async def _more(log: JobLog, offset: int, options: WatchOptions) -> bool:
    """Whether there is output behind `offset`, now or, for one who follows, later."""
    if offset < log.size or not options.follow:
        return offset < log.size
    if not options.until_ns:
        return await log.wait(offset)
    try:
        async with asyncio.timeout(max(0.0, (options.until_ns - time.time_ns()) / 1e9)):
            return await log.wait(offset)
    except TimeoutError:
        return False
