"""Output that comes fast is taken once in a while, in its order, and none of it later than the job's end."""

import asyncio
import fcntl
import os
import select
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.wait import DEADLINE_S

from telehandler.output import pump as pumps
from telehandler.output.log import NO_CAP, PIPE_BYTES, Cap, JobLog
from telehandler.output.pump import Pump


class Job:
    """The write ends of a job's pipes, and the log that a pump writes them to."""

    def __init__(self, directory: Path, rest_s: float, cap: Cap = NO_CAP) -> None:
        stdout_fd, self.stdout = os.pipe()
        stderr_fd, self.stderr = os.pipe()
        self.log = JobLog(directory, cap)
        self.pump = Pump(self.log, stdout_fd, stderr_fd, lambda _: None, rest_s)

    async def taken(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await asyncio.sleep(0)

    async def write(self, fd: int, data: bytes) -> None:
        """And waits until it is in the log."""
        size = self.log.size + len(data)
        os.write(fd, data)
        await self.taken(lambda: self.log.size == size)


@asynccontextmanager
async def _job(directory: Path, rest_s: float, cap: Cap = NO_CAP) -> AsyncIterator[Job]:
    """Closed at the end; all that it wrote is then in the log."""
    job = Job(directory, rest_s, cap)
    yield job
    os.close(job.stdout)
    os.close(job.stderr)
    async with asyncio.timeout(DEADLINE_S):
        await job.pump.drained()
    job.log.release()


@pytest.fixture
def always_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is."""
    monkeypatch.setattr(pumps, "_FAST_S", 1e9)


async def _turns() -> None:
    """Of the event loop, with looks at what has come."""
    for _ in range(100):
        await asyncio.sleep(0)


def test_fast_lines_wait_for_each_other(tmp_path: Path, always_fast: None) -> None:
    async def run() -> None:
        async with _job(tmp_path / "log", 3600) as job:
            await job.write(job.stdout, b"1\n")
            for _ in range(100):
                os.write(job.stdout, b"2\n")
                await _turns()
            assert job.log.size <= 4
        assert job.log.size == 202  # at its end, an hour early

    asyncio.run(run())


def test_they_are_taken_after_the_rest(tmp_path: Path, always_fast: None) -> None:
    async def run() -> None:
        async with _job(tmp_path / "log", pumps.REST_S) as job:
            for _ in range(20):
                await job.write(job.stdout, b"1\n")

    asyncio.run(run())


def test_slow_lines_wait_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pumps, "_FAST_S", 0)

    async def run() -> None:
        async with _job(tmp_path / "log", 3600) as job:
            for _ in range(20):
                await job.write(job.stdout, b"1\n")

    asyncio.run(run())


def test_nor_do_large_pieces(tmp_path: Path, always_fast: None) -> None:
    async def run() -> None:
        async with _job(tmp_path / "log", 3600) as job:
            for _ in range(20):
                await job.write(job.stdout, bytes(1 << 16))

    asyncio.run(run())


def test_what_comes_in_the_other_pipe_comes_behind_what_rests(tmp_path: Path, always_fast: None) -> None:
    async def run() -> bytes:
        async with _job(tmp_path / "log", 3600) as job:
            await job.write(job.stdout, b"1")
            os.write(job.stdout, b"2")
            await _turns()
            os.write(job.stdout, b"3")
            await _turns()
            os.write(job.stderr, b"4")
            await job.taken(lambda: job.log.size == 4)
            return job.log.bytes_at(0, 4)
        raise AssertionError

    assert asyncio.run(run()) == b"1234"


_NEAR_BYTES = 4 * PIPE_BYTES  # of a cap


@pytest.mark.parametrize(
    ("cap", "size", "later"),
    [
        (NO_CAP, PIPE_BYTES, PIPE_BYTES),
        (Cap(1 << 20, drop_oldest=True), PIPE_BYTES, PIPE_BYTES),
        (Cap(_NEAR_BYTES + 1000), 1 << 16, select.PIPE_BUF),
        (Cap(_NEAR_BYTES - 1000), select.PIPE_BUF, select.PIPE_BUF),
    ],
    ids=["no cap", "that drops its oldest", "far from its cap", "near its cap"],
)
def test_r5_the_writer_of_a_log_that_will_wait_is_never_far_ahead(
    tmp_path: Path, cap: Cap, size: int, later: int
) -> None:
    """Its pipe holds little, and a page when the log comes near to its cap."""

    async def run() -> None:
        async with _job(tmp_path, 0, cap) as job:
            assert fcntl.fcntl(job.stdout, fcntl.F_GETPIPE_SZ) == size
            await job.write(job.stdout, bytes(2000))
            assert fcntl.fcntl(job.stdout, fcntl.F_GETPIPE_SZ) == later

    asyncio.run(run())
