"""R24: stdout and stderr of a client that are full, closed, non-blocking, or whose reader has gone or does not read."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.checkout import ROOT
from support.command_line import COMMAND, local_command
from support.servers import Server, free_address
from support.wait import DEADLINE_S, wait_until

FULL_S = 1.0  # more than the same takes where its output can be written
LOTS = 1_288_895  # bytes: more than a pipe holds, and no multiple of anything
SILENT = "echo one; exec sleep 1000"
Done = subprocess.CompletedProcess[bytes]


class Verbs:
    """Each verb as it prints to stdout, with a job of its own where it takes one."""

    def __init__(self, server: Server, policy: Path, place: Path) -> None:
        self._server, self._policy, self._place = server, policy, place

    def __call__(self, name: str) -> list[str]:
        ended = self._server.detach("echo", "a line") if name in ("watch", "status", "rm") else ""
        if ended:
            self._server.client("wait", ended)
        of_client = {
            "run": ["run", "--", "echo", "a line"],
            "detached run": ["run", "-d", "--", "true"],
            "dry run": ["run", "--dry-run", "--", "true"],
            "watch": ["watch", ended],
            "raw watch": ["watch", "--raw", self._server.detach("echo", "a line")] if name == "raw watch" else [],
            "status": ["status", ended],
            "json status": ["status", "-o", "json", self._server.detach("true")] if name == "json status" else [],
            "ls": ["ls"],
            "quiet ls": ["ls", "-q"],
            "json ls": ["ls", "-o", "json"],
            "rm": ["rm", ended],
            "benchmark": ["benchmark", "--discard", "--watchers", "2", "--processes", "1", "--", "echo", "x"],
        }
        if name in of_client:
            return self._server.client_command(of_client[name][0], *of_client[name][1:])
        if name in ("local", "dry local"):
            dry = ["--dry-run"] if name == "dry local" else []
            return local_command(self._policy, *dry, "--", "echo", "a line")
        if name == "certs":
            return [sys.executable, "-m", "telehandler.certs", str(self._place / f"certs-{os.urandom(4).hex()}")]
        others = {
            "version": ["version"],
            "--version": ["--version"],
            "--help": ["--help"],
            "help": ["help", "client", "run"],
            "completion": ["completion", "bash"],
            "check": ["check", "--helper-policy", str(self._policy)],
        }
        return [*COMMAND, *others[name]]


OF_CLIENT = [
    *("run", "detached run", "dry run", "watch", "raw watch", "status", "json status"),
    *("ls", "quiet ls", "json ls", "rm", "benchmark"),
]
EVERY = [*OF_CLIENT, "local", "dry local", "certs", "version", "--version", "--help", "help", "completion", "check"]

# One for each way of printing: a job's bytes, a line, a table, click's own, another program.
EACH_WAY = ["run", "detached run", "watch", "ls", "rm", "benchmark", "local", "certs", "--help", "completion"]


@pytest.fixture(scope="module")
def verbs(server: Server, policy: Path, place: Path) -> Verbs:
    return Verbs(server, policy, place)


def _run(command: list[str], stdout: Any, redirection: str = "", **options: Any) -> tuple[Done, float]:
    """What became of it, and how long it took. The redirection is the shell's, such as `>&-`."""
    began = time.monotonic()
    shell = ["/bin/sh", "-c", f'exec "$@" {redirection}', "sh", *command]
    done = subprocess.run(
        shell, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, timeout=DEADLINE_S, check=False, **options
    )
    return done, time.monotonic() - began


def _one_line(done: Done, *words: bytes) -> None:
    """Its own, beside what the verb has to say in any case."""
    assert b"Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if b"stdout" in line]
    for word in words:
        assert word in line


@pytest.mark.parametrize("name", EVERY)
def test_r24_a_full_stdout_is_told_at_once_by_every_verb(verbs: Verbs, name: str) -> None:
    with open(os.devnull, "wb") as null:
        _, usual_s = _run(verbs(name), null)
    with open("/dev/full", "wb", 0) as full:
        done, took_s = _run(verbs(name), full)
    assert done.returncode == 125, done
    _one_line(done, b"No space left on device")
    assert took_s < usual_s * 2 + FULL_S


@pytest.mark.parametrize("name", EACH_WAY)
def test_r24_so_is_a_closed_one(verbs: Verbs, name: str) -> None:
    done, _ = _run(verbs(name), subprocess.PIPE, ">&-")
    assert (done.returncode, done.stdout) == (125, b""), done
    _one_line(done, b"closed")


@pytest.mark.parametrize("name", EACH_WAY)
def test_r24_an_end_without_a_word_when_the_reader_has_gone(verbs: Verbs, name: str) -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    done, _ = _run(verbs(name), write_fd)
    os.close(write_fd)
    assert done.returncode == 128 + signal.SIGPIPE, done
    assert b"Traceback" not in done.stderr
    assert b"stdout" not in done.stderr


@pytest.mark.parametrize("name", ["stop", "wait"])
def test_r24_a_verb_that_prints_nothing_needs_no_stdout(server: Server, name: str) -> None:
    done, _ = _run(server.client_command(name, server.detach("true")), subprocess.PIPE, ">&-")
    assert (done.returncode, done.stderr) == (0, b"")


def _nonblocking(command: list[str]) -> tuple[bytes, int]:
    """What came through a non-blocking pipe that is read slowly, as of a parent that runs an event loop."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    process = subprocess.Popen(command, cwd=ROOT, stdout=write_fd, stderr=write_fd)
    os.close(write_fd)
    found = b""
    end = threading.Timer(DEADLINE_S, process.kill)  # of one that hangs, as they did
    end.start()
    with open(read_fd, "rb", 0) as pipe:
        while piece := pipe.read(4096):
            found += piece
    end.cancel()
    return found, process.wait(DEADLINE_S)


@pytest.mark.parametrize("where", ["run", "local"])
@pytest.mark.parametrize("stream", ["", ">&2"])
def test_r24_every_byte_reaches_a_non_blocking_reader(server: Server, policy: Path, where: str, stream: str) -> None:
    job = ["--", "sh", "-c", f"head -c {LOTS} /dev/zero {stream}"]
    command = local_command(policy, *job) if where == "local" else server.client_command(where, *job)
    found, code = _nonblocking(command)
    assert (len(found), code) == (LOTS, 0), found[-300:]


def test_r24_so_does_all_that_a_verb_prints(server: Server) -> None:
    for _ in range(4):
        assert server.client("run", "--", "true", *["y" * 1000] * 50).returncode == 0
    expected = server.client("ls", "-o", "json")
    assert len(expected.stdout) > 1 << 17
    assert _nonblocking(server.client_command("ls", "-o", "json")) == (expected.stdout, 0)


@pytest.mark.parametrize("where", ["run", "local"])
def test_r24_stderr_of_the_job_that_cannot_be_written_is_an_error(server: Server, policy: Path, where: str) -> None:
    """One of ours is only a word less; one of the job is a loss."""
    command = local_command(policy) if where == "local" else server.client_command(where)
    for redirection in ("2>/dev/full", "2>&-"):
        done, _ = _run([*command, "--", "sh", "-c", "echo x >&2"], subprocess.PIPE, redirection)
        assert done.returncode == 125, redirection
        done, _ = _run([*command, "--", "sh", "-c", "kill -USR1 $$"], subprocess.PIPE, redirection)
        assert done.returncode == 128 + signal.SIGUSR1, redirection


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_r24_watch_ends_with_its_reader_and_not_at_the_next_output(server: Server, kind: str) -> None:
    name = server.detach("sh", "-c", SILENT)
    reader, writer = os.pipe() if kind == "pipe" else (end.detach() for end in socket.socketpair())
    watch = subprocess.Popen(server.client_command("watch", name), cwd=ROOT, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert os.read(reader, 9) == b"one\n"
    os.close(reader)
    assert watch.wait(DEADLINE_S) == 128 + signal.SIGPIPE
    server.client("stop", "-t", "0", name)
    assert watch.stderr
    assert watch.stderr.read() == b""
    watch.stderr.close()


def test_r24_a_run_that_cannot_print_says_how_to_see_its_job(server: Server) -> None:
    with open("/dev/full", "wb", 0) as full:
        done, _ = _run(server.client_command("run", "--", "sh", "-c", SILENT), full)
    name = server.jidfile().read_text().strip()
    assert f"the job runs on: `telehandler client watch {name}`" in done.stderr.decode()
    assert b'"running"' in server.client("status", "-o", "json", name).stdout
    server.client("stop", "-t", "0", name)


# Whatever else goes wrong: an end, one line, no thread of grpc's that is waited for.

_FAULTS = {
    "fault": "raise RuntimeError('odd')",
    "end": "raise SystemExit(7)",
    "memory": "raise MemoryError",
    "deep": "def f(): return f()\nf()",
}


@pytest.mark.parametrize("name", _FAULTS)
def test_r24_no_exception_leaves_a_process_hanging(server: Server, name: str) -> None:
    body = "\n    ".join(_FAULTS[name].splitlines())
    program = f"""if 1:
    import sys
    from telehandler.cli import ls, main
    def bad(*_):
        {body.replace(chr(10), chr(10) + "    ")}
    ls._print_table = bad
    sys.argv[0] = "telehandler"
    main()
    """
    words = server.client_command("ls")[len(COMMAND) :]
    done, _ = _run([sys.executable, "-c", program, *words], subprocess.PIPE)
    assert b"Traceback" not in done.stderr
    if name == "end":
        assert (done.returncode, done.stderr) == (7, b"")
    else:
        assert done.returncode == 125
        (line,) = done.stderr.splitlines()
        assert line.startswith(b"telehandler: ")


_LIBRARY = """
import sys
from telehandler.client.connection import Client
from telehandler.pb import telehandler_pb2 as pb
client = Client(*sys.argv[1:5])
if sys.argv[5] == "unused":
    sys.exit(3)
print(len(list(client.list_jobs("", (), 1))), flush=True)
if sys.argv[5] == "raises":
    raise ValueError
if sys.argv[5] == "watches":
    watch = client.watch(pb.WatchJobOutputRequest(name=sys.argv[6]), False, [], print)
    next(watch)
if sys.argv[5] == "gone":
    del client
"""


@pytest.mark.parametrize("how", ["ends", "raises", "watches", "unused", "gone"])
def test_r24_a_program_that_forgets_to_close_its_client_ends(server: Server, how: str) -> None:
    files = [str(server.ssl / name) for name in ("client.pem", "client-key.pem", "root.pem")]
    name = server.detach("sh", "-c", SILENT)
    command = [sys.executable, "-c", _LIBRARY, f"localhost:{server.port}", *files, how, name]
    done, took_s = _run(command, subprocess.PIPE)
    assert done.returncode == {"raises": 1, "unused": 3}.get(how, 0), done.stderr
    assert took_s < 20  # it was for ever
    server.client("stop", "-t", "0", name)


_THREADS = """
import sys, threading
from telehandler.client.connection import Client
client = Client(*sys.argv[1:5])
list(client.list_jobs("", (), 1))
print([thread.name for thread in threading.enumerate()])
"""


def test_r24_a_connection_has_no_thread_whose_end_is_waited_for(server: Server) -> None:
    """It cost each verb a fifth of a second, and was what a forgotten client hung on."""
    files = [str(server.ssl / name) for name in ("client.pem", "client-key.pem", "root.pem")]
    done, _ = _run([sys.executable, "-c", _THREADS, f"localhost:{server.port}", *files], subprocess.PIPE)
    assert done.stdout == b"['MainThread']\n"


def _runs(server: Server) -> bool:
    done = server.client("run", "--", "sh", "-c", "echo out; exit 5")
    assert done.returncode in (5, 125), done.stderr
    return done.returncode == 5 and done.stdout == b"out\n"


@pytest.mark.parametrize("redirection", [">/dev/full 2>&1", ">&- 2>&-"])
def test_r24_a_server_whose_log_cannot_be_written_serves_on(
    place: Path, ssl: Path, policy: Path, as_root: None, redirection: str
) -> None:
    server = Server(place, ssl, policy, listen=free_address())
    server.port = int(server.listen.rpartition(":")[2])
    words = ["server", "-l", server.listen, "--state-dir", str(server.state), "--helper-policy", str(policy)]
    for flag, name in (("-c", "server.pem"), ("-k", "server-key.pem"), ("-r", "root.pem")):
        words += [flag, str(ssl / name)]
    process = subprocess.Popen(["/bin/sh", "-c", f'exec "$@" {redirection}', "sh", *COMMAND, *words], cwd=ROOT)
    try:
        wait_until("it serves", lambda: server.client("ls").returncode == 0)
        process.send_signal(signal.SIGHUP)  # of which there is something to say
        # While its api is replaced, nothing listens for a moment.
        wait_until("it serves again", lambda: _runs(server))
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait()
