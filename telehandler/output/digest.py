"""SHA-256 of each stream of a log, computed once, behind the writer and off the event loop."""

import hashlib
from collections.abc import Awaitable, Callable
from functools import partial

from telehandler.output.log import JobLog, Stream

_BEHIND_BYTES = 1 << 20  # less than this waits for more, or for the end, where it takes no time
_AT_ONCE_BYTES = 4 << 20
_PIECE_BYTES = 256 * 1024


async def follow(
    log: JobLog, on_progress: Callable[[], None], run: Callable[[Callable[[], None]], Awaitable[None]]
) -> dict[Stream, str]:
    """Hex digests once the log has ended; `log.hashed` says how far. `run` runs work in a thread.

    Empty for a log whose beginning was gone before, or that cannot be read any more.
    """
    whole = log.floor == 0
    log.hashed = log.floor
    hashes = {stream: hashlib.sha256() for stream in Stream}

    def advance(end: int) -> None:
        for segment in log.segments(log.hashed):
            stop = min(segment.end, end)
            for offset in range(segment.offset, stop, _PIECE_BYTES):
                hashes[segment.stream].update(log.bytes_at(offset, min(_PIECE_BYTES, stop - offset)))
            if segment.end >= end:
                break
        log.hashed = end

    # A log that drops its oldest can drop only what is hashed.
    behind = 0 if log.drops else _BEHIND_BYTES
    while await log.wait(log.hashed + behind) or log.hashed < log.size:
        try:
            if log.size - log.hashed <= _BEHIND_BYTES:
                advance(log.size)
            else:
                await run(partial(advance, min(log.size, log.hashed + _AT_ONCE_BYTES)))
        except OSError:  # EIO: no digest; the job goes on
            whole, log.hashed = False, log.size
        on_progress()
    return {stream: found.hexdigest() if whole else "" for stream, found in hashes.items()}
