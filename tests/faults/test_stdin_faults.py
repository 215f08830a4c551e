"""R28: a job's input arrives once and whole, or its client is told, whoever is killed, whatever connection breaks."""

import hashlib
import os
import queue
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.checkout import ROOT
from support.raw_client import SERVICE, WRITER, RawClient
from support.servers import Server, free_address
from support.tcp_proxy import Proxy
from support.wait import DEADLINE_S, wait_until

from telehandler.pb import telehandler_pb2 as pb

Code = grpc.StatusCode
PIECE = 1 << 16
PIECES = 64  # 4 MiB
OTHER = bytes(16)


@pytest.fixture(scope="module")
def server(make_server: Callable[..., Server]) -> Iterator[Server]:
    server = make_server(listen=free_address())
    yield server
    server.stop()


@pytest.fixture(scope="module")
def owner(server: Server, ssl: Path) -> Iterator[RawClient]:
    with RawClient(server, ssl / "client") as client:
        yield client


class Call:
    """WriteStdin, a request at a time, by a client that is not ours."""

    def __init__(self, client: RawClient, name: str, writer: bytes = WRITER, resume: bool = False) -> None:
        method = client.channel.stream_stream(
            f"/{SERVICE}/WriteStdin",
            request_serializer=pb.WriteStdinRequest.SerializeToString,
            response_deserializer=pb.WriteStdinResponse.FromString,
        )
        self._queue: queue.SimpleQueue[pb.WriteStdinRequest | None] = queue.SimpleQueue()
        self.call: Any = method(iter(self._queue.get, None), timeout=DEADLINE_S)
        self.send(name=name, writer=writer, resume=resume)

    def send(self, **fields: Any) -> None:
        self._queue.put(pb.WriteStdinRequest(**fields))

    def ask(self, **fields: Any) -> pb.WriteStdinResponse:
        self.send(**fields)
        return self.response()

    def response(self) -> pb.WriteStdinResponse:
        return next(self.call)  # type: ignore[no-any-return]  # grpc's

    def code(self, words: str = "") -> grpc.StatusCode:
        """How the call ends."""
        with suppress(grpc.RpcError):
            list(self.call)
        self._queue.put(None)
        assert words in self.call.details()
        return self.call.code()  # type: ignore[no-any-return]

    def leave(self) -> None:
        self.call.cancel()
        self._queue.put(None)


@contextmanager
def job(owner: RawClient, *argv: str, **fields: Any) -> Iterator[str]:
    name = owner.start(*argv, **(fields or {"stdin": True})).name
    yield name
    owner.call(f"/{SERVICE}/StopJob", pb.StopJobRequest(name=name, signal=9))


def _run(server: Server, *arguments: str) -> "subprocess.Popen[bytes]":
    command = server.client_command("run", *arguments)
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _feed(process: "subprocess.Popen[bytes]", fault: Callable[[], object], every: int) -> str:
    """Writes PIECES to its stdin, with a fault amid them now and then: their SHA-256."""
    assert process.stdin
    digest = hashlib.sha256()
    for number in range(PIECES):
        piece = hashlib.sha256(b"%d" % number).digest() * (PIECE // 32)
        digest.update(piece)
        try:
            process.stdin.write(piece)
            process.stdin.flush()
        except BrokenPipeError:  # it has ended, and says why
            break
        if number % every == every - 1:
            fault()
    return digest.hexdigest()


def test_r28_a_connection_that_breaks_loses_no_byte_and_sends_none_twice(server: Server) -> None:
    with Proxy(server.port) as proxy:
        command = server.client_command("run", "-i", "--", "sha256sum")
        command = [f"localhost:{proxy.port}" if word == f"localhost:{server.port}" else word for word in command]
        with subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            wait_until("it is connected", proxy.connections)
            cuts: list[int] = []

            def cut() -> None:
                wait_until("it is connected again", lambda: proxy.connections() or process.poll() is not None)
                cuts.append(proxy.cut())

            expected = _feed(process, cut, 9)
            out, errors = process.communicate(timeout=DEADLINE_S)
    assert sum(cuts) >= 2
    assert (process.returncode, out[:64].decode()) == (0, expected), errors


def test_r28_an_api_that_is_killed_loses_nothing_or_its_client_is_told(server: Server) -> None:
    def kill() -> None:
        api = wait_until("an api is there", lambda: server.children().get("api"))
        os.kill(api, signal.SIGKILL)
        wait_until("another one is", lambda: server.children().get("api", api) != api)

    with _run(server, "-i", "--", "sha256sum") as process:
        expected = _feed(process, kill, 21)
        out, errors = process.communicate(timeout=DEADLINE_S)
    if process.returncode == 0:
        assert out[:64].decode() == expected
    else:
        assert process.returncode == 125
        assert b"nobody knows whether the job got them" in errors
        server.client("stop", "--stop-timeout", "0")


def test_r28_what_nobody_knows_of_is_told(server: Server, owner: RawClient) -> None:
    """The api is killed between a write and its note: as if so, by the file in which it notes them."""
    with job(owner, "cat") as name:
        call = Call(owner, name)
        call.response()
        assert call.ask(data=b"first").offset == 5
        call.leave()
        assert server.process
        server.process.send_signal(signal.SIGSTOP)
        try:
            api = server.children()["api"]
            os.kill(api, signal.SIGKILL)
            path = server.state / "jobs" / name.rpartition("/")[2] / "stdin"
            state = path.read_bytes()
            assert struct.unpack_from("<QQ", state) == (5, 0)
            path.write_bytes(struct.pack("<QQ", 5, 7) + state[16:])
        finally:
            server.process.send_signal(signal.SIGCONT)
        wait_until("another api serves", lambda: owner.status(name).code is Code.OK)
        call = Call(owner, name, resume=True)
        response = call.response()
        assert (response.offset, response.unknown_bytes) == (12, 7)
        assert call.ask(offset=12, data=b"more").offset == 16
        call.leave()
        call = Call(owner, name, resume=True)
        assert (response := call.response()).unknown_bytes == 0
        assert response.offset == 16
        call.leave()


def test_r28_the_end_is_passed_on_by_the_next_api(server: Server, owner: RawClient) -> None:
    with job(owner, "sh", "-c", "cat; exit 4") as name:
        os.kill(server.children()["api"], signal.SIGKILL)
        wait_until("another api serves", lambda: owner.status(name).code is Code.OK)
        call = Call(owner, name)
        assert call.response().offset == 0
        assert call.ask(data=b"x", end=True).ended
        assert call.code() is Code.OK
        assert owner.job_status(name, wait=True).exit_code == 4


def test_r28_a_client_that_is_killed_leaves_the_rest_to_another(server: Server, owner: RawClient) -> None:
    with _run(server, "-i", "--", "sha256sum") as process:
        assert process.stdin
        jidfile = server.jidfile()
        before = jidfile.read_text() if jidfile.exists() else ""
        wait_until("the job runs", lambda: jidfile.exists() and jidfile.read_text() != before)
        name = jidfile.read_text().strip()
        data = os.urandom(2 << 20)
        process.stdin.write(data)
        process.stdin.flush()
        process.kill()
    call = Call(owner, name)
    taken = call.response().offset
    assert 0 <= taken <= len(data)
    for at in range(taken, len(data), PIECE):
        call.ask(offset=at, data=data[at : at + PIECE])
    assert call.ask(offset=len(data), end=True).ended
    owner.job_status(name, wait=True)
    assert server.client("watch", name).stdout[:64].decode() == hashlib.sha256(data).hexdigest()


def test_r28_what_was_taken_already_is_skipped(server: Server, owner: RawClient) -> None:
    with job(owner, "cat") as name:
        call = Call(owner, name)
        call.response()
        assert call.ask(offset=0, data=b"abc").offset == 3
        assert call.ask(offset=0, data=b"abc").offset == 3
        assert call.ask(offset=1, data=b"bcde").offset == 5
        assert call.ask(offset=5, end=True).ended
        owner.job_status(name, wait=True)
        assert server.client("watch", name).stdout == b"abcde"


def test_r28_a_hole_is_refused(owner: RawClient) -> None:
    with job(owner, "cat") as name:
        for fields in ({"offset": 1, "data": b"x"}, {"offset": 1 << 63, "data": b"x"}, {"offset": 5, "end": True}):
            call = Call(owner, name)
            assert call.response().offset == 0
            call.send(**fields)
            assert call.code("is beyond byte 0") is Code.OUT_OF_RANGE


def test_r28_behind_the_end_nothing_is_taken(owner: RawClient) -> None:
    with job(owner, "sh", "-c", "cat; exec sleep 1000") as name:
        call = Call(owner, name)
        call.response()
        assert call.ask(data=b"x", end=True).ended
        assert call.code() is Code.OK
        call = Call(owner, name)
        assert (response := call.response()).ended
        assert response.offset == 1
        call.send(offset=1, data=b"more")
        assert call.code() is Code.OK


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "again"}, "only the first request"),
        ({"writer": WRITER}, "only the first request"),
        ({"data": bytes((256 << 10) + 1)}, "at most 256 KiB"),
        ({"size": pb.TerminalSize(rows=1, columns=1)}, "the job has none"),
    ],
)
def test_what_is_no_request_is_refused(owner: RawClient, fields: dict[str, Any], words: str) -> None:
    with job(owner, "cat") as name:
        call = Call(owner, name)
        call.response()
        call.send(**fields)
        assert call.code(words) is Code.INVALID_ARGUMENT
        assert Call(owner, name).response().offset == 0


def test_a_terminal_has_no_end_and_sizes_that_are_some(owner: RawClient) -> None:
    with job(owner, "cat", terminal=True) as name:
        sizes = [pb.TerminalSize(rows=rows, columns=columns) for rows, columns in ((0, 1), (1, 0), (1 << 16, 1))]
        for request in (pb.WriteStdinRequest(end=True), *(pb.WriteStdinRequest(size=size) for size in sizes)):
            call = Call(owner, name)
            call.response()
            call.send(end=request.end, size=request.size if request.HasField("size") else None)
            assert call.code() is Code.INVALID_ARGUMENT


def test_a_call_needs_a_writer_and_a_job_that_takes_input(owner: RawClient, server: Server, ssl: Path) -> None:
    with job(owner, "cat") as name:
        assert Call(owner, name, writer=b"short").code("a writer of 16 bytes") is Code.INVALID_ARGUMENT
        with RawClient(server, ssl / "bubba") as other:
            assert Call(other, name).code("no such job, or not yours") is Code.NOT_FOUND
    with job(owner, "sleep", "1000", merge_stderr=True) as name:
        assert Call(owner, name).code("takes no input") is Code.FAILED_PRECONDITION
    assert owner.job_status(name, wait=True)
    with job(owner, "true") as name:
        owner.job_status(name, wait=True)
        assert Call(owner, name).code("the job has ended") is Code.FAILED_PRECONDITION


def test_r28_one_writes_at_a_time(owner: RawClient) -> None:
    """Who was taken over from cannot go on: its offsets are of another input."""
    with job(owner, "cat") as name:
        first = Call(owner, name)
        first.response()
        first.ask(data=b"mine")
        second = Call(owner, name, writer=OTHER)
        assert second.response().offset == 4
        assert first.code("another client writes") is Code.ABORTED
        assert second.ask(offset=4, data=b"theirs").offset == 10
        assert Call(owner, name, resume=True).code("another client writes") is Code.ABORTED
        assert second.ask(offset=10, data=b"!").offset == 11
        second.leave()


def test_a_call_ends_with_its_job(owner: RawClient) -> None:
    with job(owner, "sh", "-c", "read line") as name:
        call = Call(owner, name)
        call.response()
        call.send(data=b"line\n")
        assert call.code() in (Code.OK, Code.FAILED_PRECONDITION)


def test_what_one_user_has_waiting_is_bounded(owner: RawClient, server: Server) -> None:
    """Jobs that read nothing: their pipes hold some, the api a request for each, and 16 MiB in all."""
    calls, names = [], []
    for _ in range(66):
        names.append(owner.start("sleep", "1000", stdin=True).name)
        call = Call(owner, names[-1])
        call.response()
        for number in range(5):
            call.send(offset=number * 262144, data=bytes(262144))
        calls.append(call)
    wait_until(
        "one is refused",
        lambda: any(call.call.code() is Code.RESOURCE_EXHAUSTED for call in calls if not call.call.is_active()),
    )
    assert server.runs_jobs()
    for call in calls:
        call.leave()
    for name in names:
        owner.call(f"/{SERVICE}/StopJob", pb.StopJobRequest(name=name, signal=9))
