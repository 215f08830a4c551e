"""A model of a job's life cycle beside the real server: whatever is asked in whatever order, both say the same.

Hypothesis draws the requests. A longer run:
MODEL_EXAMPLES=1000 python -m pytest tests/faults/test_life_cycle_stateful.py
"""

import hashlib
import os
import re
import signal
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import Message
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from support.processes import alive
from support.raw_client import SERVICE, RawClient, Response
from support.servers import Server, free_address
from support.wait import wait_until

from telehandler.common.states import Reason, State
from telehandler.pb import telehandler_pb2 as pb

EXAMPLES, STEPS = int(os.environ.get("MODEL_EXAMPLES", "30")), 16
# A server counts how often its api dies in a minute, and waits longer each time: it is renewed before that matters.
MOST_KILLS = 3
OK, NOT_FOUND, NOT_NOW = grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION
_LINES = b"".join(b"line %d\n" % number for number in range(300))
_PRINT = "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); done"
# By name: the program, all it writes, and its exit code, None for one that does not end.
PROGRAMS: dict[str, tuple[str, bytes, int | None]] = {
    "true": ("exit 0", b"", 0),
    "code": ("exit 42", b"", 42),
    "writes": (_PRINT, _LINES, 0),
    "slow": ("echo up; sleep 0.1; echo down; exit 3", b"up\ndown\n", 3),
    "sleeps": ("echo ready; exec sleep 1000", b"ready\n", None),
    "stays": (f"{_PRINT}; exec sleep 1000", _LINES, None),
    "ignores SIGTERM": ("trap '' TERM; echo ready; sleep 1000", b"ready\n", None),
}
SIGNALS = (signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1, signal.SIGCONT)
End = tuple[State, Reason, int, int]  # with exit code and signal


class Model:
    """What is known of one job: `ends` are the ends it may have, `final` its status since it was seen ended."""

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind = name, kind
        _, self.output, code = PROGRAMS[kind]
        self.ends: set[End] = set() if code is None else {(_state_of(code), Reason.EXITED, code, 0)}
        self.must_end = code is not None
        self.final: pb.JobStatus | None = None

    def signalled(self, number: int) -> None:
        if number == signal.SIGCONT or (number == signal.SIGTERM and self.kind == "ignores SIGTERM"):
            return
        self.ends.add((State.FAILED, Reason.SIGNALED, 128 + number, number))
        self.must_end = True

    def stopped(self, grace: bool) -> None:
        """It says STOPPED, with what ended it: an end of before, its stop signal, or the kill after the grace."""
        number = signal.SIGTERM if grace and self.kind != "ignores SIGTERM" else signal.SIGKILL
        already = {(State.STOPPED, Reason.STOPPED, code, ended) for _, _, code, ended in self.ends}
        if self.must_end:
            already.add((State.STOPPED, Reason.STOPPED, 128 + signal.SIGKILL, int(signal.SIGKILL)))
        self.ends |= {(State.STOPPED, Reason.STOPPED, 128 + number, int(number)), *already}
        self.must_end = True

    def check(self, status: pb.JobStatus, ended: bool = False) -> None:
        """Raises AssertionError for a status that it cannot have. `ended`: it must have ended."""
        found = State(status.state), Reason(status.reason), status.exit_code, status.signal
        if self.final:
            assert status == self.final, "a final status changed"
        elif State(status.state) is State.RUNNING:
            assert not ended, f"{self.kind} still runs"
        else:
            assert found in self.ends, f"{self.kind}: {found}, not of {self.ends}"
            assert status.stdout_sha256 == hashlib.sha256(self.output[: status.stdout_bytes]).digest()
            self.final = status


class Pool:
    """One server for many examples, until its api has died too often."""

    def __init__(self, make_server: Callable[..., Server]) -> None:
        self._make, self.kills = make_server, 0
        self.server = make_server(listen=free_address())

    def get(self) -> Server:
        if self.kills >= MOST_KILLS:
            assert self.server.stop() == 0
            self.server, self.kills = self._make(listen=free_address()), 0
        return self.server


class LifeCycle(RuleBasedStateMachine):
    """One example: requests, each with what the model says about its answer."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool, self.server = pool, pool.get()
        self.killed = False
        self.jobs: list[Model] = []  # the newest last
        self.gone: list[str] = []
        self.connect()

    def connect(self) -> None:
        self.caller = RawClient(self.server, self.server.ssl / "client")

    def ask(self, request: Message, **options: Any) -> Response:
        name = type(request).__name__.removesuffix("Request")
        return self.caller.call(f"/{SERVICE}/{name}", request, **options)

    def expect(self, request: Message, *codes: grpc.StatusCode) -> Response:
        answer = self.ask(request)
        assert answer.code in codes, f"{type(request).__name__}: {answer.code} {answer.details}, not {codes}"
        return answer

    def some(self, data: st.DataObject) -> Model:
        return self.jobs[data.draw(st.integers(0, len(self.jobs) - 1), "job")]

    def status(self, job: Model, wait: bool = False) -> pb.JobStatus:
        request = pb.GetJobStatusRequest(name=job.name, wait=wait)
        status = pb.JobStatus.FromString(self.expect(request, OK).bodies[0])
        job.check(status, ended=wait)
        return status

    @rule(kind=st.sampled_from(list(PROGRAMS)))
    def start(self, kind: str) -> None:
        argv = [b"/bin/sh", b"-c", PROGRAMS[kind][0].encode()]
        answer = pb.JobResponse.FromString(self.expect(pb.StartJobRequest(argv=argv), OK).bodies[0])
        self.jobs.append(Model(answer.name, kind))
        if kind == "ignores SIGTERM":  # before that it is not
            status = pb.GetJobStatusRequest(name=answer.name)
            wait_until(
                "it ignores SIGTERM by now",
                lambda: pb.JobStatus.FromString(self.expect(status, OK).bodies[0]).stdout_bytes == 6,
            )

    @rule(argv=st.sampled_from([[b"/nowhere"], [b"/etc/passwd"], [b""], []]))
    def start_nothing(self, argv: list[bytes]) -> None:
        answer = self.expect(pb.StartJobRequest(argv=argv), NOT_NOW, grpc.StatusCode.INVALID_ARGUMENT)
        assert (answer.code is NOT_NOW) == any(argv)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), number=st.sampled_from(SIGNALS))
    def signal(self, data: st.DataObject, number: int) -> None:
        job = self.some(data)
        codes = {NOT_NOW} if job.final else {OK, NOT_NOW} if job.must_end else {OK}
        if self.expect(pb.SignalJobRequest(name=job.name, signal=number), *codes).code is OK:
            job.signalled(number)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), grace_ms=st.sampled_from([0, 200, None]))
    def stop(self, data: st.DataObject, grace_ms: int | None) -> None:
        job = self.some(data)
        request = pb.StopJobRequest(name=job.name)
        if grace_ms is not None or job.kind == "ignores SIGTERM":
            request.grace.FromMilliseconds(grace_ms or 0)
        if not job.final:
            job.stopped(grace=not request.HasField("grace") or bool(grace_ms))
        self.expect(request, OK)
        job.check(self.status(job), ended=True)

    @precondition(lambda self: any(job.must_end for job in self.jobs))
    @rule(data=st.data())
    def wait(self, data: st.DataObject) -> None:
        ending = [job for job in self.jobs if job.must_end]
        self.status(ending[data.draw(st.integers(0, len(ending) - 1), "job")], wait=True)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), share=st.floats(0, 1.2))
    def watch(self, data: st.DataObject, share: float) -> None:
        """From anywhere, to the end of a job that must end, else to the end of what is there."""
        job = self.some(data)
        offset = int(len(job.output) * share)
        wait = job.must_end
        request = pb.WatchJobOutputRequest(name=job.name, offset=offset, no_follow=not wait)
        answer = self.expect(request, OK, grpc.StatusCode.OUT_OF_RANGE)
        data_heard = b"".join(pb.JobOutput.FromString(body).data for body in answer.bodies)
        status = self.status(job, wait=wait)
        if answer.code is not OK:
            size = int(re.findall(r"which has (\d+) bytes", answer.details)[0])  # then; it may have more by now
            assert size < offset
            assert size <= status.stdout_bytes
        elif wait:
            assert data_heard == job.output[offset : status.stdout_bytes]
            assert ("telehandler-state", State(status.state).name.lower()) in answer.trailing
        else:
            assert job.output[offset:].startswith(data_heard)
        if State(status.state) in (State.COMPLETED, State.FAILED) and Reason(status.reason) is Reason.EXITED:
            assert status.stdout_bytes == len(job.output)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), force=st.booleans())
    def delete(self, data: st.DataObject, force: bool) -> None:
        job = self.some(data)
        codes = {OK} if force or job.final else {OK, NOT_NOW} if job.must_end else {NOT_NOW}
        request = pb.DeleteJobRequest(name=job.name, force=force)
        if self.expect(request, *codes).code is not OK:
            if not job.must_end:
                return
            self.status(job, wait=True)  # whether it was quicker must not change what is drawn next
            self.expect(request, OK)
        self.jobs.remove(job)
        self.gone.append(job.name)

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def ask_for_one_that_is_gone(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.gone), "gone")
        for request in (
            pb.GetJobStatusRequest(name=name, wait=True),
            pb.WatchJobOutputRequest(name=name),
            pb.StopJobRequest(name=name),
            pb.SignalJobRequest(name=name, signal=signal.SIGCONT),
            pb.DeleteJobRequest(name=name, force=True),
        ):
            self.expect(request, NOT_FOUND)

    @precondition(lambda self: not self.killed and self.jobs)
    @rule()
    def kill_api(self) -> None:
        """Nothing is under way: nothing may change. Once in an example."""
        self.killed = True
        self.pool.kills += 1
        api = wait_until("the api is there", self.api_pid)
        os.kill(api, signal.SIGKILL)
        wait_until("the api is dead", lambda: not alive(api))
        self.caller.channel.close()

        def answers() -> bool:
            self.connect()
            if self.ask(pb.ListJobsRequest()).code is OK:
                return True
            self.caller.channel.close()
            return False

        wait_until("the next api answers", answers)

    def api_pid(self) -> int | None:
        try:
            return self.server.children().get("api")
        except OSError:  # some other process ended as it was looked at
            return None

    @invariant()
    def the_list_is_the_models(self) -> None:
        answer = pb.ListJobsResponse.FromString(self.expect(pb.ListJobsRequest(page_size=1000), OK).bodies[0])
        assert [status.name for status in answer.jobs] == [job.name for job in reversed(self.jobs)]
        for status, job in zip(answer.jobs, reversed(self.jobs), strict=True):
            job.check(status)

    def teardown(self) -> None:
        for job in self.jobs:
            self.expect(pb.DeleteJobRequest(name=job.name, force=True), OK)
        self.caller.channel.close()


def _state_of(code: int) -> State:
    return State.FAILED if code else State.COMPLETED


def test_r8_the_life_cycle_is_as_in_the_model(make_server: Callable[..., Server]) -> None:
    pool = Pool(make_server)
    run_state_machine_as_test(
        lambda: LifeCycle(pool),  # type: ignore[arg-type]  # the stub wants a class, where any factory does
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
    assert pool.server.stop() == 0
