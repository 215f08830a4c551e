"""R24: `local` leaves nothing behind, whichever way it ends, and waits for a slow reader without filling a disk."""

import asyncio
import fcntl
import os
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.checkout import ROOT
from support.command_line import local_command
from support.process_usage import memory_bytes
from support.processes import processes_with
from support.wait import DEADLINE_S, wait_until

from telehandler.local import Signals

ENDING = [
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGTERM),
    *(signal.SIGXCPU, signal.SIGVTALRM, signal.SIGPROF, signal.SIGPWR, signal.SIGRTMIN, signal.SIGRTMAX),
]


def _local(policy: Path, tmp_path: Path, *job: str, **options: Any) -> "subprocess.Popen[bytes]":
    tmp_path.chmod(0o755)
    command = local_command(policy, "--", *job)
    env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd="/", env=env, stderr=subprocess.PIPE, **options)


def _gone(tmp_path: Path, seconds: str) -> Callable[[], bool]:
    return lambda: not list(tmp_path.iterdir()) and not processes_with(f"sleep\0{seconds}")


@pytest.mark.parametrize("number", ENDING)
def test_r24_local_cleans_up_at_every_signal(policy: Path, tmp_path: Path, as_root: None, number: int) -> None:
    seconds = f"1000.{number}{os.getpid()}"
    local = _local(policy, tmp_path, "sh", "-c", f"echo up; exec sleep {seconds}", stdout=subprocess.PIPE)
    assert local.stdout
    assert local.stdout.readline() == b"up\n"
    local.send_signal(number)
    _, errors = local.communicate(timeout=DEADLINE_S)
    assert local.returncode > 128, errors
    assert b"Traceback" not in errors
    assert _gone(tmp_path, seconds)()


def test_r24_local_cleans_up_before_its_job_runs(policy: Path, tmp_path: Path, as_root: None) -> None:
    """At any moment of its start."""
    for pause in range(0, 40, 4):
        local = _local(policy, tmp_path, "sleep", "1000.77", stdout=subprocess.DEVNULL)
        wait_until("it catches signals", partial(_catches, local.pid, signal.SIGTERM))
        time.sleep(pause / 100)  # the moment, not a wait for anything
        local.terminate()
        _, errors = local.communicate(timeout=DEADLINE_S)
        assert local.returncode == 128 + signal.SIGTERM, errors
        assert _gone(tmp_path, "1000.77")(), pause


def _catches(pid: int, number: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    (caught,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.parametrize("how", ["full", "closed", "gone"])
def test_r24_local_leaves_nothing_behind_when_it_cannot_print(
    policy: Path, tmp_path: Path, as_root: None, how: str
) -> None:
    seconds = f"1000.8{os.getpid()}"
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    stdout = {"full": "/dev/full", "closed": os.devnull, "gone": f"/proc/self/fd/{write_fd}"}[how]
    with open(stdout, "wb", 0) as file:
        job = ["sh", "-c", f"echo x; exec sleep {seconds}"]
        local = _local(policy, tmp_path, *job, stdout=file if how != "closed" else None,
                       preexec_fn=(lambda: os.close(1)) if how == "closed" else None)  # fmt: skip
    os.close(write_fd)
    _, errors = local.communicate(timeout=DEADLINE_S)
    assert local.returncode == (141 if how == "gone" else 125), errors
    assert _gone(tmp_path, seconds)()


def test_r24_local_ends_by_a_signal_though_nobody_reads(policy: Path, tmp_path: Path, as_root: None) -> None:
    read_fd, write_fd = os.pipe()
    local = _local(policy, tmp_path, "sh", "-c", "exec head -c 100000000 /dev/zero", stdout=write_fd)
    os.close(write_fd)
    wait_until("it waits for its reader", lambda: _is_full(read_fd))
    local.terminate()
    _, errors = local.communicate(timeout=DEADLINE_S)
    os.close(read_fd)
    assert local.returncode == 125
    assert errors.count(b"\n") == 1
    assert b"nobody reads" in errors
    assert not list(tmp_path.iterdir())


def _is_full(read_fd: int) -> bool:
    (there,) = struct.unpack("i", fcntl.ioctl(read_fd, termios.FIONREAD, bytes(4)))
    return bool(there >= 1 << 16)


def _written(local: "subprocess.Popen[bytes]") -> int:
    """Bytes that the job has written."""
    (pid,) = [pid for pid in processes_with("head\0-c\x0064000000") if pid != local.pid]
    counts = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(counts["wchar"])


def test_r24_the_job_of_a_local_that_nobody_reads_waits(policy: Path, tmp_path: Path, as_root: None) -> None:
    """No more than the pipes hold is taken from it, none of it goes to a disk, and little to memory."""
    read_fd, write_fd = os.pipe()
    local = _local(policy, tmp_path, "head", "-c", "64000000", "/dev/zero", stdout=write_fd)
    os.close(write_fd)
    wait_until("it waits for its reader", lambda: _is_full(read_fd) and _waits(local.pid))
    sizes = {_written(local)}
    for _ in range(10):
        time.sleep(0.05)  # for it to go on, if it did
        sizes.add(_written(local))
    assert 1 << 16 <= max(sizes) <= 2 << 20
    total = peak = 0
    with open(read_fd, "rb", 0) as pipe:
        while piece := pipe.read(1 << 20):
            total += len(piece)
            if total < 60_000_000:  # it cannot have ended yet
                peak = memory_bytes(local.pid, "VmHWM")
                assert not list(tmp_path.iterdir())
    assert (total, local.wait(DEADLINE_S)) == (64_000_000, 0)
    assert peak < 48 << 20
    assert local.stderr
    local.stderr.close()


def _waits(pid: int) -> bool:
    """Whether a process sleeps."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def test_r24_a_local_whose_reader_has_enough_ends_with_its_job(policy: Path, tmp_path: Path, as_root: None) -> None:
    """As by SIGPIPE: `| head -n 1`."""
    seconds = f"1000.9{os.getpid()}"
    job = f"sleep {seconds} & yes"
    local = _local(policy, tmp_path, "sh", "-c", job, stdout=subprocess.PIPE)
    assert local.stdout
    assert local.stdout.readline() == b"y\n"
    local.stdout.close()
    assert local.stderr
    assert local.stderr.read() == b""
    local.stderr.close()
    assert local.wait(DEADLINE_S) == 128 + signal.SIGPIPE
    assert _gone(tmp_path, seconds)()
    assert not processes_with("yes\0")


def test_r24_a_signal_while_local_tidies_up_is_no_fault() -> None:
    """Its event loop is closed, and the helper has not ended yet."""
    signals = Signals()
    try:

        async def listen() -> None:
            signals.listen(lambda _: None)

        asyncio.run(listen())
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.received == [signal.SIGUSR1]
    finally:
        signals.close()


# The signal comes to another thread than the one that waits, so that nothing interrupts its wait: as one does that
# comes just before the wait begins.
_NOT_INTERRUPTED = """
import asyncio, os, signal, threading, time
from telehandler.local import Signals

def send():
    while "poll" not in open(f"/proc/self/task/{os.getpid()}/wchan").read():
        time.sleep(0.001)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

async def receive():
    received = asyncio.Event()
    signals.listen(lambda number: received.set())
    threading.Thread(target=send).start()
    began = time.monotonic()
    await asyncio.wait_for(received.wait(), 20)
    assert time.monotonic() - began < 15, "only the end of the wait made it known"

signals = Signals()
asyncio.run(receive())
signals.close()
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_r24_a_signal_that_interrupts_no_wait_is_attended_to() -> None:
    done = subprocess.run([sys.executable, "-c", _NOT_INTERRUPTED], cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGTERM, b"")  # and after close it ends the process as ever
