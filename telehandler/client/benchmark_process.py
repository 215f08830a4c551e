"""A process of `client benchmark`: some of its watchers, each with a connection of its own. The parent starts it.

Its stdin has one line of JSON, the spec, and an empty line once every process is ready, which starts the watching;
the end of stdin is the parent's end. Its stdout has an empty line when it is ready, and then a line of JSON for each
watcher that has ended. How far each has come it writes to counters in shared memory, which nobody has to receive.
"""

import asyncio
import hashlib
import json
import mmap
import os
import struct
import sys
import time
from typing import IO, Any

from telehandler.certs.pem import read_pair
from telehandler.common import process_state

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own lines are not ours: errors become one of ours

import grpc
import grpc.aio

from telehandler.client import answers
from telehandler.client.connection import OPTIONS
from telehandler.common.errors import TelehandlerError

COUNTER = struct.Struct("<Q")
CONNECT_S = 30.0
_WATCH = "/telehandler.v1.TelehandlerService/WatchJobOutput"
# Without this grpc would put all watchers of one process on one connection.
_OPTIONS = (("grpc.use_local_subchannel_pool", 1), *OPTIONS)


class Watcher:
    """One connection, one watch, one digest for each stream; a file where one is wanted."""

    def __init__(self, number: int, path: str | None, spec: dict[str, Any], counters: mmap.mmap) -> None:
        self._number, self._path, self._spec, self._counters = number, path, spec, counters
        self._bytes = 0
        self._stdout, self._stderr = hashlib.sha256(), hashlib.sha256()
        certificate, key, root = read_pair(spec["cert"], spec["key"], spec["root"])
        credentials = grpc.ssl_channel_credentials(root, key, certificate)
        self._channel = grpc.aio.secure_channel(spec["server"], credentials, options=_OPTIONS)

    async def connect(self) -> None:
        """Waits until it is, but not for ever: the watch itself then says why it could not."""
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._channel.channel_ready()
        except TimeoutError:
            pass

    async def run(self) -> dict[str, Any]:
        """Watches to the job's end; what it saw, with an error when that is not all."""
        began, error = time.monotonic(), ""
        try:
            if self._path is None:
                await self._watch(None)
            else:
                with open(self._path, "wb", buffering=0) as file:
                    await self._watch(file)
        except grpc.aio.AioRpcError as failure:
            error = f"{failure.code().name.lower()}: {failure.details()}"
        except OSError as failure:
            error = f"{failure.filename or self._path}: {failure.strerror}"
        except TelehandlerError as failure:
            error = str(failure)
        ended = time.monotonic()
        await self._channel.close()
        return {
            "number": self._number,
            "bytes": self._bytes,
            "began": began,
            "ended": ended,
            "stdout_sha256": self._stdout.hexdigest(),
            "stderr_sha256": self._stderr.hexdigest(),
            "error": error,
        }

    async def _watch(self, file: IO[bytes] | None) -> None:
        from telehandler.pb import telehandler_pb2 as pb

        method = self._channel.unary_stream(
            _WATCH,
            request_serializer=pb.WatchJobOutputRequest.SerializeToString,
            response_deserializer=pb.JobOutput.FromString,
        )
        async for output in method(pb.WatchJobOutputRequest(name=self._spec["name"], accept_zstd=self._spec["zstd"])):
            if output.gap_bytes:
                text = f"the server no longer keeps {output.gap_bytes} bytes before byte {output.offset}"
                raise TelehandlerError(text)
            answers.unpack(output)
            data = output.data
            (self._stderr if output.stream == answers.STDERR else self._stdout).update(data)
            if file:
                _write(file, data)
            self._bytes += len(data)
            COUNTER.pack_into(self._counters, self._number * COUNTER.size, self._bytes)


def _write(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def main() -> None:
    """Runs until every watcher has ended, or the parent has."""
    process_state.establish()
    try:
        asyncio.run(_run(json.loads(sys.stdin.buffer.readline())))
        sys.stdout.flush()
    except TelehandlerError as error:  # a certificate that has gone since the parent read it
        print(f"telehandler: {error}", file=sys.stderr)
    except BaseException as error:  # the parent sees that results are missing
        print(f"telehandler: a process of the benchmark failed: {type(error).__name__}: {error}", file=sys.stderr)
    os._exit(0)  # grpc's threads take their time to end


async def _run(spec: dict[str, Any]) -> None:
    with mmap.mmap(spec["counters_fd"], 0) as counters:
        watchers = [Watcher(number, path, spec, counters) for number, path in spec["watchers"]]
        await asyncio.gather(*(watcher.connect() for watcher in watchers))
        print(flush=True)
        begun = asyncio.Event()
        asyncio.get_running_loop().add_reader(0, _read_stdin, begun)
        await begun.wait()
        for ended in asyncio.as_completed([watcher.run() for watcher in watchers]):
            print(json.dumps(await ended), flush=True)


def _read_stdin(begun: asyncio.Event) -> None:
    if not os.read(0, 64):
        os._exit(1)
    begun.set()
