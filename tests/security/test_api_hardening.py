"""Bounds of the api (S39), what it does not serve, and what becomes of bytes that users and jobs choose (S33, S40)."""

import json
import resource
import select
import socket
import ssl as tls
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from support.raw_client import METHODS, ORIGINAL, SERVICE, RawClient, Response
from support.servers import Server
from support.wait import wait_until

from telehandler.common import bounds
from telehandler.pb import telehandler_pb2 as pb

OK = grpc.StatusCode.OK
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
SOON_S = 10.0  # a small job's time, with the server under attack
START, WATCH = f"/{SERVICE}/StartJob", f"/{SERVICE}/WatchJobOutput"
SECRET = "correct-horse-battery"
NASTY = "\x1b[31mred\x07\n\r\x9b2J\u202e\ttail"


def _connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), 10)


def _client_hello(server: Server) -> bytes:
    outgoing = tls.MemoryBIO()
    context = tls.create_default_context(cafile=str(server.ssl / "root.pem"))
    with pytest.raises(tls.SSLWantReadError):
        context.wrap_bio(tls.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


def _closed(sockets: list[socket.socket]) -> list[socket.socket]:
    """Those at whose end there is nothing more to read. Nothing is, before a handshake: bytes are drained."""
    poll = select.poll()
    by_fd = {sock.fileno(): sock for sock in sockets}
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    return [by_fd[fd] for fd, _ in poll.poll(0) if not _drain(by_fd[fd])]


def _drain(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 16)
    except ConnectionError:
        return b""


def test_s39_a_slow_loris_hurts_no_one_and_its_time_is_bounded(server: Server) -> None:
    """A hundred that say nothing, half a ClientHello, all of it, or byte by byte; and one with TLS but no HTTP/2."""
    hello = _client_hello(server)
    began = time.monotonic()
    with ExitStack() as stack:
        sockets = [stack.enter_context(_connect(server)) for _ in range(100)]
        for sock in sockets[25:50]:
            sock.sendall(hello[: len(hello) // 2])
        for sock in sockets[50:75]:
            sock.sendall(hello)
        context = tls.create_default_context(cafile=str(server.ssl / "root.pem"))
        context.set_alpn_protocols(["h2"])
        context.load_cert_chain(server.ssl / "client.pem", server.ssl / "client-key.pem")
        sockets.append(stack.enter_context(context.wrap_socket(_connect(server), server_hostname="localhost")))
        trickle = iter(hello)
        left = set(sockets)

        def all_closed() -> bool:
            byte = next(trickle, None)
            for sock in sockets[75:100]:
                if sock in left and byte is not None:
                    try:
                        sock.send(bytes([byte]))
                    except ConnectionError:
                        left.discard(sock)
            left.difference_update(_closed(list(left)))
            return not left

        assert not all_closed()
        done = server.client("run", "--", "echo", "unhurt")
        assert (done.returncode, done.stdout) == (0, b"unhurt\n"), done.stderr
        assert time.monotonic() - began < min(SOON_S, bounds.HANDSHAKE_TIMEOUT_S)
        assert left  # it was while they were there
        wait_until("every half-open connection is closed", all_closed, bounds.HANDSHAKE_TIMEOUT_S + 5)


@contextmanager
def _open_files(count: int) -> Iterator[None]:
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(old[0], count), max(old[1], count)))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, old)


def test_s39_connections_are_bounded_and_those_there_go_on(make_server: Callable[..., Server], ssl: Path) -> None:
    server = make_server()
    with RawClient(server, ssl / "client") as owner, ExitStack() as stack:
        job = owner.start("sleep", "1000")
        stack.enter_context(_open_files(bounds.MAX_CONNECTIONS + 200))
        sockets = [stack.enter_context(_connect(server)) for _ in range(bounds.MAX_CONNECTIONS + 10)]
        over = 11  # the owner has one too
        wait_until(
            "those over the bound are closed", lambda: len(_closed(sockets)) >= over, bounds.HANDSHAKE_TIMEOUT_S / 2
        )
        assert len(_closed(sockets)) == over
        with RawClient(server, ssl / "bubba") as late:
            assert late.status(job.name).code is grpc.StatusCode.UNAVAILABLE
        assert owner.status(job.name).code is OK
        assert owner.start("true").uid
    wait_until("there is room again", lambda: server.client("run", "--", "true").returncode == 0)
    assert server.stop() == 0


def test_s39_the_api_may_open_as_many_files_as_it_is_let(server: Server) -> None:
    limits = Path(f"/proc/{server.children()['api']}/limits").read_text()
    soft, hard = limits.split("Max open files")[1].split()[:2]
    assert soft == hard


@pytest.mark.parametrize("ends", ["cancelled", "disconnected"])
def test_s39_calls_of_one_user_are_bounded(server: Server, ssl: Path, ends: str) -> None:
    with RawClient(server, ssl / "client") as owner, RawClient(server, ssl / "admin") as admin:
        job = owner.start("sleep", "1000")
        request = pb.WatchJobOutputRequest(name=job.name)
        with RawClient(server, ssl / "client") as watcher:
            watches = [watcher.start_call(WATCH, request) for _ in range(bounds.MAX_CALLS_PER_USER)]
            refused = wait_until("the bound is reached", lambda: _refused(owner, job.name))
            assert (refused.code, refused.bodies) == (EXHAUSTED, [])
            assert f"{bounds.MAX_CALLS_PER_USER} calls of one user" in refused.details
            assert {owner.call_method(method, "tele-tester", job.uid).code for method in METHODS} == {EXHAUSTED}
            assert owner.call_method("GetJobStatus", "tele-tester", job.uid, ORIGINAL).code is EXHAUSTED
            assert admin.status(job.name).code is OK  # another user
            for watch in watches if ends == "cancelled" else []:
                watch.cancel()
            if ends == "disconnected":
                watcher.channel.close()
            wait_until("the calls have ended", lambda: not _refused(owner, job.name))
        assert owner.call_method("StopJob", "tele-tester", job.uid).code is OK


def _refused(caller: RawClient, name: str) -> Response | None:
    answer = caller.status(name)
    return None if answer.code is OK else answer


def test_s39_messages_and_headers_are_bounded(server: Server, ssl: Path) -> None:
    def start(size: int, headers: int = 0) -> Response:
        return owner.call(START, pb.StartJobRequest(argv=[b"true", b"x" * size]), metadata=[("x-pad", "y" * headers)])

    with RawClient(server, ssl / "client") as owner:
        assert start(10_000, bounds.MAX_METADATA_BYTES // 2).code is OK
        assert start(2 << 20).code is EXHAUSTED
        assert start(10, bounds.MAX_METADATA_BYTES * 2).code is EXHAUSTED
        assert start(10).code is OK  # on the same connection


def test_s39_a_command_over_the_helpers_bound_is_refused_before_it(server: Server, ssl: Path) -> None:
    """Each word is within bounds, and they are not together: what the helper would take for an attack."""
    with RawClient(server, ssl / "client") as owner:
        answer = owner.call(START, pb.StartJobRequest(argv=[b"true", *[b"x" * 10_000] * 21]))
        assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
        assert "too long" in answer.details
        assert owner.start("true").uid  # the helper is there


@pytest.mark.parametrize(
    "method",
    [
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/Watch",
        "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "grpc.channelz.v1.Channelz/GetServers",
        f"{SERVICE}/NoSuchMethod",
        f"{SERVICE}/startjob",
        "NoSuchService/StartJob",
    ],
)
def test_s40_nothing_else_is_served(server: Server, ssl: Path, method: str) -> None:
    with RawClient(server, ssl / "admin") as admin:
        assert admin.call(f"/{method}", b"").code is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("request_", [b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
def test_s40_nothing_is_served_without_tls(server: Server, request_: bytes) -> None:
    with _connect(server) as sock:
        sock.sendall(request_)
        sock.settimeout(SOON_S)
        answer = b""
        while piece := _drain(sock):
            answer += piece
        assert b"HTTP" not in answer
        assert b"\0\0\0\4" not in answer  # an empty SETTINGS frame


def test_s40_only_watch_and_run_print_a_jobs_bytes_raw(server: Server) -> None:
    raw = NASTY.encode()
    script = 'printf %s "$1"; printf %s "$1" >&2'
    done = server.client("run", "--", "sh", "-c", script, "sh", NASTY)
    assert (done.returncode, done.stdout, done.stderr) == (0, raw, raw)
    watched = server.client("watch")
    assert (watched.stdout, watched.stderr) == (raw, raw)
    text = server.client("status").stdout.decode()
    assert all(line.isprintable() for line in text.split("\n"))
    fields = dict(line.split(maxsplit=1) for line in text.splitlines() if line.startswith(("command", "state")))
    assert "\\x1b[31mred\\x07\\n\\r\\x9b2J\\u202e\\ttail" in fields["command"]
    assert fields["state"] == "completed"
    shown = server.client("status", "-o", "json").stdout.decode()
    assert shown.removesuffix("\n").isprintable()
    assert json.loads(shown)["command"] == ["sh", "-c", script, "sh", NASTY]


@pytest.mark.parametrize(
    "words",
    [
        ["run", "-w", "/" + NASTY, "--", "true"],
        ["run", "--profile", NASTY, "--", "true"],
        ["run", "-m", NASTY, "--", "true"],
        ["run", "--", "/" + NASTY],
        ["run", f"--{NASTY}", "--", "true"],
        ["status", NASTY],
        ["watch", f"users/{NASTY}/jobs/x"],
        ["status", "-j", NASTY],
        ["status", "-c", NASTY],
        ["stop", "--stop-signal", NASTY],
    ],
    ids=lambda words: " ".join(words).replace(NASTY, "X"),
)
def test_s40_notes_on_stderr_are_escaped(server: Server, words: list[str]) -> None:
    done = server.client(words[0], *words[1:])
    assert done.returncode in (125, 127)
    assert done.stdout == b""
    assert all(line.isprintable() for line in done.stderr.decode().split("\n"))
    assert "Traceback" not in done.stderr.decode()


def test_s33_the_servers_log_has_nothing_of_what_users_send(make_server: Callable[..., Server], ssl: Path) -> None:
    server = make_server()
    listening = server.log_text()
    hidden = f"{SECRET}{NASTY}"
    environment = ["-e", f"PASSWORD={hidden}", "-e", f"{SECRET}=1"]
    assert server.client("run", *environment, "--", "echo", hidden).stdout.decode() == f"{hidden}\n"
    for words in (["--", f"/{hidden}"], ["-w", f"/{hidden}", "--", "true"], ["--profile", hidden, "--", "true"]):
        assert server.client("run", *environment, *words).returncode in (125, 127)
    with RawClient(server, ssl / "client") as owner:
        for user, body in ((hidden, b""), ("x", hidden.encode() * 10_000), ("x", hidden.encode())):
            request = pb.StartJobRequest(parent=f"users/{user}", argv=[body])
            assert owner.call(START, request, metadata=[("x-secret", SECRET)]).code is not OK
        assert owner.call(START, b"\xff" + hidden.encode()).code is not OK  # no message at all
        assert owner.status(f"users/{hidden}/jobs/{hidden}").code is not OK
    assert server.log_text() == listening
    assert server.stop() == 0


def test_s33_an_unforeseen_error_tells_the_client_nothing(make_server: Callable[..., Server], ssl: Path) -> None:
    """A state directory that takes no more: one line for the log, no path for the client, no job left behind."""
    server = make_server()
    server.client("run", "--", "true")
    listening, api = server.log_text(), server.children()["api"]
    logs = server.state / "jobs"
    with RawClient(server, ssl / "client") as owner:
        fds = len(list(Path(f"/proc/{api}/fd").iterdir()))
        logs.chmod(0)
        for _ in range(3):
            answer = owner.call(START, pb.StartJobRequest(argv=[b"sleep", b"1000", SECRET.encode()]))
            assert (answer.code, answer.bodies) == (grpc.StatusCode.INTERNAL, [])
            assert str(server.state) not in str(answer)
            assert "Error" not in answer.details
        lines = server.log_text().removeprefix(listening).splitlines()
        assert len(lines) == 3
        assert all(line.startswith("telehandler: PermissionError at ") and SECRET not in line for line in lines)
        wait_until("no job's cgroup is left", lambda: not _jobs_of(server))
        logs.chmod(0o700)
        assert owner.start("true").uid
        wait_until("no fd is left", lambda: len(list(Path(f"/proc/{api}/fd").iterdir())) <= fds + 1)  # and owner's
    assert server.stop() == 0


def _jobs_of(server: Server) -> list[Path]:
    return list(server.cgroup.glob("job-*"))
