"""Watchers: each is an offset in a log, woken when there is more, and sent what it asked for chunk by chunk."""

import asyncio
import time
from collections.abc import AsyncIterator
from itertools import islice
from typing import NamedTuple

from telehandler.output.chunks import Chunks
from telehandler.output.log import JobLog, Segment, Stream
from telehandler.pb import telehandler_pb2 as pb

# A watcher whose connection drains less than this a second, times the watchers that share its chunks, gets compressed
# ones. It is about half of what compressing yields: on a faster link, a lone watcher is better off without.
_COMPRESSING_PAYS_BYTES_S = 150 << 20
_SKIPPED_AT_ONCE = 1000  # segments of the other stream
_SMOOTHING = 0.25  # the weight of the last chunk in a connection's rate


class WatchOptions(NamedTuple):
    """What a watcher wants, from `offset` on."""

    offset: int
    follow: bool
    stream: Stream | None
    until_ns: int  # 0: no end
    zstd: bool
    exact: bool  # a message never holds bytes of two segments


class _Rate:
    """How fast a watcher's connection drains, in bytes a second on the wire; 0: not known yet."""

    def __init__(self) -> None:
        self.bytes_s = 0.0

    def sent(self, count: int, since_ns: int) -> None:
        found = count * 1e9 / max(time.monotonic_ns() - since_ns, 1)
        self.bytes_s += _SMOOTHING * (found - self.bytes_s) if self.bytes_s else found


async def messages(log: JobLog, chunks: Chunks, options: WatchOptions) -> AsyncIterator[bytes]:
    """Serialised JobOutputs to the end of the log, or of what was asked for."""
    offset, filtered = options.offset, bool(options.stream or options.until_ns)
    exact = options.exact or bool(options.until_ns)
    rate = _Rate()
    log.takers += options.zstd
    try:
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
            zstd = options.zstd and rate.bytes_s < _COMPRESSING_PAYS_BYTES_S * log.takers
            chunk = await chunks.get(log, offset, exact, zstd)
            chunks.prepare(log, chunk.end, exact, zstd)
            offset, began_ns = chunk.end, time.monotonic_ns()
            yield chunk.message  # until grpc takes the next one
            rate.sent(len(chunk.message), began_ns)
    finally:
        log.takers -= options.zstd


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
