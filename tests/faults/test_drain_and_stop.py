"""R19: SIGTERM drains or kills, within a bound; a second server on the same state directory is refused."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cgroups import our_cgroups
from support.job_scripts import TREE, UNTIL_SIGUSR1
from support.library_client import signal_job
from support.processes import live_processes_with
from support.servers import Server, free_address
from support.wait import wait_until

from telehandler.supervisor.restarts import ONE_ORDER_S


def test_r19_a_drain_refuses_starts_and_waits_for_jobs(make_server: Callable[..., Server]) -> None:
    server = make_server(listen=free_address(), options=("--on-stop", "drain", "--drain-timeout", "60s"))
    assert server.process is not None
    name = server.detach("bash", "-c", UNTIL_SIGUSR1)
    watcher = server.start_watcher(name)
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == b"up\n"
    server.process.terminate()
    wait_until("it drains", lambda: _refused(server))
    assert server.job_status(name)["state"] == "running"
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
    assert (server.job_status(name)["state"], server.job_status(name)["exit_code"]) == ("failed", 5)


def _refused(server: Server) -> bool:
    """Whether the server starts no more jobs, and says so: once, not after a client has asked again and again."""
    refused = server.client("run", "--", "true")
    said = refused.stderr.decode()
    return (
        refused.returncode == 125 and "the server is ending, and starts no more" in said and "asking again" not in said
    )


@pytest.mark.parametrize("how", ["kill", "timeout", "twice", "interrupt"])
def test_r19_sigterm_kills_and_tells_the_watchers(make_server: Callable[..., Server], how: str) -> None:
    """At once, at the drain's bound, and at a second signal."""
    times = {"kill": (), "timeout": ("--drain-timeout", "1s"), "twice": (), "interrupt": ()}[how]
    options = () if how == "kill" else ("--on-stop", "drain", *times)
    server = make_server(listen=free_address(), options=options)
    assert server.process is not None
    cgroup = server.cgroup.name
    name = server.detach("bash", "-c", "trap '' TERM; echo up; " + TREE.format(mark="26.45751"))
    watcher = server.start_watcher(name)
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == b"up\n"
    server.process.terminate()
    if how in ("twice", "interrupt"):
        wait_until("it drains", lambda: "draining" in server.log_text())
        assert server.process.poll() is None
        if how == "twice":  # two at once are one order: see test_signals_to_all
            began = time.monotonic()
            wait_until("it is another order", lambda: time.monotonic() > began + 2 * ONE_ORDER_S)
        server.process.send_signal(signal.SIGTERM if how == "twice" else signal.SIGINT)
    _, errors = watcher.communicate(timeout=30)
    assert watcher.returncode == 137, errors
    assert server.process.wait(30) == 0
    assert not live_processes_with("26.45751")
    assert cgroup not in our_cgroups()
    server.start()
    assert (server.job_status(name)["state"], server.job_status(name)["signal"]) == ("stopped", 9)


def test_r19_a_second_server_on_the_state_directory_is_refused(
    make_server: Callable[..., Server], place: Path, ssl: Path, policy: Path
) -> None:
    server = make_server()
    second = Server(place, ssl, policy, state=server.state)
    with pytest.raises(AssertionError, match="125: telehandler: another server uses the state directory"):
        second.start()
    second.stop()
    assert server.runs_jobs()
