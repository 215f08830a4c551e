"""`client exec`: further commands in a job that runs."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from support.raw_client import SERVICE, RawClient
from support.servers import Server, free_address
from support.wait import wait_until

from telehandler.pb import telehandler_pb2 as pb


@pytest.fixture
def job(server: Server) -> Iterator[str]:
    """A job that has written a file and waits."""
    name = server.detach("sh", "-c", "echo of the job >/tmp/file; echo up; exec sleep 1000")
    wait_until("it is up", lambda: server.client("watch", "-F", name).stdout == b"up\n")
    yield name
    server.client("rm", "-f", name)


def _exec(server: Server, job: str, *words: str, user: str = "client") -> "subprocess.CompletedProcess[bytes]":
    return server.client("exec", *words[: words.index("--")], job, *words[words.index("--") :], user=user)


def test_it_sees_the_jobs_files_and_processes_and_has_its_own_output_and_code(server: Server, job: str) -> None:
    done = _exec(server, job, "--", "sh", "-c", "cat /tmp/file; pgrep -x sleep; echo to stderr >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"of the job\n2\n", b"to stderr\n")
    assert _exec(server, job, "--", "sh", "-c", "kill -9 $$").returncode == 128 + signal.SIGKILL
    missing = _exec(server, job, "--", "no-such")
    assert (missing.returncode, missing.stdout) == (127, b"")
    assert server.job_status(job)["state"] == "running"
    assert server.client("watch", "-F", job).stdout == b"up\n"


def test_variables_and_directory_are_its_own(server: Server, job: str) -> None:
    done = _exec(server, job, "-e", "A=b", "-w", "/tmp", "--", "sh", "-c", "echo $A; pwd")
    assert done.stdout == b"b\n/tmp\n"


def test_it_is_a_job_of_its_own_that_ls_shows_with_its_job(server: Server, job: str) -> None:
    name = _exec(server, job, "-d", "--", "sh", "-c", "echo started; exec sleep 1000").stdout.decode().strip()
    wait_until("it writes", lambda: server.client("watch", "-F", name).stdout == b"started\n")
    assert server.job_status(name)["exec_in"] == job
    assert server.job_status(job)["exec_in"] is None
    assert name.encode() not in server.client("ls", "-q").stdout.split()
    assert server.client("ls", "-q", "--in", job).stdout.split() == [name.encode()]
    uuid = name.rpartition("/")[2]
    assert server.client("stop", uuid[:13]).returncode == 0
    assert server.job_status(name)["state"] == "stopped"
    assert server.job_status(job)["state"] == "running"


@pytest.mark.parametrize("verb", [("stop",), ("rm", "-f")])
def test_it_ends_with_the_job_and_goes_with_it(server: Server, job: str, verb: tuple[str, ...]) -> None:
    name = _exec(server, job, "-d", "--", "sleep", "1000").stdout.decode().strip()
    assert server.client(*verb, job).returncode == 0
    if verb == ("stop",):
        wait_until("it has ended", lambda: server.job_status(name)["state"] == "failed")
        assert server.job_status(name)["signal"] == signal.SIGKILL
        assert server.client("rm", job).returncode == 0
    assert server.client("status", name).returncode == 125
    assert not list((server.state / "jobs").glob(f"{name.rpartition('/')[2]}*"))


def test_it_goes_on_through_an_api_that_is_killed(make_server: Callable[..., Server]) -> None:
    server = make_server(listen=free_address())
    job = server.detach("sleep", "1000")
    script = "trap 'echo end; exit 9' TERM; echo up; while :; do sleep 0.05; done"
    uuid = _exec(server, job, "-d", "--", "sh", "-c", script).stdout.decode().strip()
    wait_until("it is up", lambda: server.client("watch", "-F", uuid).stdout == b"up\n")
    os.kill(server.children()["api"], signal.SIGKILL)
    wait_until("an api is back", lambda: server.client("stop", uuid).returncode == 0)
    assert server.client("watch", uuid).stdout == b"up\nend\n"
    assert server.job_status(uuid)["exec_in"] == job
    assert server.job_status(job)["state"] == "running"
    assert _exec(server, job, "--", "true").returncode == 0


def test_who_may_not_and_where_there_is_nothing_to_join(server: Server, job: str) -> None:
    other = _exec(server, job, "--", "true", user="bubba")
    assert (other.returncode, b"no such job, or not yours" in other.stderr) == (125, True)
    name = _exec(server, job, "-d", "--", "sleep", "1000").stdout.decode().strip()
    nested = _exec(server, name, "--", "true")
    assert (nested.returncode, b"itself a command in a job" in nested.stderr) == (125, True)
    admin = _exec(server, job, "--", "true", user="admin")
    assert (admin.returncode, b"of its caller's alone" in admin.stderr) == (125, True)
    server.client("stop", job)
    ended = _exec(server, job, "--", "true")
    assert (ended.returncode, b"the job has ended" in ended.stderr) == (125, True)


@pytest.mark.parametrize(
    "change",
    [
        {"limits": pb.Limits(memory_bytes=1 << 20)},
        {"profile": "host"},
        {"validate_only": True},
        {"restart_policy": pb.RESTART_POLICY_ON_FAILURE},
    ],
)
def test_limits_and_a_profile_are_the_jobs(server: Server, ssl: Path, job: str, change: dict[str, object]) -> None:
    with RawClient(server, ssl / "client") as client:
        request = pb.StartJobRequest(command="true", exec_in_job=job, **change)  # type: ignore[arg-type]
        assert client.call(f"/{SERVICE}/StartJob", request).code is grpc.StatusCode.INVALID_ARGUMENT
        assert server.runs_jobs()


def test_a_request_id_starts_one(server: Server, ssl: Path, job: str) -> None:
    request_id = "4f1c2a9e-0b1d-4c52-9d0a-3f6f1f5b7a11"
    with RawClient(server, ssl / "client") as client:
        names = {client.start("true", exec_in_job=job, request_id=request_id).name for _ in range(3)}
    assert len(names) == 1
    listed = json.loads(server.client("ls", "-o", "json", "--in", job).stdout)
    assert {found["name"] for found in listed["jobs"]} == names
