"""Signals to `client run` and `watch`: what is said to be passed has been; detaching says how to come back."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from support.checkout import ROOT
from support.command_line import COMMAND
from support.servers import Server
from support.wait import DEADLINE_S, wait_until

# Says which signal came, and goes on until 9 have; FIFO, to wait without a process.
TELLS = (
    'for s in INT TERM HUP; do trap "echo got $s" $s; done; '
    "mkfifo /tmp/f; exec 3<>/tmp/f; echo up; while :; do read -t 100 -u 3; done"
)


def _start(command: list[str], **options: Any) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(command, bufsize=0, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    assert process.stdout
    return process


def _line(process: "subprocess.Popen[bytes]") -> bytes:
    assert process.stdout
    return process.stdout.readline()


@pytest.fixture
def run(server: Server) -> "subprocess.Popen[bytes]":
    """A run of a job that tells its signals."""
    process = _start(server.client_command("run", "--", "bash", "-c", TELLS))
    assert _line(process) == b"up\n"
    return process


def _end(run: "subprocess.Popen[bytes]") -> list[str]:
    """What it said."""
    _, errors = run.communicate(timeout=DEADLINE_S)
    return errors.decode().splitlines()


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP"])
def test_a_signal_is_the_jobs_and_is_told_once_it_is(run: "subprocess.Popen[bytes]", name: str) -> None:
    run.send_signal(signal.Signals[f"SIG{name}"])
    assert _line(run) == f"got {name}\n".encode()
    run.send_signal(signal.SIGINT)
    if name == "INT":
        said = _end(run)
        assert said[0].startswith("telehandler: interrupt passed to the job")
        assert "telehandler: the job is killed" in said[1:]  # beside the line about its end, in any order
    else:  # it is the first of its kind
        assert _line(run) == b"got INT\n"
        run.send_signal(signal.SIGINT)
        said = _end(run)
        assert said[0] == f"telehandler: SIG{name} passed to the job"
        assert said[1].startswith("telehandler: interrupt passed to the job; once more kills it")
    assert run.returncode == 128 + signal.SIGKILL


def test_detaching_says_how_to_come_back(server: Server, run: "subprocess.Popen[bytes]") -> None:
    name = server.jidfile().read_text().strip()
    run.send_signal(signal.SIGQUIT)
    assert _end(run) == [f"telehandler: detached; the job runs on: `telehandler client watch {name}` shows its output"]
    assert run.returncode == 130
    watch = _start(server.client_command("watch", name))
    assert _line(watch) == b"up\n"
    watch.send_signal(signal.SIGINT)
    (line,) = _end(watch)
    assert line.startswith("telehandler: detached; the job is untouched: `telehandler client watch users/")
    assert watch.returncode == 130
    assert server.client("stop", "-t", "0", name).returncode == 0


def test_what_is_said_to_be_passed_was_when_the_reader_dies_of_the_same_ctrl_c(server: Server) -> None:
    """As `run | reader` on a terminal. The job writes without a pause: the end of its reader is seen at once."""
    job = "trap 'exit 9' INT; while :; do echo line; done"
    for _ in range(6):
        read_fd, write_fd = os.pipe()
        run = subprocess.Popen(
            server.client_command("run", "--", "bash", "-c", job), cwd=ROOT, stdout=write_fd, stderr=subprocess.PIPE
        )
        os.close(write_fd)
        assert os.read(read_fd, 5) == b"line\n"
        os.close(read_fd)  # the reader is dead
        run.send_signal(signal.SIGINT)  # which was sent to both
        _, errors = run.communicate(timeout=DEADLINE_S)
        assert run.returncode in (128 + signal.SIGPIPE, 9), errors  # 9: the job ended before its next output came
        name = server.jidfile().read_text().strip()
        assert b"interrupt passed to the job" in errors
        ended = server.client("wait", name)
        assert ended.returncode == 9, ended.stderr


def test_a_signal_before_the_job_runs(server: Server) -> None:
    """The answer to the start does not come: it is waited for, but not for long."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        command = server.client_command("run", "--", "sleep", "1000")
        command[command.index("-s") + 1] = f"localhost:{silent.getsockname()[1]}"
        run = _start(command)
        wait_until("it catches signals", lambda: _catches(run.pid, signal.SIGTERM))
        began = time.monotonic()
        run.terminate()
        (line,) = _end(run)
    assert "the start is not confirmed" in line
    assert run.returncode == 128 + signal.SIGTERM
    assert time.monotonic() - began < 15


def _catches(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP"])
def test_a_benchmark_that_is_ended_leaves_no_job(server: Server, name: str) -> None:
    words = ["--discard", "--watchers", "1", "--", "sh", "-c", f"sleep 1000.{signal.Signals['SIG' + name]}"]
    benchmark = _start(server.client_command("benchmark", *words))
    assert benchmark.stderr
    assert b"0.0 MiB/s" in benchmark.stderr.readline()  # a second of watching
    benchmark.send_signal(signal.Signals[f"SIG{name}"])
    benchmark.communicate(timeout=DEADLINE_S)
    assert benchmark.returncode == 128 + signal.Signals[f"SIG{name}"]
    assert server.client("ls", "-q", "--state", "running").stdout == b""


def test_ctrl_c_while_it_starts_is_no_traceback() -> None:
    """While it imports, too."""
    for pause in range(12):
        process = _start([*COMMAND, "version"])
        time.sleep(pause / 100)  # the moment, not a wait for anything
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=DEADLINE_S)
        assert b"cli" not in errors, errors
