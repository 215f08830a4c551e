"""S52: what reads a log gives way: a search for lines goes in steps, what is skipped does not stop the event loop."""

import asyncio
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from telehandler.output import tail
from telehandler.output.chunks import Chunks
from telehandler.output.log import JobLog, Stream
from telehandler.output.watch import WatchOptions, messages

RECORD = struct.Struct("<QQB7x")


def _log(directory: Path, data: bytes, segments: list[tuple[int, int]]) -> JobLog:
    directory.mkdir(exist_ok=True)
    (directory / "output").write_bytes(data)
    (directory / "index").write_bytes(b"".join(RECORD.pack(offset, 1, stream) for offset, stream in segments))
    log = JobLog(directory, ended=True)
    log.finish()
    return log


async def _in_place(step: Callable[[], int | None]) -> int | None:
    return step()


@pytest.mark.parametrize("lines", [1, 1000, 900_000])
def test_s52_many_lines_are_found_in_one_pass(tmp_path: Path, lines: int) -> None:
    async def run() -> int:
        log = _log(tmp_path / "log", b"\n" * (1 << 20), [(0, 1)])
        return await tail.find(log, lines, None, _in_place)

    began = time.monotonic()
    assert asyncio.run(run()) == (1 << 20) - lines
    assert time.monotonic() - began < 1


def test_s52_a_search_goes_in_steps(tmp_path: Path) -> None:
    steps: list[int | None] = []

    async def counted(step: Callable[[], int | None]) -> int | None:
        steps.append(step())
        return steps[-1]

    async def run() -> int:
        log = _log(tmp_path / "log", bytes(3 * tail.STEP_BYTES), [(0, 1)])
        return await tail.find(log, 1, None, counted)

    assert asyncio.run(run()) == 0
    assert steps[-1] == 0
    assert 3 <= len(steps) <= 4


def test_s52_a_watcher_of_one_stream_lets_others_run_while_it_skips(tmp_path: Path) -> None:
    """Two hundred thousand segments of the other stream: the longest time that the event loop stands still."""
    count = 200_000
    segments = [(number, 1) for number in range(count)] + [(count, 2)]

    async def run() -> tuple[list[bytes], float]:
        log = _log(tmp_path / "log", bytes(count) + b"x", segments)
        options = WatchOptions(0, False, Stream.STDERR, 0, False, False)
        longest, last = 0.0, time.monotonic()
        ended = asyncio.Event()

        async def tick() -> None:
            nonlocal longest, last
            while not ended.is_set():
                longest, last = max(longest, time.monotonic() - last), time.monotonic()
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        await asyncio.sleep(0)
        found = [message async for message in messages(log, Chunks(), options)]
        await asyncio.sleep(0)
        ended.set()
        await ticking
        return found, longest

    found, longest = asyncio.run(run())
    assert len(found) == 1
    assert longest < 0.25


def test_s52_a_chunk_of_single_bytes_is_bounded(tmp_path: Path) -> None:
    async def run() -> int:
        log = _log(tmp_path / "log", bytes(200_000), [(number, 1) for number in range(200_000)])
        return log.run(0, 200_000).end

    assert 0 < asyncio.run(run()) <= 5000
