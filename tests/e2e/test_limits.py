"""Limits as a user asks for them and sees them bite: flags, verdicts, reasons. tests/vm has those of controllers."""

import shlex
import subprocess
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.command_line import local_command
from support.servers import Server


def local(policy: Path, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(local_command(policy, *arguments), cwd=ROOT, capture_output=True, timeout=60, check=False)


def test_a_timeout_ends_the_job_with_124(server: Server, policy: Path) -> None:
    script = "echo begun; sleep 1000"
    for done in (server.client("run", "--timeout", "300ms", "--", "true"), local(policy, "--timeout", "0", "true")):
        assert done.returncode == 125
        assert b"--timeout" in done.stderr
    for done in (
        server.client("run", "--timeout", "1.5", "--", "sh", "-c", script),
        local(policy, "--timeout", "1.5s", "sh", "-c", script),
    ):
        assert (done.returncode, done.stdout) == (124, b"begun\n")
        assert done.stderr == b"telehandler: the job was ended at its timeout: ask for more with --timeout\n"
    fields = server.job_status()
    assert (fields["state"], fields["reason"], fields["exit_code"]) == ("failed", "timeout", 143)
    assert server.client("run", "--timeout", "1h", "--", "true").returncode == 0
    assert server.client("watch").returncode == 0


def test_ulimits_are_the_jobs(server: Server) -> None:
    done = server.client("run", "--ulimit", "nofile=77", "--", "sh", "-c", "ulimit -n")
    assert done.stdout == b"77\n"
    script = "head -c 5000 /dev/zero >/tmp/f; stat -c %s /tmp/f"
    done = server.client("run", "--ulimit", "fsize=4096", "--", "sh", "-c", script)
    assert done.stdout == b"4096\n"


@pytest.mark.parametrize("way", ["client", "local"])
def test_a_dry_run_prints_request_and_sandbox_and_starts_nothing(server: Server, policy: Path, way: str) -> None:
    flags = ["--dry-run", "-e", "A=b\x1bc", "-m", "100m", "--timeout", "2h", "-w", "/usr", "--ulimit", "nofile=77"]
    mark = "echo 'never printed'"
    words = [*flags, "--", "sh", "-c", mark]
    done = server.client("run", *words) if way == "client" else local(policy, *words)
    assert (done.returncode, done.stderr) == (0, b"")
    # What no controller enforces is marked: tests/cli/test_ends_and_limits.py says when.
    lines = [line.removesuffix(" (not enforced)") for line in done.stdout.decode().splitlines()]
    rows = [tuple(line.split(None, 1)) for line in lines]
    for row in (
        ("command", shlex.join(["sh", "-c", mark])),
        ("env", "A=b\\x1bc"),
        ("env", "HOME=/home/job"),
        ("cwd", "/usr"),
        ("profile_name", "host"),
        ("network", "none"),
        ("memory_bytes", "104857600"),
        ("memory_high_bytes", "104857600"),
        ("tmp_bytes", "52428800"),
        ("shm_bytes", "26214400"),
        ("timeout_ms", "7200000"),
        ("open_files", "77"),
        ("cpu_millis", "1000"),
    ):
        assert row in rows
    assert not server.jidfile().exists() or mark not in str(server.job_status()["command"])


@pytest.mark.parametrize("way", ["client", "local"])
def test_a_dry_run_is_refused_as_the_start_would_be(server: Server, policy: Path, way: str) -> None:
    for words, text in (
        (["--profile", "nope"], b"no such profile; the policy has: host"),
        (["-m", "999999g"], b"the policy's maximum"),
        (["-w", "/proc/self"], b"outside /proc"),
    ):
        words = ["--dry-run", *words, "--", "true"]
        done = server.client("run", *words) if way == "client" else local(policy, *words)
        assert (done.returncode, done.stdout) == (125, b"")
        assert text in done.stderr
