"""The api's end of the channel to one stream worker: its calls are handled here as if they had come to this process.

The worker ends TLS and sends the bytes of logs. Who calls and what they may do, their shares, requests and answers: all
of that is decided here, by the same handlers. See common/worker_wire.py.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn

import grpc
import grpc.aio

from telehandler.common import worker_wire
from telehandler.common.errors import ServerUnavailable
from telehandler.common.worker_wire import Frame, Kind
from telehandler.output.log import JobLog
from telehandler.output.watch import WatchOptions

Handler = Callable[[Any, Any], Awaitable[Any]]
Handlers = Mapping[str, Handler]  # by the path of the method
_STOP_SPARE_S = 1.0  # beyond the grace: for a worker to end itself


class _Ended(Exception):
    """A call's end with another status than OK."""

    def __init__(self, code: grpc.StatusCode, details: str, metadata: tuple[tuple[str, str], ...]) -> None:
        super().__init__(details)
        self.code, self.details, self.metadata = code, details, metadata


class WorkerCall:
    """One call that came to a worker: what handlers use of grpc's ServicerContext, and `watch`."""

    def __init__(self, link: "WorkerLink", number: int, tls: dict[str, list[str]]) -> None:
        self._link, self._number, self._tls = link, number, tls
        self._callbacks: list[Callable[[Any], object]] = []
        self._reply: asyncio.Future[Frame] | None = None
        self.metadata: tuple[tuple[str, str], ...] = ()

    def auth_context(self) -> dict[str, list[bytes]]:
        """What the worker's TLS found of the client's."""
        return {key: [value.encode("latin-1") for value in values] for key, values in self._tls.items()}

    async def read(self) -> Any:
        """The request's message, or grpc.aio.EOF."""
        self._link.send(Kind.READ, self._number)
        body = worker_wire.unpack_body((await self._answered(Kind.BODY)).payload)
        return grpc.aio.EOF if body is None else body

    async def write(self, message: bytes) -> None:
        """A message of the response. As small as an answer to WriteStdin: what is written waits here."""
        self._link.send(Kind.DATA, self._number, data=message)

    async def watch(self, uuid: str, log: JobLog, options: WatchOptions) -> None:
        """Has the worker send a log; returns when all that was asked for is sent. Raises OSError."""
        with self._link.following(log):
            fields = {"uuid": uuid, "log": log.serial, "drops": log.drops, "state": log.state, "options": options}
            self._link.send(Kind.WATCH, self._number, fields)
            number = (await self._answered(Kind.DONE)).fields().get("errno", 0)
        if number == worker_wire.REMOVED:
            raise ServerUnavailable("the output has just been removed: ask again")
        if number == worker_wire.UNFORESEEN:
            raise RuntimeError
        if number:
            raise OSError(number, os.strerror(number))

    def set_trailing_metadata(self, metadata: tuple[tuple[str, str], ...]) -> None:
        self.metadata = metadata

    async def abort(self, code: grpc.StatusCode, details: str, metadata: tuple[tuple[str, str], ...] = ()) -> NoReturn:
        raise _Ended(code, details, metadata)

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        self._callbacks.append(callback)

    def take(self, frame: Frame) -> None:
        """The worker's answer to READ or WATCH."""
        if self._reply and not self._reply.done():
            self._reply.set_result(frame)

    def close(self) -> None:
        for callback in self._callbacks:
            callback(self)

    async def _answered(self, kind: Kind) -> Frame:
        self._reply = asyncio.get_running_loop().create_future()
        frame = await self._reply
        if frame.kind is not kind:
            raise ValueError("the worker answers what was not asked")
        return frame


class WorkerLink:
    """Owns the socket, the calls and what the worker is told of logs. One event loop."""

    def __init__(self, sock: socket.socket, handlers: Handlers) -> None:
        self._socket, self._handlers = sock, handlers
        self._calls: dict[int, tuple[WorkerCall, asyncio.Task[None]]] = {}
        self._feeds: dict[int, tuple[int, asyncio.Task[None]]] = {}  # by a log's serial: watchers, what tells of it
        self._writer: asyncio.StreamWriter | None = None
        self._ended = asyncio.Event()

    async def run(self, hello: dict[str, Any]) -> None:
        """Until the worker's end."""
        reader, self._writer = await asyncio.open_unix_connection(sock=self._socket)
        self.send(Kind.HELLO, 0, hello | {"methods": list(self._handlers)})
        try:
            while frame := await worker_wire.receive(reader):
                self._take(frame)
        except (OSError, ValueError, KeyError):  # dead, or out of its mind: its end of the channel is closed
            pass
        finally:
            for _, task in (*self._calls.values(), *self._feeds.values()):
                task.cancel()
            self._writer.close()
            self._ended.set()

    async def stop(self, grace_s: float) -> None:
        """Has the worker end as the api does: returns once it has, or when it is late."""
        self.send(Kind.STOP, 0, {"grace_s": grace_s})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s + _STOP_SPARE_S):
                await self._ended.wait()

    def send(self, kind: Kind, number: int, fields: dict[str, Any] | None = None, data: bytes = b"") -> None:
        """One that is dead hears nothing: the end of its channel says so."""
        if self._writer and not self._writer.is_closing():
            self._writer.write(worker_wire.pack(kind, number, fields, data))

    @contextlib.contextmanager
    def following(self, log: JobLog) -> Any:
        """While the worker has a watcher of a log, it is told what becomes of it: once for all of its watchers."""
        watchers, feed = self._feeds.get(log.serial) or (0, asyncio.ensure_future(self._feed(log)))
        self._feeds[log.serial] = watchers + 1, feed
        try:
            yield
        finally:
            watchers, feed = self._feeds.pop(log.serial)
            if watchers > 1:
                self._feeds[log.serial] = watchers - 1, feed
            else:
                feed.cancel()

    async def _feed(self, log: JobLog) -> None:
        size, more = log.size, True
        while more:
            more = await log.wait(size)
            size = log.size
            self.send(Kind.LOG, log.serial, data=worker_wire.pack_state(*log.state))
            if self._writer:
                with contextlib.suppress(OSError):
                    await self._writer.drain()  # for a worker that does not read, the last state is enough

    def _take(self, frame: Frame) -> None:
        if frame.kind is Kind.CALL:
            fields = frame.fields()
            call = WorkerCall(self, frame.number, fields["tls"])
            handler = self._handlers[fields["method"]]
            task = asyncio.get_running_loop().create_task(self._handle(call, frame.number, handler))
            self._calls[frame.number] = call, task
        elif frame.number in self._calls:  # else it ended meanwhile
            call, task = self._calls[frame.number]
            if frame.kind is Kind.CANCEL:
                task.cancel()
            else:
                call.take(frame)

    async def _handle(self, call: WorkerCall, number: int, handler: Handler) -> None:
        code, details, metadata = grpc.StatusCode.OK, "", None
        try:
            answer = await handler(None, call)
            if answer is not None:
                self.send(Kind.DATA, number, data=answer.SerializeToString())
        except _Ended as ended:
            code, details, metadata = ended.code, ended.details, ended.metadata
        finally:
            del self._calls[number]
            call.close()
        end = {"code": code.value[0], "details": details, "metadata": call.metadata if metadata is None else metadata}
        self.send(Kind.END, number, end)


class WorkerLinks:
    """The workers that there are now."""

    def __init__(self, handlers: Handlers, hello: dict[str, Any]) -> None:
        self._handlers, self._hello = handlers, hello
        self._links: dict[WorkerLink, asyncio.Task[None]] = {}

    def add(self, sock: socket.socket) -> None:
        link = WorkerLink(sock, self._handlers)
        task = asyncio.get_running_loop().create_task(link.run(self._hello))
        self._links[link] = task
        task.add_done_callback(lambda _: self._links.pop(link))

    async def stop(self, grace_s: float) -> None:
        """See WorkerLink.stop."""
        await asyncio.gather(*(link.stop(grace_s) for link in self._links))
