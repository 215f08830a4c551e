"""Chunks are compressed once, however far apart their watchers are and however little the cache in memory holds."""

import asyncio
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from support import disks

from telehandler.common import capacity
from telehandler.output import chunks as chunks_module
from telehandler.output import compressed_chunks, watch
from telehandler.output.chunks import Chunks
from telehandler.output.compressed_chunks import CompressedChunks
from telehandler.output.log import CHUNK_BYTES, JobLog, Stream
from telehandler.pb import telehandler_pb2 as pb

TEXT = b"".join(b"line %d of the log, with words that come again\n" % number for number in range(60_000))


class Compressor:
    """A real one, which counts."""

    def __init__(self) -> None:
        self.count, self._real = 0, zstandard.ZstdCompressor(level=1)

    def compress(self, data: bytes) -> bytes:
        self.count += 1
        return self._real.compress(data)


@pytest.fixture
def compressor() -> Compressor:
    return Compressor()


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch, compressor: Compressor) -> Chunks:
    """Without a cache in memory, for watchers on a link where compressing pays; whole chunks are of CHUNK_BYTES."""
    for name, value in (("CACHE_BYTES", 0), ("_LEAST_CACHE_BYTES", 0), ("CHUNK_BYTES", CHUNK_BYTES)):
        monkeypatch.setattr(chunks_module, name, value)
    monkeypatch.setattr(Chunks, "compressing_pays_bytes_s", 1 << 60)
    chunks = Chunks()
    monkeypatch.setattr(chunks, "_compressor", lambda: compressor)
    return chunks


@pytest.fixture
def log(tmp_path: Path) -> Iterator[JobLog]:
    log = _written(tmp_path)
    yield log
    log.release()


def _written(directory: Path) -> JobLog:
    log = JobLog(directory / "job")
    read_fd, write_fd = os.pipe()
    rest = memoryview(TEXT)
    while rest:
        rest = rest[os.write(write_fd, rest[:65536]) :]
        log.splice(read_fd, Stream.STDOUT)
    os.close(read_fd)
    os.close(write_fd)
    log.finish()
    return log


def _watched(log: JobLog, chunks: Chunks, offset: int = 0) -> tuple[bytes, int]:
    """What a watcher gets from `offset` to the end, and how many of its messages were compressed."""

    async def read() -> list[pb.JobOutput]:
        wish = watch.WatchOptions(offset, follow=True, stream=None, until_ns=0, zstd=True, exact=False)
        return [pb.JobOutput.FromString(message) async for message in watch.messages(log, chunks, wish)]

    data, count, reader = b"", 0, zstandard.ZstdDecompressor()
    for output in asyncio.run(read()):
        assert output.offset == offset + len(data)
        count += bool(output.zstd)
        data += reader.decompress(output.zstd) if output.zstd else output.data
    return data, count


def test_what_one_watcher_had_compressed_is_there_for_the_next(
    log: JobLog, chunks: Chunks, compressor: Compressor
) -> None:
    assert _watched(log, chunks)[0] == TEXT
    first = compressor.count
    assert first >= len(TEXT) // CHUNK_BYTES > 5
    data, packed_count = _watched(log, chunks)
    assert (data, packed_count) == (TEXT, first)
    # The last chunk is not a whole one, so it alone is compressed again; so is the rest of one that is begun amid.
    assert compressor.count == first + 1
    assert _watched(log, chunks, 1000)[0] == TEXT[1000:]
    assert compressor.count == first + 3


def test_sizes_do_not_get_into_each_others_way(log: JobLog, chunks: Chunks, compressor: Compressor) -> None:
    for watchers in (1, 1000, 1, 150, 1000, 150):
        chunks.watchers = watchers
        assert _watched(log, chunks)[0] == TEXT
    sizes = [CHUNK_BYTES, 16 << 10, 128 << 10]
    whole = sum(len(TEXT) // size for size in sizes)
    assert whole <= compressor.count <= whole + 6  # the last one of each pass besides


def test_the_file_has_no_name_and_goes_with_the_log(tmp_path: Path, chunks: Chunks) -> None:
    log = _written(tmp_path)
    before = CompressedChunks.kept
    _watched(log, chunks)
    assert CompressedChunks.kept > before
    unnamed = [path for path in Path("/proc/self/fd").iterdir() if f"{tmp_path}/job/#" in os.path.realpath(path)]
    assert len(unnamed) == 1
    assert sorted(os.listdir(tmp_path / "job")) == ["index", "output"]
    log.release()
    assert not unnamed[0].exists()
    assert CompressedChunks.kept == before


def test_nothing_is_kept_beyond_the_bound(log: JobLog, chunks: Chunks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed_chunks, "MOST_BYTES", CompressedChunks.kept + 100_000)
    for _ in range(2):
        assert _watched(log, chunks)[0] == TEXT
    assert 0 < CompressedChunks.kept <= compressed_chunks.MOST_BYTES


@pytest.mark.parametrize("size", ["4m", "3m"])  # with a quarter free once the log is there, and with next to nothing
def test_the_last_tenth_of_a_disk_is_for_logs(as_root: None, place: Path, chunks: Chunks, size: str) -> None:
    with disks.tmpfs(place, f"size={size}") as disk:
        log = _written(disk)
        for _ in range(2):
            assert _watched(log, chunks)[0] == TEXT
        status = os.statvfs(disk)
        if size == "4m":
            assert log.compressed._bytes > 0
            assert (
                status.f_bavail * compressed_chunks.SPARE
                >= status.f_blocks - (CHUNK_BYTES // 4096) * compressed_chunks.SPARE
            )
        else:
            assert log.compressed._bytes == 0
        log.release()


def test_a_watcher_joins_though_no_fd_is_free(chunks: Chunks, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(capacity, "lowest_fd", none)
    chunks.join(jobs=1)
    assert chunks.watchers == 1
    chunks.leave()
    assert chunks.watchers == 0


def test_a_message_that_was_written_in_part_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = CompressedChunks(tmp_path)
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, place: real(fd, data[: len(data) // 2], place))
    kept.put(0, 1 << 14, b"x" * 1000)
    assert kept.get(0, 1 << 14) is None
    monkeypatch.undo()
    kept.put(0, 1 << 14, b"x" * 1000)
    assert kept.get(0, 1 << 14) == b"x" * 1000
    assert kept.get(1 << 14, 1 << 14) is None
    kept.close()
