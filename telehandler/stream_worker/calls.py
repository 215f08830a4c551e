"""The calls that came to this worker: told to the api, which says how each goes on; the logs that they get."""

import asyncio
import errno
import sys
import traceback
from collections.abc import Collection
from itertools import count
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import grpc
import grpc.aio

from telehandler.common import worker_wire
from telehandler.common.worker_wire import REMOVED, UNFORESEEN, Frame, Kind
from telehandler.output import watch
from telehandler.output.chunks import Chunks
from telehandler.output.followed_log import FollowedLog
from telehandler.output.log import State, Stream

_CODES = {code.value[0]: code for code in grpc.StatusCode}
Context = grpc.aio.ServicerContext[Any, Any]


class Calls:
    """All calls of one worker. One event loop."""

    def __init__(self, writer: asyncio.StreamWriter, state_dir: str) -> None:
        self._writer, self._jobs = writer, Path(state_dir) / "jobs"
        self._numbers = count(1)
        self._frames: dict[int, asyncio.Queue[Frame]] = {}  # by the number of the call
        self._logs: WeakValueDictionary[int, FollowedLog] = WeakValueDictionary()  # by the api's number
        self._chunks = Chunks()

    def handler(self, methods: Collection[str]) -> grpc.GenericRpcHandler:
        """For grpc: these methods, and no other."""
        return _Handler(self, frozenset(methods))

    def take(self, frame: Frame) -> None:
        """What the api says. Of a call or a log that has gone meanwhile it says nothing that matters."""
        if frame.kind is Kind.LOG:
            if log := self._logs.get(frame.number):
                log.follow(State(*worker_wire.unpack_state(frame.payload)))
        elif queue := self._frames.get(frame.number):
            queue.put_nowait(frame)

    async def call(self, method: str, context: Context) -> None:
        """One call, from its headers to its end. As a stream of messages: on the wire, all are."""
        number = next(self._numbers)
        frames = self._frames[number] = asyncio.Queue()
        properties = context.auth_context()
        tls = {
            key: [value.decode("latin-1") for value in properties.get(key, [])]
            for key in ("x509_pem_cert", "ssl_tls_version")
        }
        self._send(Kind.CALL, number, {"method": method, "tls": tls})
        reading: asyncio.Task[None] | None = None
        ended = False
        try:
            while not ended:
                frame = await frames.get()
                if frame.kind is Kind.READ:  # beside: the api may end the call before its client has sent it
                    reading = asyncio.create_task(self._read(number, context))
                    reading.add_done_callback(lambda task: task.cancelled() or task.exception())  # heard: nobody waits
                elif frame.kind is Kind.DATA:
                    await context.write(frame.payload)
                elif frame.kind is Kind.WATCH:
                    await self._watch(number, frame.fields(), context)
                ended = frame.kind is Kind.END
        finally:
            del self._frames[number]
            if reading:
                reading.cancel()
            if not ended:
                self._send(Kind.CANCEL, number)
        await _end(frame.fields(), context)

    async def _read(self, number: int, context: Context) -> None:
        body = await context.read()
        message = None if body is grpc.aio.EOF else bytes(body)
        self._send(Kind.BODY, number, data=worker_wire.pack_body(message))

    async def _watch(self, number: int, fields: dict[str, Any], context: Context) -> None:
        """Sends a log as far as it was asked for; whatever ends that is the api's to judge."""
        failure = 0
        try:
            await self._send_log(fields, context)
        except FileNotFoundError:
            failure = REMOVED
        except OSError as error:
            failure = error.errno or errno.EIO
        except Exception as error:  # unforeseen: the log gets its place, the client nothing of it
            frame = traceback.extract_tb(error.__traceback__)[-1]
            print(
                f"telehandler: {type(error).__name__} at {frame.filename}:{frame.lineno}", file=sys.stderr, flush=True
            )
            failure = UNFORESEEN
        self._send(Kind.DONE, number, {"errno": failure})

    async def _send_log(self, fields: dict[str, Any], context: Context) -> None:
        offset, follow, stream, until_ns, zstd, exact = fields["options"]
        options = watch.WatchOptions(offset, follow, Stream(stream) if stream else None, until_ns, zstd, exact)
        log = self._open(fields)
        self._chunks.join(len(self._logs) // 2)  # a log here has half the fds of a job that runs
        try:
            async for message in watch.messages(log, self._chunks, options):
                await context.write(message)
        finally:
            self._chunks.leave()
            log.release()

    def _open(self, fields: dict[str, Any]) -> FollowedLog:
        """One for all watchers here; the caller's to release. Raises OSError."""
        size, records, last, floor, ended = fields["state"]
        state = State(size, records, tuple(last), floor, ended)
        log = self._logs.get(fields["log"])
        if log and not log.closed:
            log.retain()
            log.follow(state)
            return log
        log = FollowedLog(self._jobs / fields["uuid"], fields["drops"], state)
        self._logs[fields["log"]] = log
        return log

    def _send(self, kind: Kind, number: int, fields: dict[str, Any] | None = None, data: bytes = b"") -> None:
        self._writer.write(worker_wire.pack(kind, number, fields, data))


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, calls: Calls, methods: frozenset[str]) -> None:
        self._calls, self._methods = calls, methods

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        method = details.method
        if method not in self._methods:
            return None

        async def call(_: Any, context: Context) -> None:
            await self._calls.call(method, context)

        return grpc.stream_stream_rpc_method_handler(call)


async def _end(fields: dict[str, Any], context: Context) -> None:
    """As the api's handler ended."""
    code = _CODES[fields["code"]]
    metadata = tuple((key, value) for key, value in fields["metadata"])
    if code is not grpc.StatusCode.OK:
        await context.abort(code, fields["details"], metadata)
    context.set_trailing_metadata(metadata)
