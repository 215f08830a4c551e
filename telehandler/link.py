"""The api's end of the socket to the helper: one method for each verb, same name, and its events.

See helper/PROTOCOL.md. Replies are matched by request id; ids begin at a random number, so that what an
api before this one left in the socket is told apart, and its fds closed.
"""

import array
import asyncio
import errno
import os
import secrets
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from helper import wire
from helper.wire import Message, Type
from telehandler.errors import Exhausted, HelperRefused, HelperUnavailable

REPLY_TIMEOUT_S = 30.0
_ANCILLARY = socket.CMSG_SPACE(wire.MAX_FDS * array.array("i").itemsize)
_WITH_FDS = (Type.STARTED, Type.ADOPT)
_PASSING = (errno.EAGAIN, errno.EINTR, errno.ENOBUFS, errno.ENOMEM)


class Unreceived(Exhausted):
    """A job runs, but its fds could not be received: `handle` is the caller's to kill and to release."""

    def __init__(self, handle: int) -> None:
        super().__init__("the server is out of file descriptors: end jobs or watches, or raise its limit")
        self.handle = handle


class LiveJob(NamedTuple):
    """A job that the helper runs, and our fds of it: the caller's to close."""

    handle: int
    uid: int
    stdout_fd: int
    stderr_fd: int
    cgroup_fd: int


class Order(NamedTuple):
    """What START and CHECK take; a limit that is not there is the policy's default."""

    tag: bytes
    profile: str
    cwd: bytes
    argv: list[bytes]
    env: list[bytes]
    limits: dict[str, int]

    def fields(self) -> dict[str, Any]:
        every = {name: self.limits.get(name, 0) for name in wire.LIMITS.split()}
        place = [self.profile.encode(), self.cwd]
        return {"tag": self.tag, "place": place, "argv": self.argv, "env": self.env, **every}


class HelperLink:
    """Owns the socket. All methods are for the one event loop that made it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._next_id = secrets.randbelow(1 << 31)
        self._waiting: dict[int, asyncio.Future[tuple[Message, list[int]]]] = {}
        self._adopted: list[tuple[bytes, LiveJob]] = []
        self._hello_id = -1
        self._closed = False
        # Set by the owner before hello().
        self.on_exited: Callable[[dict[str, int]], None] = lambda facts: None
        self.on_closed: Callable[[], None] = lambda: None
        sock.setblocking(False)
        self._loop.add_reader(sock, self._receive)

    async def hello(self) -> tuple[dict[str, Any], list[tuple[bytes, LiveJob]]]:
        """WELCOME's fields and the live jobs with their tags. Raises HelperUnavailable."""
        self._hello_id = self._next_id
        message, _ = await self._call(Type.HELLO)
        wanted = message.fields["live_jobs"]
        # ADOPT follows WELCOME at once, one each.
        async with asyncio.timeout(REPLY_TIMEOUT_S):
            while len(self._adopted) < wanted and not self._closed:
                await asyncio.sleep(0)
        return message.fields, self._adopted

    async def start(self, order: Order) -> LiveJob:
        """A running job. Raises HelperRefused with the stage that failed; Unreceived."""
        message, fds = await self._call(Type.START, **order.fields())
        if not fds:
            raise Unreceived(message.fields["handle"])
        return LiveJob(message.fields["handle"], message.fields["uid"], *fds)

    async def check(self, order: Order) -> list[bytes]:
        """What start would do: VERDICT's rows. Raises HelperRefused as start would, short of the start itself."""
        message, _ = await self._call(Type.CHECK, **order.fields())
        rows: list[bytes] = message.fields["rows"]
        return rows

    async def signal(self, handle: int, number: int) -> None:
        await self._call(Type.SIGNAL, handle=handle, signal=number)

    async def kill(self, handle: int) -> None:
        await self._call(Type.KILL, handle=handle)

    async def release(self, handle: int) -> None:
        await self._call(Type.RELEASE, handle=handle)

    def close(self) -> None:
        """No more requests; those that wait fail with HelperUnavailable."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock)
        self._sock.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(HelperUnavailable("the helper has gone"))
        self._waiting.clear()

    async def _call(self, kind: Type, **fields: Any) -> tuple[Message, list[int]]:
        if self._closed:
            raise HelperUnavailable("the helper has gone")
        request_id = self._next_id
        self._next_id = (self._next_id + 1) % (1 << 32)
        try:
            datagram = wire.pack(kind, request_id, **fields)
        except wire.WireError:
            text = f"the command and its environment are too long: over {wire.MAX_MESSAGE // 1024} KiB in all"
            raise HelperRefused(wire.Stage.REQUEST, errno.E2BIG, text) from None
        future = self._waiting[request_id] = self._loop.create_future()
        try:
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                await self._loop.sock_sendall(self._sock, datagram)
                message, fds = await future
        except (TimeoutError, OSError) as error:
            if isinstance(error, OSError) and error.errno in _PASSING:
                raise Exhausted(f"the server cannot ask its helper now: {error.strerror}") from None
            raise HelperUnavailable("the helper does not answer") from None
        finally:
            self._waiting.pop(request_id, None)
        if message.type is Type.ERROR:
            text = b"".join(message.fields["text"]).decode("utf-8", "replace")
            raise HelperRefused(message.fields["stage"], message.fields["errno"], text)
        return message, fds

    def _receive(self) -> None:
        try:
            datagram, ancillary, flags, _ = self._sock.recvmsg(
                wire.MAX_MESSAGE + 1, _ANCILLARY, socket.MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            if error.errno in _PASSING:
                return
            datagram, ancillary, flags = b"", [], 0
        fds = _received_fds(ancillary)
        if not datagram:
            return self._lost()
        try:
            message = wire.unpack(datagram)
            if _out_of_fds(message, fds, flags):
                _close_all(fds)
                return self._dispatch(message, [])
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(fds) != message.fd_count:
                raise wire.WireError("truncated, or not the fds that the header announces")
            if len(fds) != (wire.MAX_FDS if message.type in _WITH_FDS else 0):
                raise wire.WireError("a wrong number of fds")
        except wire.WireError:
            _close_all(fds)
            return self._lost()
        self._dispatch(message, fds)

    def _dispatch(self, message: Message, fds: list[int]) -> None:
        if message.type is Type.EXITED:
            self.on_exited(message.fields)
        elif message.type is Type.ADOPT and message.request_id == self._hello_id:
            live = LiveJob(message.fields["handle"], message.fields["uid"], *fds)
            self._adopted.append((message.fields["tag"], live))
        elif (future := self._waiting.get(message.request_id)) and not future.done():
            future.set_result((message, fds))
        else:
            _close_all(fds)  # of a request that timed out, or of an api before us

    def _lost(self) -> None:
        self.close()
        self.on_closed()


def _out_of_fds(message: Message, fds: list[int], flags: int) -> bool:
    """Whether the helper sent the fds of a start, and the kernel found no room for them in our table."""
    lost = bool(flags & socket.MSG_CTRUNC) and len(fds) < message.fd_count
    return message.type is Type.STARTED and message.fd_count == wire.MAX_FDS and lost


def _received_fds(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
