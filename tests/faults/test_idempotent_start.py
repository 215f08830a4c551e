"""R20: one request id is one job, whoever dies between StartJob and its answer, and wherever the api is just then."""

import os
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.checkout import ROOT
from support.processes import alive, processes_with
from support.raw_client import ORIGINAL, SERVICE, RawClient, Response
from support.servers import Server, free_address
from support.state_fixtures import list_jobs, pending_starts
from support.wait import wait_until

from telehandler.pb import telehandler_pb2 as pb

START = f"/{SERVICE}/StartJob"
OK, EXISTS, INVALID = grpc.StatusCode.OK, grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.INVALID_ARGUMENT


def start(caller: RawClient, request_id: str, *argv: bytes, path: str = START, **fields: Any) -> Response:
    return caller.call(path, pb.StartJobRequest(argv=argv or [b"true"], request_id=request_id, **fields))


def name_of(answer: Response) -> str:
    assert answer.code is OK, answer
    return pb.JobResponse.FromString(answer.bodies[0]).name


def sleep_jobs(seconds: str) -> list[int]:
    """The pids of jobs: a client has this in its command line with a space."""
    return processes_with(f"sleep\0{seconds}\0")


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def start_is_pending(server: Server) -> bool:
    """Whether the api has noted one start, and what it asks waits in the socket of the stopped helper."""
    return pending_starts(server) == 1 and helper_socket_has_data(server)


def helper_socket_has_data(server: Server) -> bool:
    """Whether anything waits in the stopped helper's socket: `ss` shows its queue."""
    done = subprocess.run(["ss", "-xpH"], capture_output=True, text=True, check=True)
    helper = f"pid={server.children()['helper']},fd=0)"
    return any(int(line.split()[2]) > 0 for line in done.stdout.splitlines() if helper in line)


def sleeps_in_epoll(pid: int) -> bool:
    """Whether a process sleeps in epoll_wait: it has done all that it could."""
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] in ("232", "281")


def kill_api(server: Server) -> None:
    """kill -9, and a new one that answers."""
    api = server.children()["api"]
    os.kill(api, signal.SIGKILL)
    wait_until("the api has ended", lambda: not alive(api))


@pytest.fixture(scope="module")
def own(make_server: Callable[..., Server]) -> Server:
    """A server for these tests, always on one port."""
    return make_server(listen=free_address())


def test_r20_the_same_request_gets_the_first_ones_job(own: Server, ssl: Path) -> None:
    request_id = str(uuid.uuid4())
    with RawClient(own, ssl / "client") as owner, RawClient(own, ssl / "bubba") as other:
        env: dict[str, bytes] = {f"N{number}": b"x" for number in range(50)}  # a map has no order of its own
        first = name_of(start(owner, request_id, env=env))
        again = dict(reversed(list(env.items())))
        for words in ({"request_id": request_id}, {"request_id": request_id.upper()}):
            assert name_of(start(owner, words["request_id"], env=again)) == first
        assert name_of(start(owner, request_id, env=again, parent="users/tele-tester")) == first
        wait_until("it has ended", lambda: owner.job_status(first).end_time.seconds)
        answer = pb.JobResponse.FromString(start(owner, request_id, env=env).bodies[0])
        assert (answer.name, answer.state) == (first, pb.JOB_STATE_COMPLETED)
        theirs = name_of(start(other, request_id, env=env))
        assert theirs.startswith("users/bubba/jobs/")
        assert theirs[-36:] != first[-36:]
        assert name_of(start(owner, request_id, env=env, path=f"/{ORIGINAL}/StartJob")) == first


def test_r20_another_request_with_the_id_is_refused(own: Server, ssl: Path) -> None:
    request_id = str(uuid.uuid4())
    with RawClient(own, ssl / "client") as owner:
        first = name_of(start(owner, request_id, b"true"))
        answer = start(owner, request_id, b"false")
        assert (answer.code, answer.bodies) == (EXISTS, [])
        assert first in answer.details
        assert start(owner, request_id, b"true", limits=pb.Limits(pids=9)).code is EXISTS
        assert len([job for job in list_jobs(own) if job["name"] == first]) == 1


@pytest.mark.parametrize(
    "request_id", ["1", "x" * 36, "0" * 32, str(uuid.UUID(int=0)), f"{{{uuid.uuid4()}}}", uuid.uuid4().hex, "\0" * 36]
)
def test_r20_what_is_no_uuid_is_refused(own: Server, ssl: Path, request_id: str) -> None:
    with RawClient(own, ssl / "client") as owner:
        for validate_only in (False, True):
            answer = start(owner, request_id, validate_only=validate_only)
            assert answer.code is INVALID
            assert "a request id is a UUID, such as" in answer.details


def test_r20_an_id_goes_with_its_job_and_a_start_that_failed_has_none(own: Server, ssl: Path) -> None:
    request_id = str(uuid.uuid4())
    with RawClient(own, ssl / "client") as owner:
        assert start(owner, request_id, validate_only=True).code is OK
        for _ in range(2):
            assert start(owner, request_id, b"/no/such").code is grpc.StatusCode.FAILED_PRECONDITION
        first = name_of(start(owner, request_id))
        answer = owner.call(f"/{SERVICE}/DeleteJob", pb.DeleteJobRequest(name=first, force=True))
        assert answer.code is OK
        assert name_of(start(owner, request_id, b"echo")) != first


def test_r20_many_at_once_while_the_first_is_starting(own: Server, ssl: Path) -> None:
    request = pb.StartJobRequest(argv=[b"sleep", b"22.36067"], request_id=str(uuid.uuid4()))
    with RawClient(own, ssl / "client") as owner, RawClient(own, ssl / "client") as second:
        with stopped(own.children()["helper"]):
            calls = [caller.start_call(START, request) for caller in (owner, second) for _ in range(5)]
            wait_until("the start waits in the socket of the helper", lambda: start_is_pending(own))
            request.argv[1] = b"1"
            different = second.start_call(START, request)
        names = {pb.JobResponse.FromString(body).name for call in calls for body in call}
        assert len(names) == 1
        assert different.code() is EXISTS
        assert len(sleep_jobs("22.36067")) == 1
        owner.call(f"/{SERVICE}/DeleteJob", pb.DeleteJobRequest(name=names.pop(), force=True))


def test_r20_a_client_that_dies_before_the_answer(own: Server, ssl: Path) -> None:
    request = pb.StartJobRequest(argv=[b"sleep", b"24.49489"], request_id=str(uuid.uuid4()))
    before = own.log_text()
    with stopped(own.children()["helper"]):
        client = RawClient(own, ssl / "client")
        call = client.start_call(START, request)
        wait_until("the start waits in the socket of the helper", lambda: start_is_pending(own))
        client.channel.close()
        assert call.code() is grpc.StatusCode.CANCELLED
        with RawClient(own, ssl / "client") as owner:  # the api has seen the other go
            assert owner.call(START, b"\xff").code is not OK
    wait_until("the job runs", lambda: sleep_jobs("24.49489"))
    (pid,) = sleep_jobs("24.49489")
    with RawClient(own, ssl / "client") as owner:
        first = name_of(owner.call(START, request))
        assert sleep_jobs("24.49489") == [pid]
        assert [job["name"] for job in list_jobs(own, "--state", "running")] == [first]
        owner.call(f"/{SERVICE}/DeleteJob", pb.DeleteJobRequest(name=first, force=True))
    assert own.log_text() == before


def run_detached(server: Server, seconds: str) -> "subprocess.Popen[bytes]":
    """In /: the server's own directory may be hidden from jobs, and then the helper is asked twice."""
    command = server.client_command("run", "--detach", "-w", "/", "--", "sh", "-c", f"exec sleep {seconds}")
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finished(server: Server, client: "subprocess.Popen[bytes]") -> str:
    """The job's name, of a client that had to ask again; it is the only one that runs."""
    output, errors = client.communicate(timeout=60)
    assert client.returncode == 0, errors
    assert b"the start is not confirmed; asking again in" in errors
    name = output.decode().strip()
    assert [job["name"] for job in list_jobs(server, "--state", "running")] == [name]
    return name


def test_r20_the_api_dies_when_the_job_runs_and_its_record_is_not_written(own: Server) -> None:
    """Held up until the job has been executed, then killed: the next api finds the job by what was noted before."""
    api, helper = (own.children()[name] for name in ("api", "helper"))
    with stopped(helper):
        client = run_detached(own, "26.45751")
        wait_until("the start waits in the socket of the helper", lambda: start_is_pending(own))
        os.kill(api, signal.SIGSTOP)
    wait_until("the job runs", lambda: sleep_jobs("26.45751"))
    (pid,) = sleep_jobs("26.45751")
    wait_until("the answer waits in the api's socket", lambda: _waits(helper))
    kill_api(own)
    name = finished(own, client)
    assert sleep_jobs("26.45751") == [pid]
    assert own.client("stop", "--stop-timeout", "0", name).returncode == 0
    assert own.client("watch", name).returncode == 137


def _waits(pid: int) -> bool:
    """Whether a process sleeps in epoll_wait: it has done all that it was asked for."""
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] == "232"


def test_r20_the_api_dies_before_the_job_runs(own: Server) -> None:
    """The helper gets the start and the next api's greeting at once: that start ends, the client's next one counts."""
    with stopped(own.children()["helper"]):
        client = run_detached(own, "28.28427")
        wait_until("the start waits in the socket of the helper", lambda: start_is_pending(own))
        kill_api(own)
        wait_until("a new api is there", lambda: "api" in own.children())
        wait_until("it waits for the helper", lambda: sleeps_in_epoll(own.children()["api"]))
    name = finished(own, client)
    assert len(sleep_jobs("28.28427")) == 1
    assert pending_starts(own) == 0
    assert own.client("rm", "-f", name).returncode == 0


def test_r20_without_an_id_a_job_that_nobody_knows_of_is_ended(own: Server, ssl: Path) -> None:
    """As the original's client asks: it cannot ask again, so the job must not run on unseen."""
    api, helper = (own.children()[name] for name in ("api", "helper"))
    with RawClient(own, ssl / "client") as owner:
        with stopped(helper):
            call = owner.start_call(START, pb.StartJobRequest(argv=[b"sleep", b"30.00001"], working_directory="/"))
            wait_until("the api waits", lambda: helper_socket_has_data(own))
            os.kill(api, signal.SIGSTOP)
        wait_until("the job runs", lambda: sleep_jobs("30.00001"))
        wait_until("the answer waits in the api's socket", lambda: _waits(helper))
        kill_api(own)
        assert call.code() is grpc.StatusCode.UNAVAILABLE
    wait_until("the job has ended", lambda: not sleep_jobs("30.00001"))
    assert not list_jobs(own, "--state", "running")


def test_r20_an_id_is_known_to_the_next_api(own: Server, ssl: Path) -> None:
    request_id = str(uuid.uuid4())
    with RawClient(own, ssl / "client") as owner:
        first = name_of(start(owner, request_id))
    kill_api(own)
    wait_until("a new api answers", lambda: own.client("ls").returncode == 0)
    with RawClient(own, ssl / "client") as owner:
        assert name_of(start(owner, request_id)) == first
        assert start(owner, request_id, b"false").code is EXISTS


def test_r20_a_client_that_never_met_a_server_does_not_wait_for_one(own: Server, place: Path, ssl: Path) -> None:
    nobody = Server(place, ssl, None)
    nobody.port = int(free_address().rpartition(":")[2])
    done = nobody.client("run", "--", "true")
    assert (done.returncode, done.stdout) == (125, b"")
    assert done.stderr.decode().count("\n") == 1
    assert b"nothing listens on" in done.stderr
