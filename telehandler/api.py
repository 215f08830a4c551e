"""The api process: unprivileged, serves grpc, never forks. The supervisor starts it, its spec on stdin.

The spec is one line of JSON; the pipe it comes through stays open as long as the supervisor lives.
"""

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from telehandler import bounds, privileges, tls  # tls sets grpc's environment: must come before grpc

import grpc.aio  # isort: skip

from telehandler.errors import EXIT_OURS, TelehandlerError
from telehandler.jobs import Jobs
from telehandler.link import HelperLink
from telehandler.records import Keep, Records
from telehandler.service import Service

STOP_GRACE_S = 2.0
_OPTIONS = (
    ("grpc.max_receive_message_length", bounds.MAX_REQUEST_BYTES),
    ("grpc.max_metadata_size", bounds.MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", bounds.MAX_METADATA_BYTES),
    ("grpc.max_concurrent_streams", bounds.MAX_STREAMS),
    ("grpc.server_handshake_timeout_ms", bounds.HANDSHAKE_TIMEOUT_S * 1000),
    ("grpc.so_reuseport", 0),  # a second server on the port must fail
    *bounds.KEEPALIVE,
    ("grpc.http2.min_ping_interval_without_data_ms", bounds.LEAST_PING_INTERVAL_S * 1000),
)


def main() -> None:
    """Runs until SIGTERM, SIGINT or the supervisor's end. Exit status 125: it could not start."""
    try:
        _drop_privileges()
        # Each connection is an fd, each job four.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_serve(json.loads(sys.stdin.buffer.readline())))
    except TelehandlerError as error:
        print(f"telehandler: {error}", file=sys.stderr)
        sys.exit(EXIT_OURS)


def _drop_privileges() -> None:
    """Whoever started us: no root, no way back, no capability, no core dump, no debugger (S13)."""
    if 0 in os.getresuid():
        raise TelehandlerError("the api must not run as root; `telehandler server` starts it as another user")
    privileges.lock_down()


async def _serve(spec: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    loop.add_reader(0, _read_lifeline, stopped)
    state = Path(spec["state_dir"])
    records = Records(state)
    credentials, note = tls.server_credentials(tls.Files(*spec["tls_files"]), tls.Files(*spec["tls_copies"]))
    link = HelperLink(socket.socket(fileno=spec["helper_fd"]))
    jobs = Jobs(state, link, records, spec["cwd"].encode(), Keep(**spec["keep"]))
    await jobs.adopt()
    connections = ("grpc.max_allowed_incoming_connections", spec["max_connections"])
    server = grpc.aio.server(options=(*_OPTIONS, connections))
    service = Service(jobs, frozenset(spec["admins"]), spec["max_calls_per_user"])
    server.add_generic_rpc_handlers(tuple(service.handlers()))
    address = _listen(server, spec["listen"], credentials)
    await server.start()
    if note:
        tls.tell(note)
    print(f"telehandler: listening on {address}", file=sys.stderr, flush=True)
    await stopped.wait()
    await server.stop(STOP_GRACE_S)
    link.close()
    records.close()


def _read_lifeline(stopped: asyncio.Event) -> None:
    if not os.read(0, 64):
        stopped.set()


def _listen(server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials) -> str:
    host, _, port = listen.rpartition(":")
    address = f"{host or '[::]'}:{port}"
    try:
        number = server.add_secure_port(address, credentials)
    except (RuntimeError, OSError):
        number = 0
    if not number:
        raise TelehandlerError(
            f"cannot listen on {listen}: the port is in use, may not be used, or the address is not this machine's; "
            "choose another --listen"
        )
    return f"{host or 'localhost'}:{number}"
