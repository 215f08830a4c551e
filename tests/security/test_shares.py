"""S52: what one user takes of the server, alone and in all, leaves another user's calls as they were."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from support.checkout import ROOT
from support.policies import policy_text, write_policy
from support.process_usage import cpu_ticks, rss_bytes
from support.raw_client import SERVICE, RawClient
from support.servers import Server
from support.state_fixtures import output_directory, used_state_directory, write_jobs
from support.unfinished_requests import Unfinished
from support.wait import wait_until

from telehandler.common import bounds
from telehandler.common.states import Reason, State
from telehandler.jobs.records import Record
from telehandler.pb import telehandler_pb2 as pb

START, LIST, WATCH = (f"/{SERVICE}/{name}" for name in ("StartJob", "ListJobs", "WatchJobOutput"))
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
SOON_S = 1.0  # another user's call, whatever the first does
ROUNDS = 3
MIB = 1 << 20


def test_s52_unfinished_requests_of_one_user_cost_little_and_end(server: Server, ssl: Path) -> None:
    """Four connections with a thousand calls each, whose messages of 1 MiB lack their last bytes."""
    api = server.children()["api"]
    assert server.client("run", "--", "true", user="bubba").returncode == 0
    before = rss_bytes(api)
    attackers: list[Unfinished] = []
    try:
        for _ in range(4):
            attackers.append(Unfinished(server.port, ssl, "client", START, 1000, MIB))
        most = before
        quiet = 0
        while quiet < 10:  # no more is taken from them
            quiet = 0 if sum(attacker.pump(0.02) for attacker in attackers) else quiet + 1
            most = max(most, rss_bytes(api))
        assert sum(attacker.sent for attacker in attackers) > 16 * MIB
        assert most - before < 128 * MIB
        assert _start_s(server, ssl) < SOON_S
        # A deadline from the first header ends those that were taken.
        deadline_s = bounds.RECEIVE_TIMEOUT_S + 5
        wait_until("all are refused", lambda: _refused(attackers) == 4000, deadline_s)
    finally:
        for attacker in attackers:
            attacker.close()
    wait_until("the memory is given back", lambda: rss_bytes(api) - before < 24 * MIB)


def _refused(attackers: list[Unfinished]) -> int:
    for attacker in attackers:
        attacker.pump(0)
    return sum(attacker.refused for attacker in attackers)


def _start_s(server: Server, ssl: Path) -> float:
    """How long a start of another user takes: the median, on a machine that others use too."""
    times = []
    with RawClient(server, ssl / "bubba") as other:
        for _ in range(ROUNDS):
            began = time.monotonic()
            other.start("true")
            times.append(time.monotonic() - began)
    return statistics.median(times)


def test_s52_a_users_requests_are_bounded_in_bytes(server: Server, ssl: Path) -> None:
    """Those that are whole, and whose calls go on: watches that are as long as a message may be."""
    with RawClient(server, ssl / "client") as owner, RawClient(server, ssl / "bubba") as other:
        job = owner.start("sleep", "1000")
        padded = pb.WatchJobOutputRequest(name=job.name).SerializeToString() + _unknown_field(MIB - 1024)
        watches = [owner.start_call(WATCH, padded) for _ in range(bounds.MAX_REQUEST_BYTES_PER_USER // MIB + 4)]
        codes = wait_until("four are refused", lambda: _ended(watches, 4))
        assert codes == {EXHAUSTED}
        assert other.start("true").uid
        for watch in watches:
            watch.cancel()
        wait_until("the bytes are free", lambda: owner.call(START, pb.StartJobRequest(argv=[b"true"])).bodies)
        assert owner.call_method("StopJob", "tele-tester", job.uid).code is grpc.StatusCode.OK


def _unknown_field(size: int) -> bytes:
    field = 1000 << 3 | 2
    return _varint(field) + _varint(size) + bytes(size)


def _varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


def _ended(calls: list[grpc.Call], count: int) -> set[grpc.StatusCode]:
    ended = [call for call in calls if call.done()]  # type: ignore[attr-defined]  # the stub lacks it
    return {call.code() for call in ended} if len(ended) >= count else set()


def test_s52_tails_of_a_log_without_newlines_hold_up_nobody(server: Server, ssl: Path) -> None:
    """Thirty at once, each of which must read all of a large log; another user's job ends as soon as ever."""
    with RawClient(server, ssl / "client") as owner, RawClient(server, ssl / "bubba") as other:
        job = owner.start("printf", "no newline")
        owner.call(f"/{SERVICE}/GetJobStatus", pb.GetJobStatusRequest(name=job.name, wait=True))
        os.truncate(output_directory(server, job.name) / "output", 64 << 30)  # a hole: it takes no room on the disk
        request = pb.WatchJobOutputRequest(name=job.name, no_follow=True, tail_lines=1000)
        tails = [owner.start_call(WATCH, request, timeout=120) for _ in range(30)]
        api = server.children()["api"]
        began = cpu_ticks(api)
        wait_until("the search is under way", lambda: cpu_ticks(api) > began + 20)
        times = []
        for _ in range(ROUNDS):
            began_s = time.monotonic()
            name = other.start("head", "-c", str(3 * MIB), "/dev/zero").name
            answer = other.call(f"/{SERVICE}/GetJobStatus", pb.GetJobStatusRequest(name=name, wait=True))
            assert pb.JobStatus.FromString(answer.bodies[0]).stdout_sha256
            times.append(time.monotonic() - began_s)
        assert statistics.median(times) < SOON_S, times
        assert not any(tail.done() for tail in tails)  # it was while they were under way
        for tail in tails:
            tail.cancel()
        wait_until("the search has ended", lambda: _idle(api))


def _idle(pid: int) -> bool:
    before = cpu_ticks(pid)
    time.sleep(0.2)  # the span that is looked at
    return cpu_ticks(pid) - before < 5


# Keeps so many calls of one method under way, whatever they are answered.
FLOOD = """
import sys, threading
from pathlib import Path
from types import SimpleNamespace
from support.raw_client import RawClient
server = SimpleNamespace(ssl=Path(sys.argv[1]), port=int(sys.argv[2]))
request = sys.stdin.buffer.read()
slots = threading.Semaphore(500)
with RawClient(server, server.ssl / "client") as caller:
    method = caller.channel.unary_unary(sys.argv[3])
    print("up", flush=True)
    while True:
        slots.acquire()
        method.future(request, timeout=60).add_done_callback(lambda _: slots.release())
"""


@contextmanager
def _flood(server: Server, method: str, request: bytes) -> Iterator[None]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", FLOOD, str(server.ssl), str(server.port), method]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(request)
            process.stdin.close()
            assert process.stdout.readline() == b"up\n"
            api = server.children()["api"]
            before = cpu_ticks(api)
            wait_until("the flood is under way", lambda: cpu_ticks(api) > before + 50)
            yield
            assert process.poll() is None
        finally:
            process.kill()


def test_s52_a_flood_of_starts_leaves_another_user_his_turn(make_server: Callable[..., Server], ssl: Path) -> None:
    server = make_server()
    with _flood(server, START, pb.StartJobRequest(argv=[b"true"]).SerializeToString()):
        assert _start_s(server, ssl) < SOON_S
    assert server.stop() == 0


def test_s52_the_policys_rate_of_starts_is_shared(make_server: Callable[..., Server], place: Path, ssl: Path) -> None:
    """Fifty in a second, of which one user would have all."""
    server = make_server(policy=write_policy(place, "slow", f"starts_per_second = 50\n{policy_text()}"))
    with _flood(server, START, pb.StartJobRequest(argv=[b"true"]).SerializeToString()):
        assert _start_s(server, ssl) < SOON_S
    assert server.stop() == 0


def test_s52_a_flood_of_lists_leaves_another_user_his_turn(
    make_server: Callable[..., Server], place: Path, ssl: Path
) -> None:
    state = used_state_directory(make_server, place)
    uuid = "00000000-0000-4000-8000-{:012x}"
    records = [Record(uuid.format(number), "tele-tester", [b"true"], start_ns=number + 1) for number in range(1000)]
    for record in records:
        record.state, record.reason, record.end_ns = State.COMPLETED, Reason.EXITED, record.start_ns
    write_jobs(state, records)
    server = make_server(state=state)
    with _flood(server, LIST, pb.ListJobsRequest(page_size=1000).SerializeToString()):
        assert _start_s(server, ssl) < SOON_S
    assert server.stop() == 0


@pytest.mark.parametrize(("options", "share"), [((), 6), (("--max-jobs-per-user", "2"), 2)], ids=["share", "number"])
def test_s52_one_user_never_has_all_of_the_jobs(
    make_server: Callable[..., Server], place: Path, ssl: Path, options: tuple[str, ...], share: int
) -> None:
    policy = write_policy(place, "few", f"max_jobs = 8\n{policy_text()}")
    server = make_server(policy=policy, options=options)
    with ExitStack() as stack:
        owner, other = (stack.enter_context(RawClient(server, ssl / user)) for user in ("client", "bubba"))
        for _ in range(2):  # what ends is free again
            jobs = [owner.start("sleep", "1000") for _ in range(share)]
            refused = owner.call(START, pb.StartJobRequest(argv=[b"true"]))
            assert (refused.code, f"one user may have {share} now" in refused.details) == (EXHAUSTED, True)
            name = other.start("sleep", "1000").name
            assert owner.call(START, pb.StartJobRequest(argv=[b"true"])).code is EXHAUSTED
            for caller, user, uuid in [(owner, "tele-tester", job.uid) for job in jobs] + [
                (other, "bubba", name.rpartition("/")[2])
            ]:
                assert caller.call_method("StopJob", user, uuid).code is grpc.StatusCode.OK
    assert server.stop() == 0
