"""R14: the wall clock jumps a day ahead and a day back, here where it is the guest's own; what counts time goes on."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from edge import SERVICE, Caller
from servers import Server, wait_until

from telehandler.pb import telehandler_pb2 as pb

DAY_S = 86_400
SPAN_S = 10  # of the timeout, and of the grace
LATE_S = 60.0  # for a guest that is slow


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
def test_r14_a_timeout_and_a_grace_do_not_follow_the_wall_clock(
    make_server: Callable[..., Server], ssl: Path, ahead_s: int
) -> None:
    server = make_server()
    with Caller(server, ssl / "client") as owner:  # connected before: its certificate may not be valid then

        def status(job: pb.JobResponse) -> pb.JobStatus:
            return pb.JobStatus.FromString(owner.status(job.name).bodies[0])

        began = time.monotonic()
        timed = owner.start("sleep", "1000", limits=pb.Limits(timeout_ms=SPAN_S * 1000))
        stubborn = owner.start("sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done")
        wait_until("it ignores SIGTERM", lambda: status(stubborn).stdout_bytes)
        request = pb.StopJobRequest(name=stubborn.name)
        request.grace.seconds = SPAN_S
        asked = time.monotonic()
        stop = owner.begin(f"/{SERVICE}/StopJob", request, timeout=None)
        with _clock(ahead_s):
            assert abs(time.time() - status(timed).start_time.seconds) > DAY_S / 2
            assert [status(job).state for job in (timed, stubborn)] == [pb.JOB_STATE_RUNNING] * 2
            assert time.monotonic() - began < SPAN_S, "too slow to tell anything"
            wait_until("the timeout has ended one", lambda: status(timed).reason == pb.JOB_REASON_TIMEOUT, LATE_S)
            assert time.monotonic() - began >= SPAN_S
            assert stop.code() is grpc.StatusCode.OK
            assert SPAN_S <= time.monotonic() - asked < LATE_S
            assert status(stubborn).exit_code == 137
            assert owner.start("true").uid  # all else goes on too
        assert owner.start("true").uid
    assert server.stop() == 0
