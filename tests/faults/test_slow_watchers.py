"""R3: a hundred and one watchers, one of them stopped and one that reads a byte a second: nobody else notices."""

import hashlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
from support.checkout import ROOT
from support.process_usage import rss_bytes
from support.raw_client import SERVICE, RawClient
from support.servers import Server
from support.wait import wait_until

from telehandler.output.watch import CACHE_BYTES, IN_FLIGHT_BYTES
from telehandler.pb import telehandler_pb2 as pb

WATCHERS = 99
FIRST, REST = 1 << 20, 24 << 20  # bytes before and after the watchers are there; random, so that nothing shrinks
# As docs/design.md has it: the chunks that were made last; for each watcher one that is on its way, which grpc has
# twice, plain and encrypted; and its connection and call.
MAX_GROWTH = CACHE_BYTES + 2 * IN_FLIGHT_BYTES + (WATCHERS + 2) * (128 << 10)
SCRIPT = (
    "trap 'go=1' USR1; mkfifo /tmp/f; exec 3<>/tmp/f; head -c $1 /dev/urandom; "
    "until [ $go ]; do read -t .1 -u 3; done; head -c $2 /dev/urandom"
)


class Watcher(threading.Thread):
    """Reads as fast as it comes, on a connection of its own."""

    def __init__(self, caller: RawClient, name: str) -> None:
        super().__init__(daemon=True)
        self.call: Any = caller.start_call(
            f"/{SERVICE}/WatchJobOutput", pb.WatchJobOutputRequest(name=name), timeout=120
        )
        self.digest, self.size, self.code = hashlib.sha256(), 0, grpc.StatusCode.UNKNOWN

    def run(self) -> None:
        try:
            for message in self.call:
                data = pb.JobOutput.FromString(message).data
                self.digest.update(data)
                self.size += len(data)
        except grpc.RpcError:
            pass  # it is in the code
        self.code = self.call.code()


class SlowReader(threading.Thread):
    """Reads one byte a second from a pipe, until it is let go."""

    def __init__(self, fd: int) -> None:
        super().__init__(daemon=True)
        self._fd, self.let_go = fd, threading.Event()
        self.digest, self.size = hashlib.sha256(), 0

    def run(self) -> None:
        while piece := os.read(self._fd, 1 << 20 if self.let_go.wait(1) else 1):
            self.digest.update(piece)
            self.size += len(piece)


def test_r3_stopped_and_slow_watchers_hold_up_nobody(make_server: Callable[..., Server], ssl: Path) -> None:
    server = make_server()
    name = server.detach("bash", "-c", SCRIPT, "bash", str(FIRST), str(REST))
    api = server.children()["api"]

    def status() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(server.client("status", "-o", "json", name).stdout)
        return found

    wait_until("the first bytes are there", lambda: status()["stdout_bytes"] == FIRST)
    before = peak = rss_bytes(api)
    with ExitStack() as stack:
        callers = [stack.enter_context(RawClient(server, ssl / "client")) for _ in range(WATCHERS)]
        watchers = [Watcher(caller, name) for caller in callers]
        command = server.client_command("watch", name)
        clients = [
            stack.enter_context(subprocess.Popen(command, 0, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
            for _ in range(2)
        ]
        for client in clients:
            stack.callback(client.kill)
        readers = [SlowReader(client.stdout.fileno()) for client in clients if client.stdout]
        stopped, slow = readers
        for thread in (*watchers, *readers):
            thread.start()
        wait_until("all watch", lambda: all(watcher.size == FIRST for watcher in watchers))
        wait_until("both clients watch", lambda: stopped.size and slow.size)
        clients[0].send_signal(signal.SIGSTOP)
        stopped.let_go.set()  # what it has printed may be read: it is the client that is stopped
        with RawClient(server, ssl / "client") as owner:
            request = pb.SignalJobRequest(name=name, signal=signal.SIGUSR1)
            assert owner.call(f"/{SERVICE}/SignalJob", request).code is grpc.StatusCode.OK

        def all_done() -> bool:
            nonlocal peak
            peak = max(peak, rss_bytes(api))
            return not any(watcher.is_alive() for watcher in watchers)

        wait_until("the others have finished", all_done, 90)
        assert status()["state"] == "completed"
        assert stopped.size < FIRST + REST
        assert slow.size < FIRST
        digest = status()["stdout_sha256"]
        assert {(watcher.code, watcher.size) for watcher in watchers} == {(grpc.StatusCode.OK, FIRST + REST)}
        assert {watcher.digest.hexdigest() for watcher in watchers} == {digest}
        assert peak - before < MAX_GROWTH, f"{(peak - before) >> 20} MiB more"
        print(f"the api grew by {(peak - before) >> 20} MiB")

        clients[0].send_signal(signal.SIGCONT)
        slow.let_go.set()
        for reader, client in zip(readers, clients, strict=True):
            reader.join(60)
            assert (client.wait(60), reader.size) == (0, FIRST + REST)
            assert reader.digest.hexdigest() == digest
