"""R14: the wall clock jumps a day ahead and a day back, here where it is the guest's own; what counts time goes on.

Through local mode: a try through grpc, whose timers are its own, did not come to its end in this guest.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.command_line import local_command

DAY_S = 86_400
GRACE_S, TIMEOUT_S = 10, 20  # the first is local's
AT_ONCE_S = 5  # in which one that follows the clock would end when it jumps ahead
UP = "echo up; exec sleep 1000"
LATE_S = 90.0  # for a guest that is slow


@contextmanager
def _clock(ahead_s: float) -> Iterator[None]:
    """The wall clock, so far ahead, and right again at the end."""
    assert os.environ["TELEHANDLER_GUEST"]  # never on a machine that somebody else uses
    right = time.time() - time.monotonic()
    time.clock_settime(time.CLOCK_REALTIME, right + time.monotonic() + ahead_s)
    try:
        yield
    finally:
        time.clock_settime(time.CLOCK_REALTIME, right + time.monotonic())


@pytest.mark.parametrize("ahead_s", [DAY_S, -DAY_S])
def test_r14_neither_a_timeout_nor_a_grace_follows_the_wall_clock(policy: Path, ahead_s: int) -> None:
    """Both at once, since each takes its time."""
    script = "trap '' TERM; echo up; while :; do sleep 1; done"
    timeout = "--timeout", f"{TIMEOUT_S}s"
    with _local(policy, "--", "sh", "-c", script) as stopped, _local(policy, *timeout, "--", "sh", "-c", UP) as limited:
        for job in (stopped, limited):
            assert job.stdout is not None
            assert job.stdout.readline() == b"up\n"  # the job's own: its time has begun, a moment before
        began = time.monotonic()
        stopped.send_signal(signal.SIGTERM)
        with _clock(ahead_s):
            with pytest.raises(subprocess.TimeoutExpired):
                limited.wait(AT_ONCE_S)
            assert stopped.wait(LATE_S) == 137
            assert time.monotonic() - began >= GRACE_S
            assert limited.wait(LATE_S) == 124
            assert time.monotonic() - began >= TIMEOUT_S / 2


@contextmanager
def _local(policy: Path, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(local_command(policy, *arguments), cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()  # what does not end must not hold up the others
