"""R25: SIGTERM or SIGINT to all processes of a server, or of `local`, at once: it ends as by one to itself alone."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.command_line import COMMAND
from support.helper_driver import Helper, read_line
from support.policies import policy_text, write_policy
from support.processes import descendants, live_processes_with
from support.servers import Server, free_address
from support.wait import DEADLINE_S, wait_until

pytestmark = pytest.mark.usefixtures("as_root")
ENDS_LATER = "echo up; while [ ! -e /mnt/go ]; do sleep 0.05; done; echo done; exit 5"


def _signal_all(server: Server, number: int) -> None:
    """All but the jobs, the helper and its keeper first, so that nothing hides what the signal does to them."""
    assert server.process is not None
    pids = server.children()
    for name in ("helper", "keeper", "api"):
        os.kill(pids[name], number)
    os.kill(server.process.pid, number)


@pytest.fixture
def gate(place: Path) -> tuple[Path, Path]:
    """A policy whose jobs see a directory of ours at /mnt, and that directory."""
    directory = place / "gate"
    directory.mkdir(exist_ok=True)
    for path in directory.iterdir():
        path.unlink()
    return write_policy(place, "gate", policy_text(f'[profile.host]\nread_only = ["{directory}:/mnt"]\n')), directory


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_r25_a_drain_drains(make_server: Callable[..., Server], gate: tuple[Path, Path], number: int) -> None:
    policy, directory = gate
    server = make_server(policy=policy, listen=free_address(), options=("--on-stop", "drain"))
    assert server.process is not None
    name = server.detach("sh", "-c", ENDS_LATER)
    before = server.children()
    _signal_all(server, number)
    wait_until("it drains", lambda: "draining" in server.log_text())
    assert server.children() == before  # the api too
    (directory / "go").touch()
    assert server.process.wait(DEADLINE_S) == 0
    server.start()
    status = server.job_status(name)
    assert (status["state"], status["reason"], status["exit_code"]) == ("failed", "exited", 5)
    assert server.client("watch", name).stdout == b"up\ndone\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_r25_a_stop_stops_and_nothing_is_lost(make_server: Callable[..., Server], number: int) -> None:
    server = make_server(listen=free_address())
    assert server.process is not None
    names = [server.detach("sleep", "5.0990195") for _ in range(2)]
    _signal_all(server, number)
    assert server.process.wait(DEADLINE_S) == 0
    assert not live_processes_with("5.0990195")
    server.start()
    for name in names:
        status = server.job_status(name)
        assert (status["state"], status["reason"]) == ("stopped", "stopped")
    assert "died" not in server.log_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_r25_local_passes_it_to_its_job(policy: Path, number: int) -> None:
    """As `timeout` and a terminal send it: to the whole group. The job ends in its own way."""
    script = f"trap 'echo got it; exit 6' {signal.Signals(number).name[3:]}; echo up; while :; do sleep 0.05; done"
    command = [*COMMAND, "local", "--helper-policy", str(policy), "--", "bash", "-c", script]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0) as local:
        assert local.stdout is not None
        assert read_line(local.stdout.fileno()) == b"up\n"
        for pid in descendants(local.pid):  # sudo or a wrapper may have put it elsewhere
            with suppress(ProcessLookupError):
                if os.getpgid(pid) != local.pid and os.stat(f"/proc/{pid}").st_uid == 0:
                    os.kill(pid, number)
        os.killpg(local.pid, number)
        output, errors = local.communicate(timeout=DEADLINE_S)
    assert (local.returncode, output) == (6, b"got it\n"), errors


def test_r25_a_helper_that_nobody_ends_ends_after_the_longest_drain(place: Path) -> None:
    """SIGTERM is not for it alone, but bounds how long it goes on."""
    bounded = write_policy(place, "bounded", policy_text("max_drain_seconds = 2\n"))
    with Helper(bounded) as helper:
        helper.start("sleep", "5.1961524").close()
        began = time.monotonic()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            helper.process.send_signal(number)
        assert helper.run("true").facts["exit_code"] == 0
        assert helper.end() == (0, "")
        assert 2 <= time.monotonic() - began < 30
        assert not live_processes_with("5.1961524")
