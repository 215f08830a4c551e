"""What a watcher may ask for, and what becomes of output over a cap: with real jobs, through the real client."""

import hashlib
import re
import subprocess

import pytest
from support.checkout import ROOT
from support.servers import Server
from support.wait import wait_until

TEXT = "for i in $(seq 1 300); do echo out $i; [ $((i % 3)) = 0 ] && echo err $i >&2; done; true"
OUT = "".join(f"out {number}\n" for number in range(1, 301)).encode()
ERR = "".join(f"err {number}\n" for number in range(3, 301, 3)).encode()


@pytest.fixture(scope="module")
def job(server: Server) -> str:
    """A job that has ended."""
    name = server.detach("bash", "-c", TEXT)
    assert server.client("watch", name).returncode == 0
    return name


def watch(server: Server, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    done = server.client("watch", *arguments)
    assert done.returncode == 0, done.stderr
    return done


def test_all_of_it_verified(server: Server, job: str) -> None:
    done = watch(server, "--verify", job)
    assert done.stdout == OUT
    assert done.stderr == ERR + b"telehandler: verified: SHA-256 of both streams is the server's\n"


def test_raw_is_the_order_of_arrival(server: Server, job: str) -> None:
    whole = watch(server, "--raw", job).stdout
    assert sorted(whole.splitlines()) == sorted((OUT + ERR).splitlines())


def test_one_stream(server: Server, job: str) -> None:
    done = watch(server, "--stream", "stderr", job)
    assert (done.stdout, done.stderr) == (b"", ERR)


def test_timestamps_begin_each_line(server: Server, job: str) -> None:
    lines = watch(server, "-t", "--stream", "stdout", job).stdout.splitlines()
    assert len(lines) == 300
    stamps = [re.fullmatch(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z) (out \d+)", line) for line in lines]
    assert [stamp and stamp[2] for stamp in stamps] == OUT.splitlines()
    assert sorted(stamp[1] for stamp in stamps if stamp) == [stamp[1] for stamp in stamps if stamp]


def test_since_and_until(server: Server) -> None:
    """Two lines more than a segment apart: a moment between them divides them."""
    script = "echo first; while [ ! -e /tmp/go ]; do read -t 0.3 x <>/tmp/f && touch /tmp/go; break; done; echo second"
    name = server.detach("bash", "-c", f"mkfifo /tmp/f; {script}")
    watch(server, name)
    stamps = [line.split()[0].decode() for line in watch(server, "-t", name).stdout.splitlines()]
    assert watch(server, "--since", stamps[1], name).stdout == b"second\n"
    assert watch(server, "--until", stamps[1], name).stdout == b"first\n"
    assert watch(server, "--since", "1h", name).stdout == b"first\nsecond\n"
    assert watch(server, "--until", "1h", name).stdout == b""


def test_compressed_text_is_the_same(server: Server) -> None:
    """Over several chunks, with a stretch that does not compress."""
    script = "seq 1 200000; head -c 600000 /dev/urandom; seq 1 200000"
    name = server.detach("bash", "-c", script)
    done = watch(server, "--verify", name)
    assert done.stdout.startswith(b"1\n2\n3\n")
    assert hashlib.sha256(done.stdout).hexdigest()
    assert len(done.stdout) == 2 * 1288895 + 600000


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--verify", "-n", "3"], b"--verify needs all"),
        (["--verify", "-F"], b"--verify needs all"),
        (["-n", "3", "--offset", "4"], b"go without an offset"),
        (["--since", "yesterday"], b"--since"),
        (["--stream", "stdin"], b"stdin"),
    ],
)
def test_invalid_options(server: Server, job: str, arguments: list[str], text: bytes) -> None:
    done = server.client("watch", *arguments, job)
    assert (done.returncode, done.stdout) == (125, b"")
    assert text in done.stderr
    assert b"Traceback" not in done.stderr


def test_the_digest_is_of_what_was_dropped_too(server: Server) -> None:
    command = ["bash", "-c", "seq 1 400000"]
    done = server.client("run", "-d", "--log-max-size", "256k", "--log-policy", "drop-oldest", "--", *command)
    name = done.stdout.decode().strip()
    wait_until("the job has ended", lambda: server.job_status(name)["state"] == "completed")
    fields = server.client("watch", "--verify", name)
    assert fields.returncode == 125
    assert b"NOT what the server has" in fields.stderr


def test_a_cap_that_kills(server: Server) -> None:
    done = server.client("run", "--log-max-size", "64k", "--log-policy", "kill", "--", "bash", "-c", "seq 1 1000000")
    assert done.returncode == 137
    assert done.stdout == b"".join(b"%d\n" % number for number in range(1, 20000))[: 64 * 1024]
    assert b"the log's cap of 65536 bytes is reached" in done.stderr


def test_a_cap_that_blocks_makes_the_job_wait(server: Server) -> None:
    name = (
        server.client("run", "-d", "--log-max-size", "64k", "--", "bash", "-c", "seq 1 1000000").stdout.decode().strip()
    )
    wait_until("the cap is reached", lambda: server.job_status(name)["stdout_bytes"] == 64 * 1024)
    assert server.job_status(name)["state"] == "running"
    assert server.client("stop", "--stop-timeout", "0", name).returncode == 0
    done = server.client("watch", name)
    assert len(done.stdout) == 64 * 1024
    assert re.search(rb"cap of 65536 bytes is reached; \d+ more bytes were not kept", done.stderr)


def test_a_policy_needs_a_cap(server: Server) -> None:
    done = server.client("run", "--log-policy", "kill", "--", "true")
    assert done.returncode == 125
    assert b"needs a cap" in done.stderr


def test_many_watchers_of_a_live_job_get_the_same(server: Server) -> None:
    name = server.detach("bash", "-c", "for i in $(seq 40); do seq 1 5000; echo err >&2; done")
    watchers = [
        subprocess.Popen(server.client_command("watch", "--raw", name), cwd=ROOT, stdout=subprocess.PIPE)
        for _ in range(8)
    ]
    outputs = {hashlib.sha256(watcher.communicate(timeout=60)[0]).hexdigest() for watcher in watchers}
    assert len(outputs) == 1
