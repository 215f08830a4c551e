"""The api process: unprivileged, serves grpc, never forks. The supervisor starts it, its control channel as fd 0.

It gets its spec, says that it is ready, and waits for the link to the helper: an api that is to take another's place
is known to be good before that one ends. See control.py.
"""

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sqlite3
import sys
from pathlib import Path
from typing import Any

from telehandler.api import tls  # sets grpc's environment: must come before grpc
from telehandler.common import bounds, control, privileges, process_state

import grpc.aio  # isort: skip

from telehandler.api.service import Service
from telehandler.common.errors import EXIT_OURS, HelperUnavailable, TelehandlerError
from telehandler.jobs.helper_link import HelperLink
from telehandler.jobs.manager import Jobs
from telehandler.jobs.records import Keep, Records

STOP_GRACE_S = 2.0  # for watchers of jobs that have ended
HAND_OVER_GRACE_S = 0.5  # for calls; watchers connect again, to the next api
KILL_DEADLINE_S = 5.0
EXIT_AGAIN = 1  # another api may do better; EXIT_OURS: it would not
_OPTIONS = (
    ("grpc.max_receive_message_length", bounds.MAX_REQUEST_BYTES),
    ("grpc.max_metadata_size", bounds.MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", bounds.MAX_METADATA_BYTES),
    ("grpc.max_concurrent_streams", bounds.MAX_STREAMS),
    ("grpc.server_handshake_timeout_ms", bounds.HANDSHAKE_TIMEOUT_S * 1000),
    ("grpc.so_reuseport", 0),  # a second server on the port must fail
    *bounds.RECEIVE_WINDOW,
    *bounds.KEEPALIVE,
    ("grpc.http2.min_ping_interval_without_data_ms", bounds.LEAST_PING_INTERVAL_S * 1000),
)


def main() -> None:
    """Runs until the supervisor says so or is gone. Exit status 125: it could not start, and no other could.

    A signal to the whole process group or cgroup is the supervisor's to act on: were the api to end by it, there would
    be nobody to end the jobs in order (R25).
    """
    process_state.establish()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        _drop_privileges()
        # Each connection is an fd, each job four.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        _run(socket.socket(fileno=0))
    except (HelperUnavailable, OSError, sqlite3.Error) as error:
        print(f"telehandler: the api cannot go on: {error}", file=sys.stderr)
        sys.exit(EXIT_AGAIN)
    except TelehandlerError as error:
        print(f"telehandler: {error}", file=sys.stderr)
        sys.exit(EXIT_OURS)


def _run(supervisor: socket.socket) -> None:
    message = control.receive(supervisor)
    if message is None:
        return
    spec = message.spec
    files, copies = tls.Files(*spec["tls_files"]), tls.Files(*spec["tls_copies"])
    credentials, note = tls.server_credentials(files, copies, spec["strict"])
    control.send(supervisor, "ready")
    message = control.receive(supervisor)
    if message is None or message.kind != "link":  # ended before it began
        return
    asyncio.run(_serve(supervisor, spec, credentials, note, message.fd))


def _drop_privileges() -> None:
    """Whoever started us: no root, no way back, no capability, no core dump, no debugger (S13)."""
    if 0 in os.getresuid():
        raise TelehandlerError("the api must not run as root; `telehandler server` starts it as another user")
    privileges.lock_down()


async def _serve(
    supervisor: socket.socket, spec: dict[str, Any], credentials: grpc.ServerCredentials, note: str, helper_fd: int
) -> None:
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[float] = loop.create_future()  # the grace for calls under way
    state = Path(spec["state_dir"])
    records = Records(state)
    link = HelperLink(socket.socket(fileno=helper_fd))
    jobs = Jobs(state, link, records, os.fsencode(spec["cwd"]), Keep(**spec["keep"]), spec["max_jobs_per_user"])
    await jobs.adopt()
    connections = ("grpc.max_allowed_incoming_connections", spec["max_connections"])
    server = grpc.aio.server(options=(*_OPTIONS, connections))
    service = Service(jobs, frozenset(spec["admins"]), spec["max_calls_per_user"])
    server.add_generic_rpc_handlers(tuple(service.handlers()))
    address = _listen(server, spec["listen"], credentials)
    await server.start()
    with contextlib.suppress(OSError):  # nobody reads any more
        if spec["first"] and link.missing_controllers:
            tls.tell(
                f"limits that the controllers {', '.join(link.missing_controllers)} would enforce are not in force: "
                "this machine lacks them, and the policy allows it; `telehandler check` says more"
            )
        if note:
            tls.tell(note)
        print(f"telehandler: listening on {address}", file=sys.stderr, flush=True)
    control.send(supervisor, "serving")
    supervisor.setblocking(False)
    orders: set[asyncio.Task[None]] = set()
    loop.add_reader(supervisor, _hear, supervisor, jobs, stopped, orders)
    await server.stop(await stopped)
    jobs.close()
    records.close()
    os._exit(0)  # what grpc still has under way would be cancelled, with a traceback each


def _settle(stopped: "asyncio.Future[float]", grace_s: float) -> None:
    if not stopped.done():
        stopped.set_result(grace_s)


def _hear(
    supervisor: socket.socket, jobs: Jobs, stopped: "asyncio.Future[float]", orders: "set[asyncio.Task[None]]"
) -> None:
    """An order of the supervisor's, or its end."""
    try:
        message = control.receive(supervisor)
    except BlockingIOError:
        return
    except (OSError, TelehandlerError):
        message = None
    loop = asyncio.get_running_loop()
    if message is None:
        loop.remove_reader(supervisor)
        return _settle(stopped, 0)
    if message.kind == "hand-over":
        return _settle(stopped, HAND_OVER_GRACE_S)
    work = _take(message.fd, jobs) if message.kind == "link" else _end(jobs, stopped, message.kind == "end")
    task = loop.create_task(work)
    orders.add(task)
    task.add_done_callback(orders.discard)


async def _take(helper_fd: int, jobs: Jobs) -> None:
    """A link to a new helper; when that one is dead already, there will be another."""
    with contextlib.suppress(HelperUnavailable):
        await jobs.connect(HelperLink(socket.socket(fileno=helper_fd)))


async def _end(jobs: Jobs, stopped: "asyncio.Future[float]", kill: bool) -> None:
    """Ends once no job runs. Those that cannot be killed in time end with the helper."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(KILL_DEADLINE_S if kill else None):
            await jobs.end(kill)
    _settle(stopped, STOP_GRACE_S)


def _listen(server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials) -> str:
    host, _, port = listen.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:  # grpc would take 70000 for 4464
        raise TelehandlerError(f"cannot listen on {listen}: --listen is [HOST]:PORT, with a port from 0 to 65535")
    address = f"{host or '[::]'}:{port}"
    try:
        number = server.add_secure_port(address, credentials)
    except (RuntimeError, OSError, ValueError):  # the last: letters that no address has
        number = 0
    if not number:
        raise TelehandlerError(
            f"cannot listen on {listen}: the port is in use, may not be used, or the address is not this machine's; "
            "choose another --listen"
        )
    every = {"": "", "[::]": "", "0.0.0.0": " IPv4"}.get(host)
    if every is None:
        return f"{host}:{number}"
    shown = host or ("[::]" if socket.has_dualstack_ipv6() else "0.0.0.0")
    return f"{shown}:{number} (every{every} address)"
