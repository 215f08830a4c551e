"""A server whose answers a test sets, and the client's command line against it."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import grpc
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


class ScriptedServer:
    """The bodies of each method's answers, and what comes behind a watch; at first those of a good server."""

    def __init__(self, ssl: Path) -> None:
        self._ssl = ssl
        self.start = pb.JobResponse(name=NAME).SerializeToString()
        self.status = pb.JobStatus(name=NAME, state="JOB_STATE_COMPLETED", reason="JOB_REASON_EXITED")
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
