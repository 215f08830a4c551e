"""What each user has of the api: calls under way, requests that are being received, their bytes (S52)."""

import asyncio
import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from telehandler.api.validation import Refusal
from telehandler.common import bounds
from telehandler.common.turns import Turns

_CROWD = 64  # calls under way, or so many MiB of requests: what it took is given back when it has gone
_TRIM_PAUSE_S = 1.0  # grpc frees what a connection held some time after its calls have ended
_libc = ctypes.CDLL(None)


@dataclass
class Usage:
    """Of one call; its request's bytes are counted until it ends."""

    user: str
    request_bytes: int = 0


@dataclass
class _Sum:
    calls: int = 0
    request_bytes: int = 0


class Shares:
    """One event loop."""

    def __init__(self, max_calls: int) -> None:
        self._max_calls = max_calls
        self._sums: dict[str, _Sum] = {}
        self._receiving = Turns(bounds.MAX_RECEIVING_PER_USER)
        self._memory = _Memory()

    def begin(self, user: str) -> Usage:
        """Counts a call, until `end`. Raises Refusal over the bound."""
        found = self._sums.setdefault(user, _Sum())
        if found.calls >= self._max_calls:
            text = f"{self._max_calls} calls of one user are under way: end some, such as watches"
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        found.calls += 1
        self._memory.grown()
        return Usage(user)

    def end(self, usage: Usage) -> None:
        found = self._sums[usage.user]
        found.calls -= 1
        found.request_bytes -= usage.request_bytes
        if not found.calls:
            del self._sums[usage.user]
        self._memory.shrunk()

    @contextmanager
    def held(self, user: str, count: int) -> Iterator[None]:
        """Counts so many bytes of a user with a call under way while they are held. Raises Refusal over the bound."""
        found = self._sums[user]
        if found.request_bytes + count > bounds.MAX_REQUEST_BYTES_PER_USER:
            text = f"{bounds.MAX_REQUEST_BYTES_PER_USER >> 20} MiB of one user's input wait for its jobs: try later"
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        found.request_bytes += count
        try:
            yield
        finally:
            found.request_bytes -= count

    async def receive(self, usage: Usage, context: "grpc.aio.ServicerContext[Any, Any]") -> bytes:
        """The request's message. Until it is its turn, it waits at the client, behind flow control."""
        found = self._sums[usage.user]
        async with self._receiving.turn(usage.user):
            body = await context.read()
        if body is grpc.aio.EOF:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "the call has no request")
        if found.request_bytes + len(body) > bounds.MAX_REQUEST_BYTES_PER_USER:
            text = f"{bounds.MAX_REQUEST_BYTES_PER_USER >> 20} MiB of requests of one user are under way: ask later"
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        usage.request_bytes = len(body)
        found.request_bytes += len(body)
        return bytes(body)


class _Memory:
    """Gives memory back to the kernel when many calls have ended: malloc keeps it for the next ones, for ever."""

    def __init__(self) -> None:
        self._calls = self._most = 0
        self._due: asyncio.TimerHandle | None = None

    def grown(self) -> None:
        self._calls += 1
        self._most = max(self._most, self._calls)

    def shrunk(self) -> None:
        self._calls -= 1
        if self._most >= _CROWD and self._calls <= self._most // 2 and not self._due:
            self._due = asyncio.get_running_loop().call_later(_TRIM_PAUSE_S, self._trim)

    def _trim(self) -> None:
        self._due, self._most = None, self._calls
        _libc.malloc_trim(0)  # malloc_trim(3)
