"""The stream workers of a server: started when an api serves, started again when one dies, ended with that api."""

import math
import os
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from telehandler.supervisor.api_process import Api, Child
from telehandler.supervisor.log_line import say

_MOST = 8


class Pauses(Protocol):
    """How long to wait before the next start: see Restarts."""

    def pause_s(self, counts: bool = True) -> float: ...


def most_that_help() -> int:
    """How many processes should serve streams on this machine.

    One delivers with 1.0 to 1.3 cores (docs/performance.md); jobs, the kernel and whoever reads here need the others.
    """
    return max(1, min(_MOST, len(os.sched_getaffinity(0)) // 2))


class StreamWorker(Child):
    """A process beside the api that ends TLS and sends logs."""

    module, what = "telehandler.stream_worker.process", "a stream worker's"


class StreamWorkers:
    """As many as the spec says, less the api. `due`: when `do_what_is_due` has something to do, monotonic."""

    def __init__(self, spec: dict[str, Any], paths: list[int], restarts: Pauses) -> None:
        self._count = spec["stream_workers"] - 1
        self._spec = {"tls_files": spec["tls_files"], "strict": False}
        self._paths, self._restarts = paths, restarts
        self._api: Api | None = None
        self._workers: list[StreamWorker] = []
        self._start_due = math.inf

    @property
    def due(self) -> float:
        return min([self._start_due, *(worker.deadline for worker in self._workers)])

    def serve(self, api: Api) -> None:
        """Workers for an api that listens."""
        self._api, self._start_due = api, time.monotonic()

    def end(self) -> None:
        """All of them, at once: when their api has ended, so have their calls."""
        self._api, self._start_due = None, math.inf
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.wait()
        self._workers.clear()

    def do_what_is_due(self, now: float) -> None:
        for worker in self._workers:
            if worker.deadline <= now:
                worker.kill()
        if self._api and self._start_due <= now:
            self._start_due = math.inf
            self._start(self._api)

    def fds(self) -> Iterator[int]:
        """To wait for."""
        for worker in self._workers:
            yield worker.pidfd
            if not worker.deaf:
                yield worker.channel.fileno()

    def on_ready(self, fds: Iterable[int]) -> None:
        """What has come by these of `fds`."""
        for worker in list(self._workers):
            if worker.pidfd in fds:
                self._on_end(worker)
            elif worker.channel.fileno() in fds:
                self._on_message(worker)

    def _start(self, api: Api) -> None:
        try:
            while len(self._workers) < self._count:
                self._workers.append(StreamWorker(self._spec, api.files, self._paths))
        except OSError as error:  # such as no process to be had: those that are there serve on
            say(f"a stream worker cannot be started now, and is tried again: {error}")
            self._start_due = time.monotonic() + self._restarts.pause_s(False)

    def _on_message(self, worker: StreamWorker) -> None:
        was_ready = worker.ready
        if worker.hear() == "ready" and not was_ready and self._api:
            ours, theirs = socket.socketpair()
            with ours, theirs:
                self._api.tell("worker", fd=ours.fileno())
                worker.tell("link", fd=theirs.fileno())

    def _on_end(self, worker: StreamWorker) -> None:
        self._workers.remove(worker)
        status = worker.wait()
        if status and self._api:  # 0: its api has ended, or ends
            self._start_due = time.monotonic() + self._restarts.pause_s()
            say(f"a stream worker died (status {status}); starting it again")
