"""R17: output of every kind, byte for byte at every watcher, whenever and wherever it joins; memory stays bounded.

In full, 10 GiB and a line of 1 GiB: `make test-full`.
"""

import hashlib
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from support.process_usage import rss_bytes
from support.raw_client import SERVICE, RawClient
from support.servers import Server
from support.wait import wait_until

from telehandler.client.answers import unpack
from telehandler.pb import telehandler_pb2 as pb

FULL = bool(os.environ.get("TELEHANDLER_FULL"))
LINE_BYTES, LARGE_BYTES = (1 << 30, 10 << 30) if FULL else (48 << 20, 96 << 20)
SINGLE_WRITES = 200_000
WATCHERS = 5
MAX_GROWTH = 160 << 20  # the cache of chunks (32 MiB), what grpc holds of a chunk for each watcher, allocators
PYTHON = ("/usr/bin/python3", "-ISc")
ODD = "bytes(range(256)) + b'\\xff\\xfe\\xc3\\x28\\xed\\xa0\\x80\\xf5\\0\\r\\n\\x1b[2J'"
JOBS = {
    "no newline": "out(1, b'x' * 1234567)",
    "all bytes": f"for n in range(300): out(1 + n % 2, {ODD} * (1 + n % 97))",
    "single bytes": f"for n in range({SINGLE_WRITES}): out(1, b'%c' % (n % 251))",
    "interleaved": "for n in range(40000): out(1 + (n * 7 % 5 < 2), b'%d;' % n)",
    "one line": f"piece = os.urandom(1 << 20)\nfor n in range({LINE_BYTES >> 20}): out(1, piece.replace(b'\\n', b' '))",
    "large": f"piece = os.urandom(1 << 20)\nfor n in range({LARGE_BYTES >> 20}): out(2, piece[n % 1000:])",
}
PRELUDE = """
import hashlib, os
digests = {1: hashlib.sha256(), 2: hashlib.sha256()}
def out(fd, data):
    digests[fd].update(data)
    while data:
        data = data[os.write(fd, data):]
"""
# Its last words: the digests of what it wrote before.
AFTER = "\nos.write(1, (digests[1].hexdigest() + digests[2].hexdigest()).encode())"
LAST_WORDS = 128


@pytest.fixture(scope="module")
def server(make_server: Callable[..., Server]) -> Iterator[Server]:
    server = make_server()
    yield server
    assert server.stop() == 0


class Watcher(threading.Thread):
    """Reads a job's output from `offset` on, over a connection of its own, in pieces of what the server sends."""

    def __init__(self, server: Server, name: str, offset: int, after: Callable[[], bool], zstd: bool) -> None:
        super().__init__()
        self._server, self._after = server, after
        self._request = pb.WatchJobOutputRequest(name=name, offset=offset, accept_zstd=zstd)
        self.digests = {1: hashlib.sha256(), 2: hashlib.sha256()}
        self.order = hashlib.sha256()  # of both in the order of arrival
        self.before_last_words, self.last_words = hashlib.sha256(), b""  # of stdout
        self.end = offset
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            wait_until("it is time to join", self._after, 300)
            with RawClient(self._server, self._server.ssl / "client") as caller:
                for body in caller.start_call(f"/{SERVICE}/WatchJobOutput", self._request, timeout=3600):
                    output = pb.JobOutput.FromString(body)
                    unpack(output)
                    assert (output.offset, output.gap_bytes) == (self.end, 0)
                    self.end += len(output.data)
                    self.digests[output.stream].update(output.data)
                    self.order.update(output.data)
                    if output.stream == pb.OUTPUT_STREAM_STDOUT:
                        data = self.last_words + output.data
                        self.before_last_words.update(data[:-LAST_WORDS])
                        self.last_words = data[-LAST_WORDS:]
        except BaseException as error:
            self.error = error


@pytest.mark.parametrize("kind", JOBS)
def test_r17_every_watcher_gets_every_byte(server: Server, kind: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"random.seed({seed})", file=sys.stderr)
    chance = random.Random(seed)
    api = server.children()["api"]
    with RawClient(server, server.ssl / "client") as caller:
        before = rss_bytes(api)
        name = caller.start(*PYTHON, PRELUDE + JOBS[kind] + AFTER).name
        path = server.state / "jobs" / name.rpartition("/")[2] / "output"
        total = {"one line": LINE_BYTES, "large": LARGE_BYTES}.get(kind, 100_000)
        peak = 0

        def has(size: int) -> bool:
            return path.stat().st_size >= size or caller.job_status(name).state != pb.JOB_STATE_RUNNING

        watchers = []
        for number in range(WATCHERS):
            size = chance.randrange(total)
            watchers.append(Watcher(server, name, 0, lambda size=size: has(size), bool(number % 2)))  # type: ignore[misc]
        for watcher in watchers:
            watcher.start()
        for watcher in watchers:
            while watcher.is_alive():
                watcher.join(0.05)
                peak = max(peak, rss_bytes(api))
        final = caller.job_status(name)
        assert (final.state, final.exit_code) == (pb.JOB_STATE_COMPLETED, 0)
        whole = final.stdout_bytes + final.stderr_bytes
        assert path.stat().st_size == whole
        for watcher in watchers:
            assert watcher.error is None, repr(watcher.error)
            assert watcher.end == whole
            assert watcher.digests[1].digest() == final.stdout_sha256
            assert watcher.digests[2].digest() == final.stderr_sha256
            wrote = watcher.before_last_words.hexdigest() + watcher.digests[2].hexdigest()
            assert watcher.last_words.decode() == wrote  # as the job itself says
        assert peak - before < MAX_GROWTH
        # From anywhere, to the end: as the file has it.
        for _ in range(3):
            offset = chance.randrange(max(0, whole - (8 << 20)), whole + 1)
            late = Watcher(server, name, offset, _now, chance.random() < 0.5)
            late.run()
            assert late.error is None, repr(late.error)
            with path.open("rb") as file:
                file.seek(offset)
                assert late.order.digest() == hashlib.sha256(file.read()).digest()


def _now() -> bool:
    return True


def test_r17_nothing_is_nothing(server: Server) -> None:
    for command in (["true"], ["sh", "-c", ": >&2; printf ''"]):
        done = server.client("run", "--", *command)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        done = server.client("watch", "--verify")
        assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (0, b"", 1)
        assert b"verified" in done.stderr
