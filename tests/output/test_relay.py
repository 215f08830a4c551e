"""R24: what `local` passes on arrives whole, whatever stdout is, and no more is taken than it has room for."""

import asyncio
import fcntl
import os
import pty
import socket
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.wait import DEADLINE_S

from telehandler.common.errors import OutputFailed, ReaderGone
from telehandler.output.log import Stream
from telehandler.output.pump import Pump
from telehandler.output.relay import Relay

DATA = os.urandom(1000) * 3001  # more than any pipe or socket holds, and no multiple of a page


def _writing(data: bytes) -> int:
    """The read end of a pipe that another thread writes this to."""
    read_fd, write_fd = os.pipe()

    def write() -> None:
        with open(write_fd, "wb", 0) as pipe:
            view = memoryview(data)
            while view:
                view = view[pipe.write(view) :]

    threading.Thread(target=write, daemon=True).start()
    return read_fd


async def _relay(stdout_fd: int, stderr_fd: int, stdout: bytes, stderr: bytes) -> int:
    relay = Relay(stdout_fd, stderr_fd)
    pump = Pump(relay, _writing(stdout), _writing(stderr), lambda _: None)
    relay.on_room = pump.resume
    drained = asyncio.ensure_future(pump.drained())
    await asyncio.wait([drained, relay.failed], timeout=DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
    if relay.failed.done():
        drained.cancel()
        relay.failed.result()
    assert drained.done()
    return relay.count


class Reader:
    """Reads an fd to its end, a little at a time, in another thread."""

    def __init__(self, fd: int) -> None:
        self._fd, self.found = fd, b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            while piece := os.read(self._fd, 5000):
                self.found += piece
        except OSError:  # the end of a terminal: EIO
            pass

    def end(self) -> bytes:
        self._thread.join(DEADLINE_S)
        os.close(self._fd)
        return self.found


def _pipe() -> tuple[int, int]:
    return os.pipe()


def _nonblocking_pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    return reader, writer


def _socket() -> tuple[int, int]:
    reader, writer = socket.socketpair()
    writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least: a piece does not go in whole
    return reader.detach(), writer.detach()


def _nonblocking_socket() -> tuple[int, int]:
    reader, writer = _socket()
    os.set_blocking(writer, False)
    return reader, writer


def _terminal() -> tuple[int, int]:
    reader, writer = pty.openpty()
    tty.setraw(writer, termios.TCSANOW)
    return reader, writer


@pytest.mark.parametrize("kind", [_pipe, _nonblocking_pipe, _socket, _nonblocking_socket, _terminal])
def test_r24_every_byte_arrives_at_a_slow_reader(kind: Callable[[], tuple[int, int]]) -> None:
    reader_fd, writer_fd = kind()
    reader = Reader(reader_fd)
    with open(os.devnull, "wb", 0) as null:
        count = asyncio.run(_relay(writer_fd, null.fileno(), DATA, b"x"))
    os.close(writer_fd)
    assert reader.end() == DATA
    assert count == len(DATA) + 1


@pytest.mark.parametrize("flags", [0, os.O_APPEND, os.O_NONBLOCK])
def test_r24_every_byte_arrives_in_a_file(tmp_path: Path, flags: int) -> None:
    (tmp_path / "stdout").write_bytes(b"before\n")
    fd = os.open(tmp_path / "stdout", os.O_WRONLY | flags)
    os.lseek(fd, 0, os.SEEK_END)
    asyncio.run(_relay(fd, fd, DATA, b""))
    os.close(fd)
    assert (tmp_path / "stdout").read_bytes() == b"before\n" + DATA


@pytest.fixture
def full_pipe() -> Iterator[tuple[int, int]]:
    """Of the least size, and full."""
    reader_fd, writer_fd = os.pipe()
    size = fcntl.fcntl(writer_fd, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer_fd, bytes(size))
    yield reader_fd, writer_fd
    os.close(writer_fd)
    os.close(reader_fd)


def test_an_empty_pipe_is_no_wait_for_a_file(tmp_path: Path) -> None:
    """As after a rest, when nothing more has come: a file never tells that it has room."""

    async def splice_nothing() -> bool:
        relay = Relay(file_fd, file_fd)
        with pytest.raises(BlockingIOError):
            relay.splice(read_fd, Stream.STDOUT)
        return relay.overdue

    read_fd, write_fd = os.pipe2(os.O_NONBLOCK)
    file_fd = os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY)
    try:
        assert not asyncio.run(splice_nothing())
    finally:
        for fd in (read_fd, write_fd, file_fd):
            os.close(fd)


def test_r24_while_stdout_is_full_stderr_waits_too(full_pipe: tuple[int, int], tmp_path: Path) -> None:
    """What was written later does not come first."""
    reader_fd, writer_fd = full_pipe
    err = os.open(tmp_path / "stderr", os.O_WRONLY | os.O_CREAT)
    counts = []

    async def run() -> None:
        relay = Relay(writer_fd, err)
        stderr_fd, later_fd = os.pipe()
        stdout_fd, first_fd = os.pipe()
        pump = Pump(relay, stdout_fd, stderr_fd, lambda _: None)
        relay.on_room = pump.resume
        os.write(first_fd, b"first")
        os.close(first_fd)
        async with asyncio.timeout(DEADLINE_S):
            while not relay.overdue:
                await asyncio.sleep(0)
        os.write(later_fd, b"later")
        os.close(later_fd)
        for _ in range(100):
            await asyncio.sleep(0)
        counts.append(relay.count)
        os.read(reader_fd, 4096)
        async with asyncio.timeout(DEADLINE_S):
            await pump.drained()
        counts.append(relay.count)

    asyncio.run(run())
    os.close(err)
    assert counts == [0, 10]
    assert os.read(reader_fd, 10) == b"first"
    assert (tmp_path / "stderr").read_bytes() == b"later"


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("kind", [_pipe, _socket])
def test_r24_a_reader_that_goes_is_noticed(kind: Callable[[], tuple[int, int]], waits: bool) -> None:
    """Also while there is no room."""
    reader_fd, writer_fd = kind()
    if waits:
        threading.Timer(0.1, os.close, [reader_fd]).start()
    else:
        os.close(reader_fd)
    with open(os.devnull, "wb", 0) as null, pytest.raises(ReaderGone):
        asyncio.run(_relay(writer_fd, null.fileno(), DATA, b""))
    os.close(writer_fd)


def test_r24_a_full_device_is_noticed() -> None:
    with open("/dev/full", "wb", 0) as full, pytest.raises(OutputFailed, match="No space left"):
        asyncio.run(_relay(full.fileno(), full.fileno(), b"x", b""))


@pytest.mark.parametrize("gone", [False, True])
def test_r24_what_a_full_pipe_has_taken_is_passed_on(gone: bool) -> None:
    """Whether it is read or not: nothing more is to come."""
    reader_fd, writer_fd = os.pipe()
    size = fcntl.fcntl(writer_fd, fcntl.F_SETPIPE_SZ, 4096)

    async def run() -> int:
        relay = Relay(writer_fd, writer_fd)
        stdout_fd, job_fd = os.pipe()
        stderr_fd, other_fd = os.pipe()
        os.close(other_fd)
        pump = Pump(relay, stdout_fd, stderr_fd, lambda _: None)
        os.write(job_fd, bytes(size))
        async with asyncio.timeout(DEADLINE_S):
            while relay.count < size:
                await asyncio.sleep(0)
            if gone:
                os.close(reader_fd)
            os.close(job_fd)
            await pump.drained()
        return relay.count

    assert asyncio.run(run()) == size
    os.close(writer_fd)
    if not gone:
        os.close(reader_fd)
