"""Watchers: each is an offset in a log, woken when there is more, and sent what it asked for chunk by chunk."""

import asyncio
import time
from collections.abc import AsyncIterator
from itertools import islice
from typing import NamedTuple

from telehandler.output.chunks import Chunks, Dropped, Rate
from telehandler.output.log import JobLog, Segment, Stream
from telehandler.pb import telehandler_pb2 as pb

_SKIPPED_AT_ONCE = 1000  # segments of the other stream


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
    drained = Rate()  # by the watcher's connection, on the wire
    log.takers += options.zstd
    try:
        while True:
            if offset < (floor := log.floor):  # which may rise while the gap is sent
                yield pb.JobOutput(offset=floor, gap_bytes=floor - offset).SerializeToString()
                offset = floor
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
            zstd = options.zstd and drained.bytes_s < chunks.compressing_pays_bytes_s * log.takers
            try:
                chunk = await chunks.get(log, offset, exact, zstd)
            except Dropped as dropped:
                log.floor = max(log.floor, dropped.floor)
                continue
            chunks.prepare(log, chunk.end, exact, zstd)
            offset, began_ns = chunk.end, time.monotonic_ns()
            yield chunk.message  # until grpc takes the next one
            drained.add(len(chunk.message), began_ns)
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
