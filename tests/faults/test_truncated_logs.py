"""Logs that a crash of the machine has cut: what is there is read, and more can be written (R5, R6 of a reboot)."""

import os
from pathlib import Path

import pytest

from telehandler.output.log import JobLog, Stream

PIECES = ((Stream.STDOUT, b"first\n"), (Stream.STDERR, b"second\n"), (Stream.STDOUT, b"third\n"))
BYTES = b"".join(piece for _, piece in PIECES)
RECORD = 24


def write(directory: Path) -> None:
    log = JobLog(directory)
    for stream, piece in PIECES:
        splice(log, stream, piece)
    log.release()


def splice(log: JobLog, stream: Stream, piece: bytes) -> None:
    read_fd, write_fd = os.pipe()
    os.write(write_fd, piece)
    os.close(write_fd)
    assert log.splice(read_fd, stream) == len(piece)
    os.close(read_fd)


def check(directory: Path, spool: bytes) -> None:
    """Every byte once and in order, of some stream; then one more write, and the same by the next who opens it."""
    for more in (b"", b"more\n", b""):
        log = JobLog(directory)
        log.recount()
        if more:
            splice(log, Stream.STDERR, more)
            spool += more
        segments = list(log.segments(0))
        assert [segment.offset for segment in segments] == [0, *(segment.end for segment in segments)][: len(segments)]
        assert (segments[-1].end if segments else 0) == log.size == len(spool)
        assert log.bytes_at(0, log.size) == spool
        assert sum(log.sizes.values()) == len(spool)
        assert log.run(0, log.size).offset == 0 if spool else log.size == 0
        for segment in segments:
            assert segment in list(log.segments(segment.offset))
        if spool.endswith(b"more\n"):
            assert segments[-1].stream is Stream.STDERR
            assert segments[-1].end - segments[-1].offset >= len(b"more\n")
        assert (directory / "index").stat().st_size % RECORD == 0
        log.release()


@pytest.mark.parametrize("zeros", [0, 1, 24, 30, 100])
def test_r5_an_index_cut_at_every_length(tmp_path: Path, zeros: int) -> None:
    """With a tail of zeros, as a file system leaves it whose data came later than its size."""
    write(tmp_path / "whole")
    index = (tmp_path / "whole" / "index").read_bytes()
    for length in range(len(index) + 1):
        directory = tmp_path / str(length)
        directory.mkdir()
        (directory / "index").write_bytes(index[:length] + bytes(zeros))
        (directory / "output").write_bytes(BYTES)
        check(directory, BYTES)


def test_r5_an_output_cut_at_every_length(tmp_path: Path) -> None:
    write(tmp_path / "whole")
    index = (tmp_path / "whole" / "index").read_bytes()
    for length in range(len(BYTES) + 1):
        directory = tmp_path / str(length)
        directory.mkdir()
        (directory / "index").write_bytes(index)
        (directory / "output").write_bytes(BYTES[:length])
        check(directory, BYTES[:length])


def test_r5_what_was_not_cut_keeps_its_streams(tmp_path: Path) -> None:
    write(tmp_path)
    with open(tmp_path / "index", "ab") as file:
        file.write(b"half a record")
    log = JobLog(tmp_path)
    found = [
        (segment.stream, log.bytes_at(segment.offset, segment.end - segment.offset)) for segment in log.segments(0)
    ]
    assert found == list(PIECES)
    log.release()
