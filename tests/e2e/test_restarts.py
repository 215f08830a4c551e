"""`run --restart`: a job that fails is started again as another job, until it does not, or somebody ends it."""

import json
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from typing import Any

import grpc
import pytest
from support.checkout import ROOT
from support.raw_client import SERVICE, RawClient
from support.servers import Server
from support.state_fixtures import list_jobs
from support.wait import wait_until

from telehandler.jobs.restarts import FIRST_PAUSE_S
from telehandler.pb import telehandler_pb2 as pb

Code = grpc.StatusCode
NEVER = "users/tele-tester/jobs/4f1c2a9e-0b1d-4c52-9d0a-3f6f1f5b7a10"


def _start(server: Server, *command: str, policy: str = "on-failure", name: str = "again") -> str:
    done = server.client("run", "-d", "--restart", policy, "--name", name, "--", *command)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


def _runs(server: Server, name: str = "again") -> list[dict[str, Any]]:
    """The job's runs, the first one first."""
    return list_jobs(server, "--filter", f"name={name}")[::-1]


@pytest.fixture(autouse=True)
def removed(server: Server) -> Iterator[None]:
    """Leaves no run to the next test."""
    yield
    if names := [run["name"] for run in _runs(server)]:
        assert server.client("rm", "-f", *names).returncode == 0


def test_each_run_is_a_job_with_its_own_output_linked_to_the_first(server: Server) -> None:
    first = _start(server, "sh", "-c", "echo $$ said; exit 3", policy="on-failure:3")
    runs = wait_until("the last has ended", lambda: (runs := _runs(server))[3:] and runs[3]["end_time"] and runs)
    assert len(runs) == 4
    names = [run["name"] for run in runs]
    assert (names[0], len(set(names))) == (first, 4)
    assert [run["restarts"] for run in runs] == [0, 1, 2, 3]
    assert [run["restart_of"] for run in runs] == [None, first, first, first]
    assert {(run["state"], run["exit_code"], run["restart"], run["given_name"]) for run in runs} == {
        ("failed", 3, "on-failure:3", "again")
    }
    wait_until("the restarts are over", lambda: server.job_status(names[3])["restart_time"] is None)
    assert [run["next_run"] for run in _runs(server)] == [*names[1:], None]
    assert all(server.client("watch", name).stdout.endswith(b" said\n") for name in names)
    assert server.job_status("again")["name"] == names[3]  # the newest has the name
    assert server.client("stop", "again").returncode == 0
    assert len(_runs(server)) == 4


def test_the_pauses_double(server: Server) -> None:
    _start(server, "false", policy="on-failure:4")
    wait_until("the last has ended", lambda: (runs := _runs(server))[4:] and runs[4]["end_time"])
    with RawClient(server, server.ssl / "client") as caller:
        request = pb.ListJobsRequest(name_contains=["again"])
        answer = caller.call(f"/{SERVICE}/ListJobs", request)
    jobs = list(pb.ListJobsResponse.FromString(answer.bodies[0]).jobs)[::-1]
    pauses = [(new.start_time.ToNanoseconds() - old.end_time.ToNanoseconds()) / 1e9 for old, new in pairwise(jobs)]
    for number, pause in enumerate(pauses):
        assert pause >= FIRST_PAUSE_S * 2**number * 0.95, pauses


def test_a_job_that_succeeds_is_not_started_again(server: Server) -> None:
    name = _start(server, "true")
    assert server.client("wait", name).returncode == 0
    with RawClient(server, server.ssl / "client") as caller:
        assert caller.job_status(name, wait_next_run=True).next_run == ""
    assert [run["name"] for run in _runs(server)] == [name]


def test_run_follows_it_through_its_runs(server: Server) -> None:
    command = server.client_command(
        "run", "--restart", "on-failure:2", "--name", "again", "--", "sh", "-c", "echo out; echo err >&2; exit 5"
    )
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)
    names = [run["name"] for run in _runs(server)]
    assert (done.returncode, done.stdout) == (5, b"out\n" * 3)
    assert done.stderr.decode().splitlines() == [
        "err",
        f"telehandler: the job is started again, as {names[1]}",
        "err",
        f"telehandler: the job is started again, as {names[2]}",
        "err",
    ]
    assert server.jidfile().read_text().strip() == names[0]


def test_the_second_interrupt_of_run_ends_the_restarts(server: Server) -> None:
    command = server.client_command("run", "--restart", "on-failure", "--name", "again", "--", "sleep", "1000")
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
        assert client.stderr
        wait_until("it runs", lambda: _runs(server))
        client.send_signal(signal.SIGINT)
        wait_until("it runs again", lambda: (runs := _runs(server))[1:] and runs[1]["state"] == "running")
        assert b"interrupt passed" in client.stderr.readline() + client.stderr.readline() + client.stderr.readline()
        client.send_signal(signal.SIGINT)
        assert client.wait(60) == 137
    assert [run["state"] for run in _runs(server)] == ["failed", "stopped"]


def _stopped(server: Server) -> None:
    """There is no run that is not over, and none will follow."""
    runs = _runs(server)
    assert runs[-1]["end_time"]
    with RawClient(server, server.ssl / "client") as caller:
        assert caller.job_status(runs[-1]["name"], wait_next_run=True).next_run == ""
    assert _runs(server)[len(runs) :] == []
    assert server.job_status(runs[-1]["name"])["restart_time"] is None


def test_a_stop_by_any_run_ends_the_newest_and_the_restarts(server: Server) -> None:
    first = _start(server, "sleep", "1000")
    assert server.client("signal", "--signal", "KILL", "again").returncode == 0
    second = wait_until("it runs again", lambda: [run for run in _runs(server)[1:] if run["state"] == "running"])[0]
    assert server.client("signal", first).stderr.endswith(b"the job has ended\n")
    assert server.client("stop", first).returncode == 0  # as the jidfile has it
    assert server.job_status(second["name"])["state"] == "stopped"
    _stopped(server)


def _waiting(server: Server, pause_s: float) -> dict[str, Any]:
    """The run that waits for its restart, for so long at least."""

    def found() -> dict[str, Any] | None:
        runs = _runs(server)
        waits = runs and runs[-1]["end_time"] and len(runs) >= 1 and FIRST_PAUSE_S * 2 ** (len(runs) - 1) >= pause_s
        return runs[-1] if waits and runs[-1]["restart_time"] else None

    return dict(wait_until("it waits for its restart", found))


def test_a_job_that_waits_for_its_restart_can_be_stopped(server: Server) -> None:
    first = _start(server, "false")
    last = _waiting(server, 1.5)
    assert server.client("stop", first).returncode == 0
    assert _runs(server)[-1]["name"] == last["name"]
    _stopped(server)


def test_rm_needs_force_for_a_job_that_waits_and_removes_what_went_before(server: Server) -> None:
    first = _start(server, "false")
    last = _waiting(server, 6)
    refused = server.client("rm", "again")
    assert (refused.returncode, b"waits for its restart: stop it first" in refused.stderr) == (125, True)
    assert server.client("rm", first).returncode == 0  # a run that is over, and no more than that
    assert server.job_status(last["name"])["restart_time"]
    assert server.client("rm", "-f", last["name"]).returncode == 0
    runs = _runs(server)
    assert [run["next_run"] for run in runs] == [*(run["name"] for run in runs[1:]), last["name"]]
    with RawClient(server, server.ssl / "client") as caller:  # there will be no more
        assert caller.job_status(runs[-1]["name"], wait_next_run=True).next_run == last["name"]
    assert _runs(server) == runs


def test_rm_with_force_of_the_first_run_ends_the_newest(server: Server) -> None:
    first = _start(server, "sh", "-c", "sleep 1000")
    assert server.client("signal", "--signal", "KILL", "again").returncode == 0
    wait_until("it runs again", lambda: [run for run in _runs(server)[1:] if run["state"] == "running"])
    assert server.client("rm", "-f", first).returncode == 0
    (left,) = _runs(server)
    assert (left["restart_of"], left["state"]) == (first, "stopped")
    _stopped(server)


def test_a_first_start_that_fails_is_not_tried_again(server: Server) -> None:
    done = server.client("run", "-d", "--restart", "on-failure", "--name", "again", "--", "/nonexistent")
    assert (done.returncode, done.stdout) == (127, b"")
    assert _runs(server) == []
    with closing(sqlite3.connect(f"file:{server.state}/jobs.sqlite3?mode=ro", uri=True)) as database:
        assert database.execute("SELECT count(*) FROM restart").fetchone() == (0,)


def test_those_that_wait_count_to_their_users_share(make_server: Callable[..., Server]) -> None:
    server = make_server(options=("--max-jobs-per-user", "2"))
    _start(server, "false", name="one")
    _start(server, "sleep", "1000", name="two")
    wait_until("it waits", lambda: FIRST_PAUSE_S * 2 ** (len(_runs(server, "one")) - 1) >= 1.5)

    def refused() -> bool:
        done = server.client("run", "--", "true")
        return done.returncode == 125 and b"1 wait for their restart" in done.stderr

    wait_until("it is refused while the other waits", refused)
    before = len(_runs(server, "one"))
    wait_until("it is started again beside the other", lambda: len(_runs(server, "one")) > before)
    assert server.client("stop", "one").returncode == 0
    assert server.client("run", "--", "true").returncode == 0


def test_another_user_can_end_nothing(server: Server) -> None:
    first = _start(server, "sleep", "1000")
    with RawClient(server, server.ssl / "bubba") as caller:
        for name in (first, NEVER):
            answer = caller.call(f"/{SERVICE}/StopJob", pb.StopJobRequest(name=name))
            assert (answer.code, answer.details) == (Code.NOT_FOUND, "no such job, or not yours")
            answer = caller.call(f"/{SERVICE}/GetJobStatus", pb.GetJobStatusRequest(name=name, wait_next_run=True))
            assert answer.code is Code.NOT_FOUND
    assert json.loads(server.client("status", "-o", "json", first).stdout)["state"] == "running"
    assert server.client("stop", first).returncode == 0


def test_what_is_no_policy_is_refused(server: Server) -> None:
    for policy in ("always", "on-failure:", "on-failure:0", "on-failure:-1", "on-failure:x", "no:1", ""):
        done = server.client("run", "--restart", policy, "--", "true")
        assert (done.returncode, b"must be no, on-failure, or on-failure:N" in done.stderr) == (125, True), policy
