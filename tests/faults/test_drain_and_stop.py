"""R19: SIGTERM drains or kills, within a bound; a second server on the same state directory is refused."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.cgroups import our_cgroups
from support.checkout import ROOT
from support.library_client import client_of
from support.processes import alive, processes_with
from support.servers import Server, free_address
from support.wait import wait_until

# A job with a subtree: 20 processes, sessions of their own, a pipe held by all.
TREE = "for i in $(seq 20); do setsid sleep {mark} & done; echo up; wait"


def status(server: Server, name: str) -> dict[str, Any]:
    done = server.client("status", "-o", "json", name)
    assert done.returncode == 0, done.stderr
    fields: dict[str, Any] = json.loads(done.stdout)
    return fields


def watch(server: Server, name: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        server.client_command("watch", name), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def works(server: Server) -> bool:
    return server.client("run", "--", "true").returncode == 0


def own_cgroup(server: Server) -> str:
    return f"telehandler.{server.children()['helper']}"


def log(server: Server) -> str:
    return server.log.read_text()


@pytest.fixture
def fresh(make_server: Callable[..., Server]) -> Callable[..., Server]:
    def make(*options: str, **more: Any) -> Server:
        return make_server(listen=free_address(), options=options, **more)

    return make


# SIGUSR2 has it write a line, SIGUSR1 end.
WAITS = "trap 'echo still' USR2; trap 'echo end; exit 5' USR1; echo up; while :; do sleep 0.05; done"


def test_r19_a_drain_refuses_starts_and_waits_for_jobs(fresh: Callable[..., Server]) -> None:
    server = fresh("--on-stop", "drain", "--drain-timeout", "60s")
    assert server.process is not None
    name = server.detach("bash", "-c", WAITS)
    watcher = watch(server, name)
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == b"up\n"
    server.process.terminate()
    wait_until("it drains", lambda: _refused(server))
    assert status(server, name)["state"] == "running"
    assert server.process.poll() is None
    os.kill(server.children()["api"], signal.SIGKILL)  # the next one drains on
    wait_until("it drains on", lambda: _refused(server))
    signal_job(server, name, signal.SIGUSR2)
    assert watcher.stdout.readline() == b"still\n"  # it is connected again
    signal_job(server, name, signal.SIGUSR1)
    output, errors = watcher.communicate(timeout=30)
    assert (watcher.returncode, output) == (5, b"end\n"), errors
    assert server.process.wait(30) == 0
    server.start()
    assert (status(server, name)["state"], status(server, name)["exit_code"]) == ("failed", 5)


def _refused(server: Server) -> bool:
    """Whether the server starts no more jobs, and says so: once, not after a client has asked again and again."""
    refused = server.client("run", "--", "true")
    said = refused.stderr.decode()
    return (
        refused.returncode == 125 and "the server is ending, and starts no more" in said and "asking again" not in said
    )


def signal_job(server: Server, name: str, number: int) -> None:
    client = client_of(server)
    client.signal(name, number)
    client.close()


@pytest.mark.parametrize("how", ["kill", "timeout", "twice", "interrupt"])
def test_r19_sigterm_kills_and_tells_the_watchers(fresh: Callable[..., Server], how: str) -> None:
    """At once, at the drain's bound, and at a second signal."""
    times = {"kill": (), "timeout": ("--drain-timeout", "1s"), "twice": (), "interrupt": ()}[how]
    server = fresh(*(() if how == "kill" else ("--on-stop", "drain", *times)))
    assert server.process is not None
    cgroup = own_cgroup(server)
    name = server.detach("bash", "-c", "trap '' TERM; echo up; " + TREE.format(mark="26.45751"))
    watcher = watch(server, name)
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == b"up\n"
    server.process.terminate()
    if how in ("twice", "interrupt"):
        wait_until("it drains", lambda: "draining" in log(server))
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM if how == "twice" else signal.SIGINT)
    _, errors = watcher.communicate(timeout=30)
    assert watcher.returncode == 137, errors
    assert server.process.wait(30) == 0
    assert not [pid for pid in processes_with("26.45751") if alive(pid)]
    assert cgroup not in our_cgroups()
    server.start()
    assert (status(server, name)["state"], status(server, name)["signal"]) == ("stopped", 9)


def test_r19_a_second_server_on_the_state_directory_is_refused(
    make_server: Callable[..., Server], place: Path, ssl: Path, policy: Path
) -> None:
    server = make_server()
    second = Server(place, ssl, policy, state=server.state)
    with pytest.raises(AssertionError, match="125: telehandler: another server uses the state directory"):
        second.start()
    second.stop()
    assert works(server)
