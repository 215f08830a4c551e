"""`run --rm`: a job that goes with its output when it has ended and was read, whatever becomes of its client."""

import os
import signal
import subprocess
from collections.abc import Callable

import pytest
from support.checkout import ROOT
from support.raw_client import RawClient
from support.servers import Server, free_address
from support.state_fixtures import output_directory
from support.wait import wait_until

from telehandler.pb import telehandler_pb2 as pb

NO_JOB = b"telehandler: no such job, or not yours\n"


def _gone(server: Server, name: str) -> bool:
    """Its record, and with it its output."""
    done = server.client("status", name)
    return (done.returncode, done.stderr) == (125, NO_JOB) and not output_directory(server, name).exists()


def _started(server: Server) -> str:
    return server.jidfile().read_text().strip()


def test_run_prints_all_of_it_and_has_its_exit_code_before_it_goes(server: Server) -> None:
    done = server.client("run", "--rm", "--name", "once", "--", "sh", "-c", "seq 100000; echo e >&2; exit 7")
    assert (done.returncode, done.stderr) == (7, b"e\n")
    assert done.stdout == b"".join(b"%d\n" % number for number in range(1, 100001))
    assert _gone(server, _started(server))
    assert server.client("run", "--rm", "--name", "once", "--", "true").returncode == 0  # the name is free at once


def test_detached_it_goes_at_its_end_and_who_watches_reads_on(server: Server) -> None:
    done = server.client(
        "run", "-d", "--rm", "--", "sh", "-c", "trap 'echo last; exit 3' TERM; echo up; sleep 1000 & wait"
    )
    name = done.stdout.decode().strip()
    wait_until("it is up", lambda: server.client("watch", "-F", name).stdout == b"up\n")
    assert server.job_status(name)["remove_after"] == 0
    with server.start_watcher(name) as watcher:
        assert watcher.stdout
        assert watcher.stderr
        assert watcher.stdout.readline() == b"up\n"
        assert server.client("signal", name).returncode == 0
        wait_until("it is removed", lambda: _gone(server, name))
        assert (watcher.stdout.read(), watcher.wait(30), watcher.stderr.read()) == (b"last\n", 3, b"")


def test_it_goes_when_its_client_has_died(server: Server) -> None:
    """The client's minute is an hour's part here: the request says so long after its end."""
    with RawClient(server, server.ssl / "client") as caller:
        short = caller.start("sh", "-c", "sleep 0.2", remove_after={"nanos": 300_000_000}).name
        kept = caller.start("true", remove_after={"seconds": 3600}).name
    wait_until("it is removed", lambda: _gone(server, short))
    assert server.job_status(kept)["state"] == "completed"


def test_it_stays_while_somebody_reads_it(server: Server) -> None:
    with RawClient(server, server.ssl / "client") as caller:
        script = "trap 'head -c 60000000 /dev/urandom; exit 0' TERM; echo up; sleep 1000 & wait"
        name = caller.start("sh", "-c", script, remove_after={"nanos": 50_000_000}).name
        with server.start_watcher(name) as watcher:  # what it prints is not read: nor does it read on
            assert watcher.stdout
            assert watcher.stdout.readline() == b"up\n"
            assert server.client("signal", name).returncode == 0
            wait_until("it has ended", lambda: server.job_status(name)["state"] == "completed")
            assert server.client("wait", name).returncode == 0  # several times the pause
            assert server.client("wait", name).returncode == 0
            assert not _gone(server, name)
            assert len(watcher.stdout.read()) == 60_000_000
        wait_until("it is removed", lambda: _gone(server, name))


def test_a_client_that_is_killed_leaves_its_job_to_the_server(server: Server) -> None:
    command = server.client_command("run", "--rm", "--", "sh", "-c", "echo up; exec sleep 1000")
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as client:
        assert client.stdout
        assert client.stdout.readline() == b"up\n"
        client.send_signal(signal.SIGKILL)
    name = _started(server)
    status = server.job_status(name)
    assert (status["state"], status["remove_after"]) == ("running", 60)
    assert server.client("rm", "-f", name).returncode == 0


@pytest.mark.parametrize("pause_ms", [0, 500])
def test_it_goes_after_the_api_was_killed(make_server: Callable[..., Server], pause_ms: int) -> None:
    """Also a job that ended before it was, and was not due yet."""
    server = make_server(listen=free_address())
    with RawClient(server, server.ssl / "client") as caller:
        runs = caller.start("sh", "-c", "sleep 0.3", remove_after={"nanos": pause_ms * 1_000_000}).name
        ended = caller.start("true", remove_after={"seconds": 3}).name
        assert caller.job_status(ended, wait=True).state == pb.JOB_STATE_COMPLETED
    os.kill(server.children()["api"], signal.SIGKILL)
    for name in (runs, ended):
        wait_until("it is removed", lambda name=name: _gone(server, name))  # type: ignore[misc]


def test_it_does_not_go_with_restarts(server: Server) -> None:
    done = server.client("run", "--rm", "--restart", "on-failure", "--", "true")
    assert (done.returncode, b"--rm and --restart" in done.stderr) == (125, True)
