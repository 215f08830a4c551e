"""R25: a signal that reaches every process of the server at once, as timeout(1), a terminal or systemd send it."""

import os
import signal
import subprocess
from collections.abc import Callable

import pytest
from support.job_scripts import UNTIL_SIGUSR1
from support.library_client import signal_job
from support.processes import alive
from support.servers import Server, free_address
from support.wait import wait_until


def _signal_all(server: Server, number: int) -> None:
    """The server, its keeper, helper and api; not the jobs, which have cgroups of their own."""
    assert server.process is not None
    for pid in (*server.children().values(), server.process.pid):
        os.kill(pid, number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT], ids=lambda number: number.name)
def test_r25_a_signal_to_all_stops_in_order(make_server: Callable[..., Server], number: signal.Signals) -> None:
    server = make_server(listen=free_address())
    assert server.process is not None
    name = server.detach("sh", "-c", "echo up; exec sleep 1000")
    watcher = server.start_watcher(name)
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == b"up\n"
    _signal_all(server, number)
    _, errors = watcher.communicate(timeout=30)
    assert (watcher.returncode, b"lost" in errors) == (137, False), errors
    assert server.process.wait(30) == 0, server.log_text()
    assert "died" not in server.log_text()
    server.start()
    assert server.job_status(name)["state"] == "stopped"
    server.stop()


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
def test_r25_a_signal_to_all_drains_in_order(make_server: Callable[..., Server], times: int) -> None:
    """timeout(1) signals its child, and then its group: the server gets one order twice."""
    server = make_server(listen=free_address(), options=("--on-stop", "drain", "--drain-timeout", "60s"))
    assert server.process is not None
    name = server.detach("bash", "-c", UNTIL_SIGUSR1)
    watcher = server.start_watcher(name)
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == b"up\n"
    before = server.children()
    for _ in range(times):
        _signal_all(server, signal.SIGTERM)
    wait_until("it drains", lambda: "draining" in server.log_text())
    assert server.job_status(name)["state"] == "running"
    assert {role: alive(pid) for role, pid in before.items()} == dict.fromkeys(before, True)
    signal_job(server, name, signal.SIGUSR1)
    output, errors = watcher.communicate(timeout=30)
    assert (watcher.returncode, output) == (5, b"end\n"), errors
    assert server.process.wait(30) == 0
    server.start()
    assert (server.job_status(name)["state"], server.job_status(name)["exit_code"]) == ("failed", 5)
    server.stop()


def test_r25_under_timeout_a_drain_drains(make_server: Callable[..., Server]) -> None:
    server = make_server(listen=free_address())
    server.stop()
    command = ("timeout", "600", *server.command)
    options = ("--on-stop", "drain", "--drain-timeout", "60s")
    server = make_server(listen=free_address(), command=command, options=options)
    assert server.process is not None
    name = server.detach("bash", "-c", UNTIL_SIGUSR1)
    server.process.terminate()  # timeout passes it to its child and to its group
    wait_until("it drains", lambda: "draining" in server.log_text())
    signal_job(server, name, signal.SIGUSR1)
    assert server.process.wait(30) in (0, 124)
    server.command = server.command[2:]
    server.start()
    assert (server.job_status(name)["state"], server.job_status(name)["exit_code"]) == ("failed", 5)
    server.stop()


def test_r25_the_api_alone_ends_by_no_signal_of_others(make_server: Callable[..., Server]) -> None:
    server = make_server()
    api = server.children()["api"]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        os.kill(api, number)
    assert server.client("run", "--", "true").returncode == 0
    assert server.children()["api"] == api
    assert server.stop() == 0
    assert subprocess.run(["ps", "-p", str(api)], capture_output=True, check=False).returncode == 1
