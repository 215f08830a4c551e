"""Where the last lines of a log begin: a search backward, in steps, since a log may be large and have no newline."""

from collections.abc import Awaitable, Callable, Generator
from typing import TypeAlias

from telehandler.output.log import CHUNK_BYTES, JobLog, Stream

STEP_BYTES = 16 << 20  # of one step: some ten milliseconds of a thread
_SEGMENT_COST = 4096  # a segment costs about as much as so many bytes
Run: TypeAlias = Callable[[Callable[[], int | None]], Awaitable[int | None]]


async def find(log: JobLog, lines: int, stream: Stream | None, run: Run) -> int:
    """Where the last `lines` lines begin, at least one, of one stream or of both. `run` runs each step in a thread."""
    search = _search(log, lines, stream)

    def step() -> int | None:
        cost = 0
        while cost < STEP_BYTES:
            try:
                cost += next(search)
            except StopIteration as end:
                return int(end.value)
        return None

    while (offset := await run(step)) is None:
        pass
    return offset


def _search(log: JobLog, lines: int, stream: Stream | None) -> Generator[int, None, int]:
    """Yields what each piece has cost, and returns the offset."""
    wanted = 0
    for segment in log.backward():
        yield _SEGMENT_COST
        if stream not in (None, segment.stream):
            continue
        if not wanted:  # the last one: a newline at its end ends the last line
            wanted = lines + (log.bytes_at(segment.end - 1, 1) == b"\n")
        for at in range(segment.end, segment.offset, -CHUNK_BYTES):
            begin = max(at - CHUNK_BYTES, segment.offset)
            piece = log.bytes_at(begin, at - begin)
            newlines = piece.count(b"\n")
            if newlines >= wanted:
                found = len(piece)
                for _ in range(wanted):
                    found = piece.rindex(b"\n", 0, found)
                return begin + found + 1
            wanted -= newlines
            yield len(piece)
    return log.floor
