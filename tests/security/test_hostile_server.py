"""S53: what a broken or hostile server sends costs a client an error: no memory, no raw control character, no hang."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
import zstandard
from google.protobuf.empty_pb2 import Empty
from support.checkout import ROOT
from support.command_line import COMMAND
from support.raw_client import SERVICE

from telehandler.pb import telehandler_pb2 as pb

DEADLINE_S = 20.0
MAX_RSS_BYTES = 160 << 20  # it needs 60 MiB for the good answers
NAME = "users/tele-tester/jobs/4f1c2a9e-0b1d-4c52-9d0a-3f6f1f5b7a10"
ENDED = (
    ("telehandler-state", "completed"),
    ("telehandler-reason", "exited"),
    ("telehandler-exit-code", "0"),
    ("telehandler-signal", "0"),
    ("telehandler-detail", ""),
)
BOMB = 3 << 30


class Hostile:
    """A server whose answers a test sets: the bodies of each method, and what comes behind a watch."""

    def __init__(self, ssl: Path) -> None:
        self._ssl = ssl
        self.start = pb.JobResponse(name=NAME).SerializeToString()
        self.status = pb.JobStatus(name=NAME, state=3, reason=1)
        self.status.end_time.seconds = 1
        self.pages: Callable[[pb.ListJobsRequest], bytes] = lambda _: pb.ListJobsResponse().SerializeToString()
        self.watch: list[bytes] = []
        self.end: tuple[tuple[str, str], ...] = ENDED
        self.abort: tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]] | None = None
        self.compression: grpc.Compression | None = None
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.max_send_message_length", -1)])
        unary = {
            "StartJob": lambda _: self.start,
            "GetJobStatus": lambda _: self.status.SerializeToString(),
            "ListJobs": lambda body: self.pages(pb.ListJobsRequest.FromString(body)),
            "StopJob": lambda _: Empty().SerializeToString(),
            "DeleteJob": lambda _: Empty().SerializeToString(),
        }
        methods: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(self._call(f)) for name, f in unary.items()
        }
        methods["WatchJobOutput"] = grpc.unary_stream_rpc_method_handler(self._watch)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        pair = (ssl / "server-key.pem").read_bytes(), (ssl / "server.pem").read_bytes()
        credentials = grpc.ssl_server_credentials([pair], (ssl / "root.pem").read_bytes(), True)
        self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self._server.start()

    def close(self) -> None:
        self._server.stop(0).wait()

    def _call(self, answer: Callable[[bytes], bytes]) -> Callable[[bytes, Any], bytes]:
        def call(body: bytes, context: Any) -> bytes:
            if self.compression is not None:
                context.set_compression(self.compression)
            if self.abort:
                context.set_trailing_metadata(self.abort[2])
                context.abort(*self.abort[:2])
            return answer(body)

        return call

    def _watch(self, _: bytes, context: Any) -> Iterator[bytes]:
        yield from self.watch
        context.set_trailing_metadata(self.end)

    def client(self, tmp_path: Path, verb: str, *words: str) -> "Seen":
        """A run of the client against this."""
        settings = {"-c": "client.pem", "-k": "client-key.pem", "-r": "root.pem"}
        where = [word for flag, file in settings.items() for word in (flag, str(self._ssl / file))]
        where += ["-s", f"localhost:{self.port}", "-j", str(tmp_path / "jid")]
        command = [*COMMAND, "client", verb, *where, *words]
        out, err = tmp_path / "stdout", tmp_path / "stderr"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            measured = [sys.executable, "-I", "-S", "-c", _MEASURE, str(DEADLINE_S), *command]
            done = subprocess.run(measured, cwd=ROOT, stdout=subprocess.PIPE, stdin=stdout, stderr=stderr, check=True)
        code, rss = map(int, done.stdout.split())
        return Seen(code, out.read_bytes(), err.read_bytes(), rss)


# A process of its own: what it forks has no memory of this one's. The client's stdout is its fd 0.
_MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=0, timeout=float(sys.argv[1])).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


class Seen(NamedTuple):
    code: int
    stdout: bytes
    stderr: bytes
    rss: int

    def refused(self, *words: str) -> None:
        """One line of ours, and nothing else."""
        assert self.code == 125, self
        assert self.stdout == b""
        (line,) = self.stderr.decode().splitlines()
        assert line.startswith("telehandler: ")
        assert "the server " in line
        assert line.isprintable()
        assert "fault in telehandler" not in line
        for word in words:
            assert word in line
        self.harmless()

    def harmless(self) -> None:
        assert b"Traceback" not in self.stderr
        assert self.rss < MAX_RSS_BYTES


@pytest.fixture
def hostile(ssl: Path) -> Iterator[Hostile]:
    server = Hostile(ssl)
    yield server
    server.close()


def _frame_that_states(size: int, data: bytes = b"x") -> bytes:
    """A zstd frame (RFC 8878) whose header states `size` bytes of content: magic, descriptor, size, one raw block."""
    block = (len(data) << 3 | 1).to_bytes(3, "little") + data
    return b"\x28\xb5\x2f\xfd" + bytes([0b11100000]) + size.to_bytes(8, "little") + block


def _output(**fields: Any) -> bytes:
    return pb.JobOutput(**{"stream": 1, **fields}).SerializeToString()


WINDOW = b"\x28\xb5\x2f\xfd\x00\xa0" + (9).to_bytes(3, "little") + b"x"  # no size, a window of a gigabyte

BAD_OUTPUT = {
    "zstd states gigabytes": _output(zstd=_frame_that_states(BOMB), length=1),
    "and so does the message": _output(zstd=_frame_that_states(BOMB), length=BOMB),
    "zstd that unpacks to more": _output(zstd=zstandard.ZstdCompressor().compress(bytes(100 << 20)), length=10),
    "no size, gigabytes as its window": _output(zstd=WINDOW, length=1),
    "no zstd": _output(zstd=b"nothing of the kind", length=10),
    "zstd that is shorter": _output(zstd=zstandard.ZstdCompressor().compress(b"abc"), length=5),
    "stream 0": _output(stream=0, data=b"x"),
    "stream 7": _output(stream=7, data=b"x"),
    "behind the last offset": _output(offset=(1 << 64) - 1, data=b"xx"),
}


@pytest.mark.parametrize("verb", ["run", "watch"])
@pytest.mark.parametrize("name", BAD_OUTPUT)
def test_s53_output_that_is_none(hostile: Hostile, tmp_path: Path, name: str, verb: str) -> None:
    hostile.watch = [BAD_OUTPUT[name]]
    hostile.client(tmp_path, verb, *(["--", "true"] if verb == "run" else [NAME])).refused("sent")


def test_s53_a_benchmark_takes_no_more_of_it(hostile: Hostile, tmp_path: Path) -> None:
    hostile.watch = [BAD_OUTPUT["and so does the message"]]
    seen = hostile.client(tmp_path, "benchmark", "--discard", "--watchers", "2", "--processes", "1", "--", "true")
    assert seen.code == 1
    assert b"cannot be decompressed" in seen.stderr
    seen.harmless()


@pytest.mark.parametrize("kind", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_s53_messages_that_grpc_would_unpack(hostile: Hostile, tmp_path: Path, kind: grpc.Compression) -> None:
    """A megabyte on the wire, a gigabyte in memory."""
    hostile.compression = kind
    hostile.start = pb.JobResponse(name=NAME, sandbox=[bytes(200 << 20)]).SerializeToString()
    seen = hostile.client(tmp_path, "run", "-d", "--", "true")
    assert seen.code == 125
    assert len(seen.stderr.splitlines()) == 1
    seen.harmless()


@pytest.mark.parametrize("text", [*"0", "-1", "256", "1" + "0" * 20, "9" * 5000, "", "x", "1.5"])
@pytest.mark.parametrize("key", ["exit-code", "signal"])
def test_s53_numbers_of_an_end_that_are_none(hostile: Hostile, tmp_path: Path, text: str, key: str) -> None:
    hostile.end = tuple((name, text if name.endswith(key) else value) for name, value in ENDED)
    seen = hostile.client(tmp_path, "watch", NAME)
    if text == "0":
        assert (seen.code, seen.stderr) == (0, b"")
    else:
        seen.refused(key.replace("-", " "))


STATUS = {
    "exit code": {"exit_code": 256},
    "negative": {"exit_code": -3},
    "signal": {"signal": 1 << 30},
    "start": {"start_time": {"seconds": 1 << 62}},
    "nanos": {"start_time": {"nanos": -5}},
    "end": {"end_time": {"seconds": -(1 << 62)}},
}


@pytest.mark.parametrize("name", STATUS)
@pytest.mark.parametrize("verb", ["status", "ls", "wait"])
def test_s53_a_status_whose_numbers_are_none(hostile: Hostile, tmp_path: Path, name: str, verb: str) -> None:
    hostile.status.MergeFrom(pb.JobStatus(**STATUS[name]))  # type: ignore[arg-type]
    hostile.pages = lambda _: pb.ListJobsResponse(jobs=[hostile.status]).SerializeToString()
    hostile.client(tmp_path, verb, *([] if verb == "ls" else [NAME])).refused("sent")


def test_s53_a_state_that_only_a_newer_server_has(hostile: Hostile, tmp_path: Path) -> None:
    hostile.status.state, hostile.status.reason = 77, 78  # type: ignore[assignment]
    seen = hostile.client(tmp_path, "status", NAME)
    assert seen.code == 0
    assert b"77" in seen.stdout
    assert b"78" in seen.stdout


NAMES = [
    *("", "x", "users/a/jobs/b", f"{NAME}\n", NAME.replace("tester", "\x1b[31mtester"), NAME.upper()),
    *(NAME.replace("tele", "\x9b5n"), NAME.replace("tester", "\u202e"), f"{NAME}/x", NAME.replace("tele-tester", "")),
    "users/" + "x" * 100_000,
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", [["-d"], []])
def test_s53_a_name_that_is_none(hostile: Hostile, tmp_path: Path, name: str, how: list[str]) -> None:
    hostile.start = pb.JobResponse(name=name).SerializeToString()
    hostile.client(tmp_path, "run", *how, "--", "true").refused("no job's name")
    assert not (tmp_path / "jid").exists()


def test_s53_no_control_character_reaches_a_terminal(hostile: Hostile, tmp_path: Path) -> None:
    """Of any field, in any verb that prints it."""
    bad = "a\x1b[2J\x9b\r\n\x07\u202eb"
    hostile.status.MergeFrom(pb.JobStatus(name=bad, owner=bad, argv=[bad.encode(), b"\xff\x1b["]))
    hostile.pages = lambda _: pb.ListJobsResponse(jobs=[hostile.status]).SerializeToString()
    hostile.end = tuple((name, f"{value}\x1b[2J" if name.endswith("detail") else value) for name, value in ENDED)
    hostile.start = pb.JobResponse(
        name=NAME, sandbox=[f"env {bad}".encode()], unenforced_limits=[bad]
    ).SerializeToString()
    for verb, *words in (
        ["status", NAME],
        ["ls"],
        ["ls", "-q"],
        ["ls", "-a"],
        ["status", "-o", "json", NAME],
        ["run", "--dry-run", "--", "true"],
        ["run", "-d", "--", "true"],
        ["watch", NAME],
    ):
        seen = hostile.client(tmp_path, verb, *words)
        for line in (seen.stdout + seen.stderr).decode().splitlines():
            assert line.isprintable(), (verb, line)
        seen.harmless()
    hostile.abort = (grpc.StatusCode.INTERNAL, bad, ())
    seen = hostile.client(tmp_path, "ls")
    assert (seen.code, len(seen.stderr.decode().splitlines())) == (125, 1)
    assert seen.stderr.decode().strip().isprintable()


@pytest.mark.parametrize("errno", ["-5", "x", "", "9" * 5000, "2"])
def test_s53_an_errno_that_is_none(hostile: Hostile, tmp_path: Path, errno: str) -> None:
    trailing = (("telehandler-stage", "exec"), ("telehandler-errno", errno))
    hostile.abort = (grpc.StatusCode.FAILED_PRECONDITION, "no", trailing)
    seen = hostile.client(tmp_path, "run", "--", "true")
    assert (seen.code, seen.stderr) == (127 if errno == "2" else 126, b"telehandler: no\n")


def test_s53_a_list_without_an_end(hostile: Hostile, tmp_path: Path) -> None:
    """Pages without a job that say there are more; and more jobs than were asked for."""
    hostile.pages = lambda _: pb.ListJobsResponse(next_page_token="x").SerializeToString()
    hostile.client(tmp_path, "ls").refused("empty page")
    hostile.client(tmp_path, "status", "abc").refused("empty page")
    jobs = [hostile.status] * 5000
    hostile.pages = lambda _: pb.ListJobsResponse(jobs=jobs, next_page_token="x").SerializeToString()
    seen = hostile.client(tmp_path, "ls", "-q", "--limit", "3")
    assert (seen.code, len(seen.stdout.splitlines())) == (0, 3)


def test_s53_a_wait_that_is_answered_too_soon(hostile: Hostile, tmp_path: Path) -> None:
    hostile.status.ClearField("end_time")
    hostile.client(tmp_path, "wait", NAME).refused("does not know")


def test_s53_bodies_that_are_no_message(hostile: Hostile, tmp_path: Path) -> None:
    hostile.start = b"\xff\xff\xff"
    hostile.watch = [b"\xff\xff\xff"]
    for verb, *words in (["run", "--", "true"], ["watch", NAME]):
        seen = hostile.client(tmp_path, verb, *words)
        assert seen.code == 125
        assert len(seen.stderr.splitlines()) == 1
        seen.harmless()
