"""`run -i`, `local -i` and `attach` with a pipe: what comes on stdin is the job's, to its end."""

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.command_line import local_command
from support.process_usage import rss_bytes
from support.servers import Server
from support.wait import DEADLINE_S, wait_until

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
MIB = 1 << 20
# Takes nothing until it is told so by a signal.
LATE = "trap 'go=1' USR1; echo ready; while [ ! $go ]; do sleep 0.01; done; wc -c"


@pytest.fixture(params=["server", "local"])
def run(request: pytest.FixtureRequest, server: Server, policy: Path) -> Run:
    """`client run` and `local`, with flags and a command, and bytes or a file as stdin."""

    def command(*arguments: str) -> list[str]:
        return (
            server.client_command("run", *arguments) if request.param == "server" else local_command(policy, *arguments)
        )

    def run(*arguments: str, **stdin: object) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, timeout=DEADLINE_S, **stdin)  # type: ignore[call-overload,no-any-return]  # as given

    return run


def test_without_the_flag_stdin_is_not_read(run: Run, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    lines.write_bytes(b"one\ntwo\n")
    with lines.open("rb") as file:
        assert run("--", "cat", stdin=file).stdout == b""
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 0


@pytest.mark.parametrize("data", [b"", b"hi", bytes(range(256)) * 5000], ids=["nothing", "little", "more than a pipe"])
def test_what_comes_on_stdin_is_the_jobs_to_its_end(run: Run, data: bytes) -> None:
    done = run("-i", "--", "cat", input=data)
    assert (done.returncode, done.stdout, done.stderr) == (0, data, b"")


def test_so_is_a_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3 * MIB + 1))
    with path.open("rb") as file:
        assert (
            run("-i", "--", "sha256sum", stdin=file).stdout[:64].decode()
            == hashlib.sha256(path.read_bytes()).hexdigest()
        )


def test_a_closed_stdin_has_no_bytes(run: Run) -> None:
    assert run("-i", "--", "wc", "-c", stdin=subprocess.DEVNULL).stdout == b"0\n"


@pytest.mark.parametrize("script", ["exit 3", "exec <&-; sleep 0.3; exit 3", "head -c 10 >/dev/null; exit 3"])
def test_a_job_that_ends_or_reads_no_more_ends_its_client_with_its_code(run: Run, script: str) -> None:
    done = run("-i", "--", "sh", "-c", script, input=b"x" * 20 * MIB)
    assert (done.returncode, done.stderr) == (3, b"")


def test_a_job_that_ends_first_does_not_wait_for_more(server: Server) -> None:
    command = server.client_command("run", "-i", "--", "sh", "-c", "exit 7")
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.wait(DEADLINE_S) == 7  # nobody has written, or closed the pipe


def test_a_client_reads_no_more_than_the_job_takes_and_a_window(server: Server) -> None:
    """Back-pressure to the client's own stdin; memory of the api and of the client is bounded."""
    api, before = server.children()["api"], rss_bytes(server.children()["api"])
    command = server.client_command("run", "-i", "--", "sh", "-c", LATE)
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        name = server.jidfile().read_text().strip()
        os.set_blocking(process.stdin.fileno(), False)
        sent, still, piece = 0, 0, bytes(MIB)

        def full() -> bool:
            nonlocal sent, still
            try:
                sent += os.write(process.stdin.fileno(), piece)  # type: ignore[union-attr]
                still = 0
            except BlockingIOError:
                still += 1
            return still > 50

        wait_until("nothing more is read", full)
        assert sent < 12 * MIB
        assert rss_bytes(process.pid) < 128 * MIB
        assert rss_bytes(api) - before < 64 * MIB
        assert server.runs_jobs()  # others are served meanwhile
        process.kill()
    server.client("stop", "--stop-timeout", "0", name)


def test_a_gib_is_equal_and_memory_stays(server: Server) -> None:
    api, before = server.children()["api"], rss_bytes(server.children()["api"])
    source = subprocess.Popen(["head", "-c", "1G", "/dev/urandom"], stdout=subprocess.PIPE)
    assert source.stdout
    digest = hashlib.sha256()
    command = server.client_command("run", "-i", "--", "sha256sum")
    peak = 0
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        while piece := source.stdout.read(MIB):
            digest.update(piece)
            process.stdin.write(piece)
            peak = max(peak, rss_bytes(api))
        out, _ = process.communicate(timeout=DEADLINE_S)
    source.stdout.close()
    source.wait()
    assert out[:64].decode() == digest.hexdigest()
    assert peak - before < 64 * MIB


def test_a_detached_job_waits_for_who_attaches(server: Server) -> None:
    name = server.client("run", "-d", "-i", "--", "sh", "-c", "echo early; cat; exit 5").stdout.decode().strip()
    wait_until("it has written", lambda: server.job_status(name)["stdout_bytes"] == 6)
    command = server.client_command("attach", "--offset", "0", name)
    done = subprocess.run(command, cwd=ROOT, input=b"late\n", capture_output=True, timeout=DEADLINE_S, check=False)
    assert (done.returncode, done.stdout) == (5, b"early\nlate\n")
    done = subprocess.run(command, cwd=ROOT, input=b"later\n", capture_output=True, timeout=DEADLINE_S, check=False)
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"the job has ended" in done.stderr


def test_a_job_without_input_cannot_be_attached_to(server: Server) -> None:
    name = server.detach("sleep", "1000")
    done = server.client("attach", name)
    assert done.returncode == 125
    assert b"the job takes no input" in done.stderr
    server.client("stop", "--stop-timeout", "0", name)


def test_who_attaches_takes_over(server: Server) -> None:
    command = server.client_command("run", "-i", "--", "cat")
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as first:
        assert first.stdin
        assert first.stdout
        assert first.stderr
        first.stdin.write(b"first\n")
        first.stdin.flush()
        assert first.stdout.readline() == b"first\n"
        name = server.jidfile().read_text().strip()
        second = subprocess.run(
            server.client_command("attach", name), cwd=ROOT, input=b"second\n", capture_output=True, check=False
        )
        assert (second.returncode, second.stdout) == (0, b"second\n")
        # The first may have seen the job's end before it heard of it.
        assert first.wait(DEADLINE_S) in (0, 125)
        if first.returncode == 125:
            assert b"another client writes to the job now" in first.stderr.read()
