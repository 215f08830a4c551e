"""A stream worker's main: its spec, its channel to the api, and from there where to listen. See worker_wire.py."""

import asyncio
import contextlib
import os
import socket
import sys
from typing import Any

from telehandler.api import listening  # sets grpc's environment: must come before grpc
from telehandler.common import control, server_child, worker_wire

import grpc  # isort: skip

from telehandler.common.errors import TelehandlerError
from telehandler.common.worker_wire import Kind
from telehandler.stream_worker.calls import Calls

EXIT_AGAIN = 1


def main() -> None:
    """Runs until the api says so or is gone. It is started again when it fails."""
    try:
        server_child.establish("a stream worker")
        supervisor = socket.socket(fileno=0)
        if opened := listening.open_channel(supervisor):
            asyncio.run(_serve(supervisor, opened.credentials, opened.link_fd))
    except (TelehandlerError, OSError, ValueError) as error:
        print(f"telehandler: a stream worker cannot go on: {error}", file=sys.stderr)
        sys.exit(EXIT_AGAIN)


async def _serve(supervisor: socket.socket, credentials: grpc.ServerCredentials, link_fd: int) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=link_fd))
    first = None
    with contextlib.suppress(OSError):
        first = await worker_wire.receive(reader)
    if first is None or first.kind is not Kind.HELLO:
        return
    hello: dict[str, Any] = first.fields()
    server = listening.server(hello["connections"], hello["processes"])
    calls = Calls(writer, hello["state_dir"])
    server.add_generic_rpc_handlers((calls.handler(hello["methods"]),))
    listening.listen(server, hello["host"], hello["port"], credentials)
    await server.start()
    control.send(supervisor, "serving")
    stopping = set()
    with contextlib.suppress(OSError):  # a reset: the api has died with frames unread
        while frame := await worker_wire.receive(reader):
            if frame.kind is Kind.STOP:
                stopping.add(asyncio.create_task(_stop(server, frame.fields()["grace_s"])))
            else:
                calls.take(frame)
    os._exit(0)  # without the api there is nothing to say: clients connect again


async def _stop(server: grpc.aio.Server, grace_s: float) -> None:
    await server.stop(grace_s)
    os._exit(0)
