"""A log that another process writes: no further than its last state, and never a hole's zeros."""

import asyncio
import os
from pathlib import Path

import pytest
import zstandard

from telehandler.output import watch
from telehandler.output.chunks import Chunks
from telehandler.output.followed_log import FollowedLog
from telehandler.output.log import Cap, JobLog, Stream
from telehandler.pb import telehandler_pb2 as pb

CAP = 64 << 10


def _write(log: JobLog, data: bytes, stream: Stream = Stream.STDOUT) -> None:
    read_fd, write_fd = os.pipe()
    os.write(write_fd, data)
    log.splice(read_fd, stream)
    os.close(read_fd)
    os.close(write_fd)


async def _watch(log: JobLog, chunks: Chunks, zstd: bool = False) -> list[pb.JobOutput]:
    options = watch.WatchOptions(0, follow=False, stream=None, until_ns=0, zstd=zstd, exact=False)
    return [pb.JobOutput.FromString(message) async for message in watch.messages(log, chunks, options)]


def test_it_is_as_long_as_its_state(tmp_path: Path) -> None:
    written = JobLog(tmp_path)
    _write(written, b"one")
    followed = FollowedLog(tmp_path, False, written.state)
    _write(written, b"two", Stream.STDERR)
    assert [output.data for output in asyncio.run(_watch(followed, Chunks()))] == [b"one"]
    followed.follow(written.state)
    found = asyncio.run(_watch(followed, Chunks()))
    assert [(output.data, Stream(output.stream)) for output in found] == [
        (b"one", Stream.STDOUT),
        (b"two", Stream.STDERR),
    ]


def test_a_watcher_that_waits_is_woken(tmp_path: Path) -> None:
    written = JobLog(tmp_path)
    followed = FollowedLog(tmp_path, False, written.state)

    async def wait() -> list[bool]:
        waiting = asyncio.create_task(followed.wait(0))
        await asyncio.sleep(0)
        _write(written, b"one")
        followed.follow(written.state)
        more = [await waiting]
        waiting = asyncio.create_task(followed.wait(3))
        await asyncio.sleep(0)
        written.finish()
        followed.follow(written.state)
        return [*more, await waiting]

    assert asyncio.run(wait()) == [True, False]


@pytest.mark.parametrize("zstd", [False, True])
def test_r29_a_hole_that_no_state_tells_of_is_a_gap(tmp_path: Path, zstd: bool) -> None:
    """In the file there is a hole already, and the last state that came says nothing of it."""
    written = JobLog(tmp_path, Cap(CAP, drop_oldest=True))
    piece = b"0123456789abcde\n" * (CAP // 16)
    for _ in range(4):
        _write(written, piece)
    followed = FollowedLog(tmp_path, True, written.state)
    written.hashed = written.size
    assert written.drop()
    assert followed.floor == 0
    gap, *rest = asyncio.run(_watch(followed, Chunks(), zstd))
    assert (gap.offset, gap.gap_bytes) == (written.floor, written.floor)
    assert followed.floor == written.floor == 3 * CAP
    data = b"".join(output.data or zstandard.decompress(output.zstd) for output in rest)
    assert data == piece
