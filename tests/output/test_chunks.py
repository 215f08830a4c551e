"""Chunks are made once, in threads, and compressed only for watchers that gain by it."""

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from telehandler.output import chunks as chunks_module
from telehandler.output import watch
from telehandler.output.chunks import Chunks
from telehandler.output.log import JobLog, Stream
from telehandler.pb import telehandler_pb2 as pb

TEXT = b"".join(b"line %d of the log, with words that come again\n" % number for number in range(120_000))
WHOLE = len(TEXT) // chunks_module.CHUNK_BYTES


@pytest.fixture
def log(tmp_path: Path) -> JobLog:
    log = JobLog(tmp_path / "job")
    read_fd, write_fd = os.pipe()
    for begin in range(0, len(TEXT), 65536):
        os.write(write_fd, TEXT[begin : begin + 65536])
        log.splice(read_fd, Stream.STDOUT)
    os.close(read_fd)
    os.close(write_fd)
    log.finish()
    return log


async def _read(
    log: JobLog, chunks: Chunks, on_message: Callable[[bytes], None] = lambda _: None
) -> list[pb.JobOutput]:
    """A watcher that takes zstd; `on_message` is its connection, which blocks as long as it likes."""
    options = watch.WatchOptions(0, follow=True, stream=None, until_ns=0, zstd=True, exact=False)
    found = []
    chunks.join(jobs=0)
    try:
        async for message in watch.messages(log, chunks, options):
            on_message(message)
            found.append(pb.JobOutput.FromString(message))
            await asyncio.sleep(0)
    finally:
        chunks.leave()
    return found


def _compressed(outputs: list[pb.JobOutput]) -> int:
    return sum(bool(output.zstd) for output in outputs)


def test_a_lone_watcher_on_a_fast_connection_gets_plain_chunks(log: JobLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the first one or two, before its rate is known: it takes more than that, however busy we are."""
    monkeypatch.setattr(Chunks, "compressing_pays_bytes_s", 1 << 20)
    outputs = asyncio.run(_read(log, Chunks()))
    assert _compressed(outputs) <= 2 < WHOLE
    plain = [output for output in outputs if not output.zstd]
    assert all(TEXT[output.offset : output.offset + len(output.data)] == output.data for output in plain)


def test_a_lone_watcher_on_a_slow_connection_gets_compressed_chunks(
    log: JobLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection of 10 MB/s, by a clock of its own: each message takes the time of its bytes.

    The first 2 MiB take none: they fit into the socket's buffer.
    """
    now_ns = sent = 0

    def send(message: bytes) -> None:
        nonlocal now_ns, sent
        sent += len(message)
        now_ns += len(message) * 100 if sent > 2 << 20 else 1

    monkeypatch.setattr("telehandler.output.watch.time.monotonic_ns", lambda: now_ns)
    monkeypatch.setattr(Chunks, "compressing_pays_bytes_s", 150 << 20)
    assert _compressed(asyncio.run(_read(log, Chunks(), send))) >= WHOLE - 2


def test_what_compressing_yields_decides_what_a_slow_connection_is(log: JobLog) -> None:
    """A machine that is too busy to compress as fast as a connection drains sends it plain chunks."""
    chunks = Chunks()
    least = chunks.compressing_pays_bytes_s
    assert 0 < least < 100 << 20
    asyncio.run(_read(log, chunks))  # one chunk at least is compressed, as the connection is not known yet
    assert chunks.compressing_pays_bytes_s > least


def test_a_crowd_on_fast_connections_shares_compressed_chunks(log: JobLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of twenty at 1 GiB/s: what one of them compresses is sent twenty times."""
    clock = iter(range(0, 1 << 62, 1_000_000))
    monkeypatch.setattr("telehandler.output.watch.time.monotonic_ns", lambda: next(clock))

    async def all_of_them() -> list[list[pb.JobOutput]]:
        chunks = Chunks()
        return await asyncio.gather(*(_read(log, chunks) for _ in range(20)))

    assert all(_compressed(outputs) >= WHOLE - 1 for outputs in asyncio.run(all_of_them()))


def test_each_chunk_is_made_once_for_all_and_off_the_event_loop(log: JobLog, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int]] = []
    real = log.read_behind

    def read_behind(head: bytes, offset: int, length: int) -> bytes:
        made.append((offset, threading.get_ident()))
        return real(head, offset, length)

    monkeypatch.setattr(log, "read_behind", read_behind)
    monkeypatch.setattr(Chunks, "compressing_pays_bytes_s", 0)

    async def all_of_them() -> None:
        chunks = Chunks()
        await asyncio.gather(*(_read(log, chunks) for _ in range(10)))

    asyncio.run(all_of_them())
    offsets = [offset for offset, _ in made]
    assert sorted(offsets) == sorted(set(offsets))
    on_loop = [offset for offset, thread in made if thread == threading.get_ident()]
    assert len(on_loop) <= 1  # the last one, if it is small


def test_what_is_read_behind_a_head_is_whole_or_an_error(log: JobLog) -> None:
    assert log.read_behind(b"head", 5, 100) == b"head" + TEXT[5:105]
    assert log.read_behind(b"", len(TEXT) - 1, 1) == TEXT[-1:]
    with pytest.raises(OSError, match="Input/output"):
        log.read_behind(b"head", len(TEXT) - 10, 11)


def test_r3_the_cache_stays_within_its_bound_and_goes_with_the_last_watcher(
    log: JobLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks_module, "CACHE_BYTES", 2 * chunks_module.CHUNK_BYTES)
    monkeypatch.setattr(Chunks, "compressing_pays_bytes_s", 0)
    chunks, most = Chunks(), 0

    def look(_: bytes) -> None:
        nonlocal most
        most = max(most, chunks._bytes)

    async def one() -> None:
        monkeypatch.setattr(chunks_module, "_LEAST_CACHE_BYTES", 0)
        await _read(log, chunks, look)

    asyncio.run(one())
    assert chunks_module.CHUNK_BYTES < most <= 2 * chunks_module.CHUNK_BYTES
    assert chunks._bytes == 0


@pytest.mark.parametrize(("watchers", "size_kib"), [(1, 1024), (10, 1024), (26, 1024), (100, 256), (1000, 16)])
def test_r3_chunks_and_cache_shrink_with_the_crowd(watchers: int, size_kib: int) -> None:
    chunks = Chunks()
    chunks.watchers = watchers
    assert chunks.chunk_bytes() == size_kib << 10
    assert chunks.cache_bytes() == max(4 << 20, (64 << 20) - max(0, watchers - 100) * (64 << 10))
