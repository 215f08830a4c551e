"""Lists, waiting and removal, with a real server and client."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from support.checkout import ROOT
from support.processes import alive, processes_with
from support.raw_client import SERVICE, RawClient
from support.servers import Server, free_address
from support.state_fixtures import list_jobs, output_directory
from support.wait import wait_until

from telehandler.client.connection import Client
from telehandler.pb import telehandler_pb2 as pb

Make = Callable[..., Server]
NO_JOB = b"no such job, or not yours\n"


def test_ls_shows_ones_own_jobs_the_newest_first(make_server: Make) -> None:
    server = make_server(admins=("admin",))
    assert server.client("ls").stdout.split() == b"JOB STATE REASON EXIT STARTED COMMAND".split()
    long = server.detach("sh", "-c", "sleep 1000", "x" * 100)
    assert server.client("run", "--", "sh", "-c", "exit 7").returncode == 7
    failed = server.jidfile().read_text().strip()
    nasty = server.detach("printf", "\x1b[31m")
    other = server.detach("true", user="bubba")
    assert server.client("wait", nasty).returncode == 0

    table = server.client("ls").stdout.decode().splitlines()
    assert [line.split()[0] for line in table[1:]] == [name.rpartition("/")[2][:8] for name in (nasty, failed, long)]
    assert [line.split()[1:3] for line in table[1:3]] == [["completed", "exited"], ["failed", "exited"]]
    assert table[1].endswith("printf '\\x1b[31m'")
    assert (table[2].split()[3], table[2].endswith("sh -c 'exit 7'")) == ("7", True)
    assert (table[3].split()[1], table[3][-10:]) == ("running", "xxxxxxx...")
    jobs = list_jobs(server)
    assert [job["name"] for job in jobs] == [nasty, failed, long]
    assert (jobs[1]["exit_code"], jobs[1]["command"], jobs[2]["exit_code"]) == (7, ["sh", "-c", "exit 7"], None)
    statuses = [json.loads(server.client("status", "-o", "json", job["name"]).stdout) for job in jobs]
    assert [{"schema": 1} | job for job in jobs] == statuses

    assert server.client("ls", "-q").stdout.decode().split() == [nasty, failed, long]
    assert server.client("ls", "-q", "--state", "failed", "--state", "running").stdout.decode().split() == [
        failed,
        long,
    ]
    assert server.client("ls", "-q", "--state", "stopped").stdout == b""
    first = server.client("ls", "-q", "--limit", "1")
    assert (first.stdout.decode().split(), b"--limit" in first.stderr) == ([nasty], True)
    assert server.client("ls", "-q", "--limit", "3").stderr == b""
    assert server.client("ls", "-q", user="bubba").stdout.decode().split() == [other]
    assert server.client("ls", "-q", user="admin").stdout == b""
    assert server.client("ls", "-q", "--all", user="admin").stdout.decode().split() == [other, nasty, failed, long]
    assert other in server.client("ls", "--all", user="admin").stdout.decode()  # the whole name: whose it is counts
    assert server.stop() == 0


def _trapper(server: Server, code: int) -> str:
    """A job that runs until it is stopped, and then exits with `code`."""
    name = server.detach("bash", "-c", f"mkfifo /tmp/f; trap 'exit {code}' TERM; echo up; read x <>/tmp/f")
    wait_until("its trap is set", lambda: b"stdout bytes       3" in server.client("status", name).stdout)
    return name


def test_wait_returns_when_the_job_has_ended_with_its_exit_code(server: Server) -> None:
    name = _trapper(server, 7)
    waiter = subprocess.Popen(server.client_command("wait", name), cwd=ROOT, stdout=subprocess.PIPE)
    with RawClient(server, server.ssl / "client") as caller:
        call = caller.start_call(f"/{SERVICE}/GetJobStatus", pb.GetJobStatusRequest(name=name, wait=True), timeout=0.5)
        with pytest.raises(grpc.RpcError):
            next(call)
        assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # no answer while it runs
        call = caller.start_call(f"/{SERVICE}/GetJobStatus", pb.GetJobStatusRequest(name=name, wait=True))
        assert waiter.poll() is None
        assert server.client("stop", name).returncode == 0
        status = pb.JobStatus.FromString(next(call))
    assert (status.state, status.exit_code) == (pb.JOB_STATE_STOPPED, 7)
    assert (waiter.communicate(timeout=30)[0], waiter.returncode) == (b"", 7)
    assert server.client("wait", name).returncode == 7  # at once


def test_of_several_the_first_code_that_is_not_0(server: Server) -> None:
    good, five, killed = (server.detach("sh", "-c", text) for text in ("exit 0", "exit 5", "kill -KILL $$"))
    assert server.client("wait", good, good).returncode == 0
    done = server.client("wait", good, killed, five)
    assert (done.returncode, done.stdout) == (137, b"")
    assert done.stderr.decode() == f"telehandler: the job {killed} was ended by SIGKILL\n"
    done = server.client("wait", "ffffffff", five)
    assert (done.returncode, done.stderr) == (125, b"telehandler: ffffffff: " + NO_JOB)
    assert server.client("wait", five, user="bubba").stderr.endswith(NO_JOB)


def test_a_wait_goes_on_when_the_api_is_killed(make_server: Make) -> None:
    server = make_server(listen=free_address())
    name = _trapper(server, 9)
    files = [str(server.ssl / file) for file in ("client.pem", "client-key.pem", "root.pem")]
    waits = threading.Event()

    class Watched(Client):
        """Tells when it begins to wait."""

        def _status(self, name: str, wait: bool) -> pb.JobStatus:
            if wait:
                waits.set()
            return super()._status(name, wait)

    client = Watched(f"localhost:{server.port}", *files)
    notes: list[str] = []
    with ThreadPoolExecutor() as pool:
        status = pool.submit(client.status, name, True, notes.append)
        assert waits.wait(30)
        os.kill(server.children()["api"], signal.SIGKILL)
        wait_until("it answers", lambda: server.client("stop", name).returncode == 0)
        assert status.result(60).exit_code == 9
    client.close()
    assert notes
    assert "connecting again" in notes[0]


def test_rm_removes_jobs_that_have_ended_and_their_output(server: Server) -> None:
    first, second = (server.detach("echo", word) for word in ("one", "two"))
    assert server.client("wait", first, second).returncode == 0
    running = server.detach("sleep", "17.17171")
    assert output_directory(server, first).is_dir()
    for _ in range(2):
        other = server.client("rm", "-f", first, user="bubba")
        assert (other.returncode, other.stderr.endswith(NO_JOB)) == (125, True)

    done = server.client("rm", first, running, "ffffffff", second)
    assert (done.returncode, done.stdout.decode().split()) == (125, [first, second])
    refused, missing = done.stderr.decode().splitlines()
    assert refused == f"telehandler: {running}: the job is running: stop it first, or use force"
    assert missing == "telehandler: ffffffff: no such job, or not yours"
    for name in (first, second):
        assert server.client("watch", name).stderr == server.client("rm", name).stderr.replace(
            f"{name}: ".encode(), b""
        )
        assert [*output_directory(server, name).parent.glob(f"{output_directory(server, name).name}*")] == []
    pids = processes_with("17.17171")
    assert pids
    assert b"running" in server.client("status", running).stdout

    assert server.client("rm", "--force", running).stdout.decode().split() == [running]
    assert not [pid for pid in pids if alive(pid)]
    assert server.client("status", running).stderr.endswith(NO_JOB)
    assert not output_directory(server, running).exists()


def test_who_reads_a_jobs_output_reads_on_when_it_is_removed(server: Server) -> None:
    size = 100 << 20
    name = server.detach("head", "-c", str(size), "/dev/zero")
    assert server.client("wait", name).returncode == 0
    with subprocess.Popen(server.client_command("watch", name), cwd=ROOT, stdout=subprocess.PIPE) as watcher:
        assert watcher.stdout is not None
        read = len(watcher.stdout.read(1))
        assert server.client("rm", name).returncode == 0
        assert not output_directory(server, name).exists()
        while piece := watcher.stdout.read(1 << 22):
            read += len(piece)
    assert (watcher.returncode, read) == (0, size)


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        (pb.ListJobsRequest(page_size=-1), "page size"),
        (pb.ListJobsRequest(page_token="x"), "page token"),
        (pb.ListJobsRequest(page_token="A" * 44), "page token"),
        (pb.ListJobsRequest(page_token="é" * 44), "page token"),
        (pb.ListJobsRequest(page_token="long" * 20_000), "page token"),
        (pb.ListJobsRequest(parent="bubba"), "users/{user}"),
        (pb.ListJobsRequest(parent="users/"), "users/{user}"),
        (pb.ListJobsRequest(parent="users/tele-tester/jobs"), "users/{user}"),
        (pb.ListJobsRequest(states=["JOB_STATE_UNSPECIFIED"]), "JOB_STATE_RUNNING"),
        (pb.ListJobsRequest(states=[99]), "JOB_STATE_RUNNING"),  # type: ignore[list-item]  # as a newer client might
    ],
    ids=lambda value: str(value)[:40].strip().replace("\n", " "),
)
def test_a_list_that_cannot_be_is_refused(server: Server, request_: pb.ListJobsRequest, word: str) -> None:
    with RawClient(server, server.ssl / "client") as caller:
        answer = caller.call(f"/{SERVICE}/ListJobs", request_)
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    assert word in answer.details


def test_a_page_token_is_for_one_list(server: Server) -> None:
    names = {server.detach("true") for _ in range(3)}
    with RawClient(server, server.ssl / "client") as caller:

        def page(**fields: Any) -> pb.ListJobsResponse:
            answer = caller.call(f"/{SERVICE}/ListJobs", pb.ListJobsRequest(**fields))
            assert answer.code is grpc.StatusCode.OK, answer
            return pb.ListJobsResponse.FromString(answer.bodies[0])

        first = page(page_size=2)
        second = page(page_size=1, page_token=first.next_page_token)
        assert (len(first.jobs), len(second.jobs)) == (2, 1)
        assert {job.name for answer in (first, second) for job in answer.jobs} == names
        assert page(page_size=5000).jobs[:3] == [*first.jobs, *second.jobs]
        assert page(parent="users/tele-tester", page_size=2, page_token=first.next_page_token).jobs[0] == second.jobs[0]
        for other in ({"states": ["JOB_STATE_COMPLETED"]}, {"parent": "users/-"}):
            request = pb.ListJobsRequest(page_token=first.next_page_token, **other)
            with RawClient(server, server.ssl / "admin") as admin:
                assert admin.call(f"/{SERVICE}/ListJobs", request).code is grpc.StatusCode.INVALID_ARGUMENT
