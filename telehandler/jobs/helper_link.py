"""The api's end of the socket to the helper: one method for each verb, same name, and its events.

See helper/PROTOCOL.md. Replies are matched by request id; ids begin at a random number, so that what an
api before this one left in the socket is told apart, and its fds closed.
"""

import asyncio
import contextlib
import errno
import secrets
import socket
from typing import Any, NamedTuple

from helper import wire
from helper.wire import Message, Type
from telehandler.common.bounds import COMMAND_TOO_LONG
from telehandler.common.errors import Exhausted, HelperRefused, HelperUnavailable, ServerEnding, TelehandlerError
from telehandler.common.fds import close_all, receive

REPLY_TIMEOUT_S = 30.0
GONE = "the root helper has died and is being started again: try again in a moment"
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
    stdin_fd: int = -1  # the write end of its pipe, or its terminal; -1: none, or closed

    def close(self) -> None:
        close_all([self.stdout_fd, self.stderr_fd, self.cgroup_fd, *([self.stdin_fd] if self.stdin_fd >= 0 else [])])


class JobSpec(NamedTuple):
    """What START and CHECK take; a limit that is not there is the policy's default."""

    tag: bytes
    profile: str
    cwd: bytes
    argv: list[bytes]
    env: list[bytes]
    limits: dict[str, int]
    stdio: wire.Stdio = wire.Stdio(0)
    parent: int = 0  # the handle of a job in which this is a further command

    def fields(self) -> dict[str, Any]:
        every = {name: self.limits.get(name, 0) for name in wire.LIMITS.split()}
        every |= {"stdio": self.stdio, "parent": self.parent}
        place = [self.profile.encode(), self.cwd]
        return {"tag": self.tag, "place": place, "argv": self.argv, "env": self.env, **every}


class HelperLink:
    """Owns the socket. All methods are for the one event loop that made it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._next_id = secrets.randbelow(1 << 31)
        self._waiting: dict[int, asyncio.Future[tuple[Message, list[int]]]] = {}
        self._exits: dict[int, asyncio.Future[dict[str, int] | None]] = {}
        self._adopted: list[tuple[bytes, LiveJob]] = []
        self._arrived = asyncio.Event()  # another ADOPT, or the end
        self._starting: set[int] = set()  # the request ids of STARTs that wait for their answer
        self._no_more_starts = False
        self._hello_id = -1
        self._greeted = self.closed = False
        self.max_jobs = 0  # of the policy, once it is greeted
        self.missing_controllers: list[str] = []  # whose limits are not enforced: the policy allows it
        self.lost = False  # closed by the helper's end
        self.gone = asyncio.Event()  # closed, and the helper's last words heard
        self._sending = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        sock.setblocking(False)
        self._loop.add_reader(sock, self._receive)

    async def hello(self) -> tuple[dict[str, Any], list[tuple[bytes, LiveJob]]]:
        """WELCOME's fields and the live jobs with their tags. Raises HelperUnavailable."""
        self._hello_id = self._next_id
        message, _ = await self._call(Type.HELLO)
        self._greeted = True
        self.max_jobs = message.fields["max_jobs"]
        self.missing_controllers = [name.decode("ascii", "replace") for name in message.fields["missing_controllers"]]
        wanted = message.fields["live_jobs"]
        try:
            # ADOPT follows WELCOME at once, one each.
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                while len(self._adopted) < wanted and not self.closed:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            pass
        adopted, self._adopted = self._adopted, []
        if len(adopted) < wanted:
            for _, live in adopted:
                live.close()
            raise HelperUnavailable("the helper does not hand over its jobs")
        return message.fields, adopted

    def exited(self, handle: int) -> "asyncio.Future[dict[str, int] | None]":
        """A job's end: EXITED's fields, None when the helper died first. For any handle, until `forget`.

        EXITED may come before whoever started the job has run on.
        """
        if handle not in self._exits:
            self._exits[handle] = self._loop.create_future()
            if self.closed:
                self._exits[handle].set_result(None)
        return self._exits[handle]

    def forget(self, handle: int) -> None:
        self._exits.pop(handle, None)

    async def start(self, spec: JobSpec) -> LiveJob:
        """A running job. Raises HelperRefused with the stage that failed; Unreceived; ServerEnding."""
        if self._no_more_starts:
            raise ServerEnding("the server is ending, and starts no more jobs: try again when it is back")
        message, fds = await self._call(Type.START, **spec.fields())
        if not fds:
            raise Unreceived(message.fields["handle"])
        return LiveJob(message.fields["handle"], message.fields["uid"], *fds)

    async def cancel_starts(self) -> None:
        """No more starts. One that is under way fails as if the helper had refused it, unless it has just succeeded."""
        self._no_more_starts = True
        for request_id in list(self._starting):
            with contextlib.suppress(HelperRefused, HelperUnavailable):
                await self._call(Type.CANCEL, start_id=request_id)

    async def check(self, spec: JobSpec) -> list[bytes]:
        """What start would do: VERDICT's rows. Raises HelperRefused as start would, short of the start itself."""
        message, _ = await self._call(Type.CHECK, **spec.fields())
        rows: list[bytes] = message.fields["rows"]
        return rows

    async def signal(self, handle: int, number: int) -> None:
        await self._call(Type.SIGNAL, handle=handle, signal=number)

    async def kill(self, handle: int) -> None:
        await self._call(Type.KILL, handle=handle)

    async def close_stdin(self, handle: int) -> None:
        """The helper's own end of it, which keeps it open."""
        await self._call(Type.CLOSE_STDIN, handle=handle)

    async def release(self, handle: int) -> None:
        await self._call(Type.RELEASE, handle=handle)

    def close(self) -> None:
        """No more requests; those that wait fail with HelperUnavailable."""
        if self.closed:
            return
        self.closed = True
        self._arrived.set()
        self._loop.remove_reader(self._sock)
        self._sock.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(HelperUnavailable(GONE))
        self.gone.set()

    async def _call(self, kind: Type, **fields: Any) -> tuple[Message, list[int]]:
        if self.closed:
            raise HelperUnavailable(GONE)
        request_id = self._next_id
        self._next_id = (self._next_id + 1) % (1 << 32)
        try:
            datagram = wire.pack(kind, request_id, **fields)
        except wire.WireError:
            raise HelperRefused(wire.Stage.REQUEST, errno.E2BIG, COMMAND_TOO_LONG) from None
        future = self._waiting[request_id] = self._loop.create_future()
        reply = None
        if kind is Type.START:
            self._starting.add(request_id)
        try:
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                async with self._sending:  # the loop has one waiting sender for each fd
                    await self._loop.sock_sendall(self._sock, datagram)
                reply = message, fds = await future
        except ConnectionError:
            await self.gone.wait()  # EOF comes behind what the helper had still sent
            raise HelperUnavailable(GONE) from None
        except (TimeoutError, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.EMSGSIZE:  # a socket buffer below the default
                raise HelperRefused(wire.Stage.REQUEST, errno.E2BIG, COMMAND_TOO_LONG) from None
            if isinstance(error, OSError) and error.errno in _PASSING:
                raise Exhausted(f"the server cannot ask its helper now: {error.strerror}") from None
            raise HelperUnavailable("the helper does not answer") from None
        finally:
            del self._waiting[request_id]
            self._starting.discard(request_id)
            if not reply and future.done() and not future.cancelled() and not future.exception():
                self._unclaimed(*future.result())
        if message.type is Type.ERROR:
            text = b"".join(message.fields["text"]).decode("utf-8", "replace")
            raise HelperRefused(message.fields["stage"], message.fields["errno"], text)
        return message, fds

    def _receive(self) -> None:
        try:
            datagram, whole, fds = receive(self._sock, wire.MAX_MESSAGE + 1, wire.MAX_FDS)
        except OSError as error:
            # A reset is told once, before what the helper had still sent, and EOF.
            return None if error.errno in (*_PASSING, errno.ECONNRESET) else self._lost()
        if not datagram:
            return self._lost()
        try:
            message = wire.unpack(datagram)
            if not whole and _out_of_fds(message, fds):
                close_all(fds)
                return self._dispatch(message, [])
            if not whole or len(fds) != message.fd_count:
                raise wire.WireError("truncated, or not the fds that the header announces")
            if len(fds) not in ((wire.MAX_FDS - 1, wire.MAX_FDS) if message.type in _WITH_FDS else (0,)):
                raise wire.WireError("a wrong number of fds")
        except wire.WireError:
            close_all(fds)
            return self._lost()
        self._dispatch(message, fds)

    def _dispatch(self, message: Message, fds: list[int]) -> None:
        if message.type is Type.WELCOME:
            self._exits.clear()  # of before, told to an api before us: the helper says again what is not released
        if message.type is Type.EXITED:
            if not (exited := self.exited(message.fields["handle"])).done():
                exited.set_result(message.fields)
        elif message.type is Type.ADOPT and message.request_id == self._hello_id:
            live = LiveJob(message.fields["handle"], message.fields["uid"], *fds)
            self._adopted.append((message.fields["tag"], live))
            self._arrived.set()
        elif (future := self._waiting.get(message.request_id)) and not future.done():
            future.set_result((message, fds))
        else:
            self._unclaimed(message, fds)

    def _unclaimed(self, message: Message, fds: list[int]) -> None:
        """A reply to a request that was given up, or of an api before us."""
        close_all(fds)
        if message.type is Type.STARTED and self._greeted:  # ours: nobody else will end this job
            task = self._loop.create_task(self._end_unknown(message.fields["handle"]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _end_unknown(self, handle: int) -> None:
        try:
            await self.kill(handle)
            await self.exited(handle)
            await self.release(handle)
        except TelehandlerError:
            pass  # it has just ended, or the helper has
        self.forget(handle)

    def _lost(self) -> None:
        """The helper died, and every job with it."""
        self.lost = True
        self.close()
        for exited in self._exits.values():
            if not exited.done():
                exited.set_result(None)


def _out_of_fds(message: Message, fds: list[int]) -> bool:
    """Of what came in part, whether it is a start whose fds the kernel found no room for in our table."""
    return message.type is Type.STARTED and len(fds) < message.fd_count <= wire.MAX_FDS
