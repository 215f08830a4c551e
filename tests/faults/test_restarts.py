"""Restarts outlive the api, the helper and a server that was killed; an orderly end of the server ends them."""

import os
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.servers import Server, free_address
from support.state_fixtures import list_jobs
from support.wait import wait_until

Make = Callable[..., Server]


def _start(server: Server, *command: str) -> str:
    done = server.client("run", "-d", "--restart", "on-failure", "-e", "WORD=a b", "--", *command)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


def _runs(server: Server) -> list[dict[str, Any]]:
    return list_jobs(server)[::-1]


def _kept(server: Server) -> int:
    """How many jobs the server means to start again, as it would know after a crash."""
    with closing(sqlite3.connect(f"file:{server.state}/jobs.sqlite3?mode=ro", uri=True)) as database:
        return int(database.execute("SELECT count(*) FROM restart").fetchone()[0])


def _linked(runs: list[dict[str, Any]]) -> None:
    """One chain: no run was started twice, and none is missing."""
    assert [run["restarts"] for run in runs] == list(range(len(runs)))
    assert [run["next_run"] for run in runs[:-1]] == [run["name"] for run in runs[1:]]
    assert {run["restart_of"] for run in runs[1:]} == {runs[0]["name"]}


def _one_runs(server: Server, more_than: int) -> list[dict[str, Any]]:
    """The runs, once there are more than so many, the last of which runs."""

    def found() -> list[dict[str, Any]] | None:
        if server.client("ls", "-q").returncode:  # no api now
            return None
        runs = _runs(server)
        return runs if len(runs) > more_than and runs[-1]["state"] == "running" else None

    runs = wait_until("it runs again", found)
    return list(runs)


def test_a_run_that_fails_after_the_api_was_killed_is_started_again(make_server: Make) -> None:
    server = make_server(listen=free_address())
    _start(server, "sh", "-c", 'echo "$WORD"; exec sleep 1000')
    for number in range(3):
        (*_, last) = _one_runs(server, number)
        os.kill(server.children()["api"], signal.SIGKILL)
        wait_until("there is an api", lambda: server.client("ls").returncode == 0)
        assert server.client("signal", "--signal", "KILL", last["name"]).returncode == 0
    runs = _one_runs(server, 3)
    _linked(runs)
    assert [server.client("watch", "-F", run["name"]).stdout for run in runs] == [b"a b\n"] * 4
    assert server.client("stop", runs[0]["name"]).returncode == 0
    assert (_runs(server)[-1]["state"], _kept(server)) == ("stopped", 0)


def test_kills_of_the_api_at_any_time_start_no_run_twice_and_lose_none(make_server: Make) -> None:
    """The job fails at once: the api dies in pauses, starts and ends."""
    server = make_server(listen=free_address())
    _start(server, "sh", "-c", "exit 1")
    for _ in range(6):
        wait_until("there is an api", lambda: server.client("ls").returncode == 0)
        before = len(_runs(server))
        wait_until("it goes on", lambda before=before: len(_runs(server)) > before)  # type: ignore[misc]
        os.kill(server.children()["api"], signal.SIGKILL)
    wait_until("there is an api", lambda: server.client("ls").returncode == 0)
    assert server.client("stop", _runs(server)[0]["name"]).returncode == 0
    runs = _runs(server)
    _linked(runs)
    assert {run["state"] for run in runs} == {"failed"}
    assert _kept(server) == 0


def test_a_stop_outlives_the_api(make_server: Make) -> None:
    server = make_server(listen=free_address())
    first = _start(server, "sleep", "1000")
    assert server.client("stop", first).returncode == 0
    os.kill(server.children()["api"], signal.SIGKILL)
    wait_until("there is an api", lambda: server.client("ls").returncode == 0)
    assert (_kept(server), [run["state"] for run in _runs(server)]) == (0, ["stopped"])


def test_a_stop_in_its_grace_outlives_the_api(make_server: Make) -> None:
    """The job ends by itself, with a failure, when there is another api: it was stopped all the same."""
    server = make_server(listen=free_address())
    first = _start(server, "sh", "-c", "trap '' TERM; echo up; exec sleep 1000")
    wait_until("it is up", lambda: server.client("watch", "-F", first).stdout)
    with subprocess.Popen(server.client_command("stop", "-t", "1", first), stderr=subprocess.DEVNULL) as stop:
        wait_until("it is recorded", lambda: _stopping(server))
        os.kill(server.children()["api"], signal.SIGKILL)
        stop.wait(60)
    wait_until("there is an api", lambda: server.client("ls").returncode == 0)
    assert server.client("wait", first).returncode == 137
    wait_until("the restarts are over", lambda: _kept(server) == 0)
    assert [run["state"] for run in _runs(server)] == ["stopped"]


def _stopping(server: Server) -> bool:
    with closing(sqlite3.connect(f"file:{server.state}/jobs.sqlite3?mode=ro", uri=True)) as database:
        return any("stop_by_ns" in record for (record,) in database.execute("SELECT record FROM job"))


def test_a_job_that_is_lost_with_its_helper_is_started_again(make_server: Make) -> None:
    server = make_server()
    _start(server, "sleep", "1000")
    os.kill(server.children()["helper"], signal.SIGKILL)
    runs = _one_runs(server, 1)
    assert [run["reason"] for run in runs] == ["lost", "none"]
    _linked(runs)


def test_a_job_is_started_again_by_the_next_server_when_this_one_was_killed(make_server: Make, place: Path) -> None:
    state = Path(tempfile.mkdtemp(prefix="state-", dir=place))
    server = make_server(state=state)
    _start(server, "sleep", "1000")
    assert server.process
    pids = server.children()
    os.kill(pids["api"], signal.SIGSTOP)  # it shall not record anything any more
    server.process.kill()
    server.process.wait()
    os.kill(pids["api"], signal.SIGKILL)
    wait_until("the helper has gone", lambda: not Path(f"/proc/{pids['helper']}").exists())
    runs = _one_runs(make_server(state=state), 1)
    assert [run["reason"] for run in runs] == ["lost", "none"]


@pytest.mark.parametrize("command", [("sleep", "1000"), ("false",)], ids=["runs", "waits"])
def test_an_orderly_end_of_the_server_ends_the_restarts(make_server: Make, place: Path, command: tuple[str]) -> None:
    state = Path(tempfile.mkdtemp(prefix="state-", dir=place))
    server = make_server(state=state)
    _start(server, *command)
    if command[0] == "false":
        wait_until("it waits", lambda: len(_runs(server)) >= 4)
    assert server.stop() == 0
    server = make_server(state=state)
    assert _kept(server) == 0
    assert {run["state"] for run in _runs(server)} <= {"stopped", "failed"}
    assert _runs(server)[-1]["restart_time"] is None
