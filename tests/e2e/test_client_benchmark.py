"""`client benchmark` with a real server: its files, the faults it names, and what it leaves when it is interrupted."""

import hashlib
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.processes import alive, descendants, processes_with
from support.servers import Server
from support.wait import wait_until

MIB = 1 << 20
MARK = "27.1828182"
SCRIPT = f"head -c {3 * MIB} /dev/urandom; head -c 1000 /dev/urandom >&2"
RUNS_ON = f"{SCRIPT}; exec sleep {MARK}"


@pytest.mark.parametrize("flag", ["--zstd", "--no-zstd"])
def test_all_watchers_files_are_equal_and_what_the_server_has(server: Server, tmp_path: Path, flag: str) -> None:
    (tmp_path / "out-00").write_bytes(b"of an earlier run" * MIB)
    script = f"{SCRIPT}; seq 300000"  # what can be compressed, and what cannot
    done = server.client("benchmark", "--watchers", "5", flag, "-o", str(tmp_path), "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    size = 3 * MIB + 1000 + len("".join(f"{number}\n" for number in range(1, 300001)))
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [f"out-{number:02}" for number in range(5)]
    assert {file.stat().st_size for file in files} == {size}
    assert len({hashlib.sha256(file.read_bytes()).digest() for file in files}) == 1
    lines = done.stdout.decode().splitlines()
    assert [line.split(":")[0] for line in lines[:5]] == [f"watcher {number:02}" for number in range(5)]
    assert lines[6].startswith("total ")
    assert f": {5 * size / MIB:.1f} MiB in " in lines[6]
    assert lines[7] == "all 5 watchers got what the server has"


def test_discard_writes_nothing(server: Server, tmp_path: Path) -> None:
    command = server.client_command("benchmark", "--watchers", "3", "--processes", "9", "--discard", "--", "seq", "9")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_watchers_whose_process_is_killed_are_named_and_the_rest_judged(server: Server) -> None:
    command = server.client_command("benchmark", "--watchers", "4", "--processes", "2", "--discard")
    benchmark = subprocess.Popen(
        [*command, "--", "sh", "-c", RUNS_ON], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    progress = benchmark.stderr
    assert progress
    wait_until("all watchers have seen something", lambda: b"0.0" not in _each(progress.readline()))
    first, _ = sorted(descendants(benchmark.pid))
    os.kill(first, signal.SIGKILL)
    wait_until("the process is gone", lambda: not alive(first))
    for pid in processes_with(MARK):
        if Path(f"/proc/{pid}/comm").read_text() == "sleep\n":
            os.kill(pid, signal.SIGTERM)
    output, errors = benchmark.communicate(timeout=60)
    assert benchmark.returncode == 1
    named = [line for line in errors.decode().splitlines() if line.startswith("telehandler:")]
    *watchers, job = named
    assert watchers == [f"telehandler: watcher {number}: its process died" for number in ("00", "02")]
    assert job == "telehandler: the job did not succeed: signaled, exit code 143"
    assert [line.split(":")[0] for line in output.decode().splitlines()[:2]] == ["watcher 01", "watcher 03"]


def _each(line: bytes) -> list[bytes]:
    """The rates of a line of progress."""
    return line.partition(b"each ")[2].split() or [b"0.0"]


def test_a_file_that_cannot_be_written_is_a_fault_of_that_watcher_alone(server: Server, tmp_path: Path) -> None:
    (tmp_path / "out-01").mkdir()
    done = server.client("benchmark", "--watchers", "3", "-o", str(tmp_path), "--", "seq", "9")
    assert done.returncode == 1
    path = tmp_path / "out-01"
    assert done.stderr.decode() == f"telehandler: watcher 01: {path}: Is a directory\n"
    assert (tmp_path / "out-02").read_text() == "".join(f"{number}\n" for number in range(1, 10))


def test_interrupt_ends_processes_and_job(server: Server) -> None:
    command = server.client_command("benchmark", "--watchers", "3", "--discard", "--", "sh", "-c", RUNS_ON)
    benchmark = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert benchmark.stderr
    benchmark.stderr.readline()  # a first second
    pids = [*descendants(benchmark.pid), *processes_with(MARK)]
    assert len(pids) > 2
    benchmark.send_signal(signal.SIGINT)
    benchmark.communicate(timeout=60)
    assert benchmark.returncode == 130
    wait_until("processes and job have ended", lambda: not [pid for pid in pids if alive(pid)])


def test_on_a_terminal_the_rates_are_drawn_over_themselves(server: Server) -> None:
    parent_fd, terminal_fd = pty.openpty()
    command = server.client_command("benchmark", "--watchers", "3", "--discard", "--", "sh", "-c", RUNS_ON)
    benchmark = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=terminal_fd)
    os.close(terminal_fd)
    seen = b""
    while b"\033[2F" not in seen:  # the second drawing goes up two lines: the head, and one of three cells
        seen += os.read(parent_fd, 4096)
    benchmark.send_signal(signal.SIGINT)
    benchmark.wait(60)
    os.close(parent_fd)
    assert seen.count(b" MiB/s in all\r\n") >= 1
    assert b"02 " in seen
