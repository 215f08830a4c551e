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
from support.processes import processes_with
from support.wait import wait_until

DAY_S = 86_400
SPAN_S = 10  # of the timeout, and of the grace
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
    with _local(policy, "--", "sh", "-c", script) as stopped:
        assert stopped.stdout is not None
        assert stopped.stdout.readline() == b"up\n"
        began = time.monotonic()
        with _local(policy, "--timeout", f"{SPAN_S}s", "--", "sleep", "14141.4") as limited:
            wait_until("it runs", lambda: processes_with("14141.4\0"))
            stopped.send_signal(signal.SIGTERM)
            signalled = time.monotonic()
            with _clock(ahead_s):
                assert time.monotonic() - began < SPAN_S, "too slow to tell anything"
                assert limited.wait(LATE_S) == 124
                assert time.monotonic() - began >= SPAN_S
                assert stopped.wait(LATE_S) == 137
                assert time.monotonic() - signalled >= SPAN_S


@contextmanager
def _local(policy: Path, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(local_command(policy, *arguments), cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()  # what does not end must not hold up the others
