"""R2: the helper is killed, or the whole server: its jobs are lost, history stays, what they left is swept."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from support import sudo_user
from support.cgroups import our_cgroups
from support.checkout import ROOT
from support.job_scripts import TREE
from support.processes import alive, copies_of_unix_sockets, kill, live_processes_with, processes_with
from support.raw_client import SERVICE, RawClient
from support.servers import Server, free_address
from support.wait import wait_until

from telehandler.pb import telehandler_pb2 as pb


@pytest.fixture(params=["root", "sudo"])
def server(request: pytest.FixtureRequest, as_root: None, place: Path, ssl: Path, policy: Path) -> Iterator[Server]:
    """A server of its own for a test, as each of its kinds."""
    if request.param == "root":
        with Server(place, ssl, policy, listen=free_address()) as server:
            yield server
        return
    with (
        sudo_user.installed(place, "install-sudoers") as options,
        Server(place, options.pop("ssl"), None, listen=free_address(), **options) as server,
    ):
        yield server


def test_r2_a_killed_helper_is_replaced_and_its_jobs_are_lost(server: Server) -> None:
    assert server.process is not None
    old = server.detach("sh", "-c", "echo of old; exit 4")
    assert server.client("wait", old).returncode == 4
    name = server.detach("sh", "-c", "echo up; exec sleep 24.57913")
    watcher = server.start_watcher(name)
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == b"up\n"
    before, cgroup = server.children(), server.cgroup.name
    server.process.send_signal(signal.SIGSTOP)  # the supervisor: no new helper yet
    kill(before["helper"])
    _, errors = watcher.communicate(timeout=30)
    assert (watcher.returncode, b"lost" in errors) == (125, True)
    # Meanwhile: the history is there, and a start is told why not.
    assert (server.job_status(name)["state"], server.job_status(name)["reason"]) == ("failed", "lost")
    assert server.job_status(name)["exit_code"] is None
    assert server.job_status(old)["exit_code"] == 4
    assert server.client("watch", old).stdout == b"of old\n"
    assert server.client("watch", name).stdout == b"up\n"
    with RawClient(server, server.ssl / "client") as caller:
        answer = caller.call(f"/{SERVICE}/StartJob", pb.StartJobRequest(argv=[b"true"]))
        assert caller.job_status(name).exit_code == -1  # for those who look at nothing else
    assert answer.code is grpc.StatusCode.UNAVAILABLE
    assert "the root helper has died and is being started again" in answer.details
    command = server.client_command("run", "--", "echo", "at last")
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
        assert client.stderr is not None
        assert b"the start is not confirmed; asking again" in client.stderr.readline()
        server.process.send_signal(signal.SIGCONT)
        assert client.communicate(timeout=30)[0] == b"at last\n"
    assert client.returncode == 0
    wait_until("a new helper starts jobs", lambda: server.runs_jobs())
    after = server.children()
    assert after["api"] == before["api"]
    assert after["helper"] != before["helper"]
    assert after.get("keeper") == before.get("keeper")
    assert not live_processes_with("24.57913")
    assert cgroup not in our_cgroups()
    assert server.client("run", "--", "sh", "-c", "exit 7").returncode == 7


@pytest.mark.parametrize("victims", [("helper",), ("helper", "api"), ("api", "helper")], ids="-".join)
def test_r2_what_a_killed_helper_leaves_is_swept(
    make_server: Callable[..., Server], victims: tuple[str, ...], place: Path
) -> None:
    """Jobs with subtrees, some of them just starting, under load: nothing of them is left, and all are lost."""
    server = make_server(listen=free_address())
    cgroup = server.cgroup.name
    script = TREE.format(mark="28.28427")
    names = [server.detach("bash", "-c", script) for _ in range(3)]
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    starting = [
        subprocess.Popen(server.client_command("run", "-d", "--", "bash", "-c", script), stdout=-3, stderr=-3, cwd=ROOT)
        for _ in range(3)
    ]
    try:
        wait_until("the trees are there", lambda: len(processes_with("28.28427")) >= 60)
        children = server.children()
        for victim in victims:
            os.kill(children[victim], signal.SIGKILL)
        wait_until("a new helper starts jobs", lambda: server.runs_jobs())
    finally:
        burner.kill()
        burner.wait()
        for process in starting:
            process.wait(60)
    assert {server.job_status(name)["reason"] for name in names} == {"lost"}
    assert cgroup not in our_cgroups()
    for text in server.client("ls", "-q", "--state", "running").stdout.decode().split():  # of a start after the kill
        server.client("stop", "--stop-timeout", "0", text)
    wait_until("no process is left", lambda: not live_processes_with("28.28427"))


def test_r2_all_is_killed_and_records_and_logs_are_there_after(make_server: Callable[..., Server]) -> None:
    """As after a power cut: supervisor, keeper, helper, api, all at once; the next start sweeps and knows."""
    server = make_server(listen=free_address())
    cgroup = server.cgroup.name
    old = server.detach("sh", "-c", "echo of old; exit 4")
    assert server.client("wait", old).returncode == 4
    name = server.detach("bash", "-c", TREE.format(mark="31.41592"))
    wait_until("the tree is there", lambda: len(processes_with("31.41592")) >= 20)
    wait_until("its output too", lambda: server.job_status(name)["stdout_bytes"] == 3)
    assert server.process is not None
    pids = [server.process.pid, *server.children().values()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # so that none sees another's end before its own
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    server.process.wait()
    wait_until("no process is left", lambda: not live_processes_with("31.41592"))
    assert cgroup in our_cgroups()
    server.start()
    assert (server.job_status(name)["state"], server.job_status(name)["reason"]) == ("failed", "lost")
    assert server.client("watch", name).stdout == b"up\n"
    assert server.client("watch", old).stdout == b"of old\n"
    assert cgroup not in our_cgroups()
    assert server.runs_jobs()


def test_r2_a_helper_that_dies_again_and_again_ends_the_server(make_server: Callable[..., Server]) -> None:
    server = make_server()
    assert server.process is not None
    seen: set[int] = set()

    def gone() -> bool:
        assert server.process is not None
        pid = server.children().get("helper", 0)
        if pid and pid not in seen and (wait_for := our_cgroups()) and f"telehandler.{pid}" in wait_for:
            seen.add(pid)
            os.kill(pid, signal.SIGKILL)
        return server.process.poll() is not None

    wait_until("the server gives up", gone)
    assert server.process.returncode == 1
    assert len(seen) >= 5  # more when one was killed before it had answered
    assert "the root helper died 5 times in 60 s: giving up" in server.log_text()
    assert "Traceback" not in server.log_text()
    server.start()  # sweeps what the last of them left
    assert not {f"telehandler.{pid}" for pid in seen} & our_cgroups()


def test_r2_a_helper_that_ends_by_itself_is_not_started_again(server: Server) -> None:
    """A violation would come again. Here the test sends it, on a copy of the api's socket."""
    assert server.process is not None
    (link,) = copies_of_unix_sockets(server.children()["api"])
    with link:
        link.send(b"no message")
        assert server.process.wait(30) == 1
    assert "ended by itself (exit status 3)" in server.log_text()


def test_r2_the_keeper_has_nothing_and_ends_with_the_server(make_server: Callable[..., Server]) -> None:
    server = make_server()
    keeper, helper = server.children()["keeper"], server.children()["helper"]
    for pid in (keeper, helper):
        fds = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
        flags = [Path(f"/proc/{pid}/fdinfo/{fd}").read_text().split("flags:")[1].split()[0] for fd in fds if fd > 2]
        assert all(int(flag, 8) & os.O_CLOEXEC for flag in flags)
    links = [os.readlink(path) for path in Path(f"/proc/{keeper}/fd").iterdir()]
    assert len([link for link in links if link.startswith("socket:")]) == 1
    assert Path(f"/proc/{helper}/environ").read_bytes() == b""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(keeper, number)
    assert server.runs_jobs()
    assert server.process is not None
    server.process.kill()
    wait_until("all have ended", lambda: not alive(keeper) and not alive(helper))
