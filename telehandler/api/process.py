"""The api process: unprivileged, serves grpc, never forks. The supervisor starts it, its control channel as fd 0.

It gets its spec, says that it is ready, and waits for the link to the helper: an api that is to take another's place
is known to be good before that one ends. See control.py.
"""

import asyncio
import contextlib
import os
import socket
import sqlite3
import sys
from pathlib import Path
from typing import Any

from telehandler.api import listening, tls  # set grpc's environment: must come before grpc
from telehandler.common import control, server_child

import grpc  # isort: skip

from telehandler.api.service import Service
from telehandler.api.worker_link import WorkerLinks
from telehandler.common.errors import EXIT_OURS, HelperUnavailable, TelehandlerError
from telehandler.jobs.helper_link import HelperLink
from telehandler.jobs.manager import Jobs
from telehandler.jobs.records import Keep, Records

STOP_GRACE_S = 2.0  # for watchers of jobs that have ended
HAND_OVER_GRACE_S = 0.5  # for calls; watchers connect again, to the next api
KILL_DEADLINE_S = 5.0
EXIT_AGAIN = 1  # another api may do better; EXIT_OURS: it would not


def main() -> None:
    """Runs until the supervisor says so or is gone. Exit status 125: it could not start, and no other could."""
    try:
        server_child.establish("the api")
        supervisor = socket.socket(fileno=0)
        if opened := listening.open_channel(supervisor):
            asyncio.run(_serve(supervisor, *opened))
    except (HelperUnavailable, OSError, sqlite3.Error) as error:
        print(f"telehandler: the api cannot go on: {error}", file=sys.stderr)
        sys.exit(EXIT_AGAIN)
    except TelehandlerError as error:
        print(f"telehandler: {error}", file=sys.stderr)
        sys.exit(EXIT_OURS)


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
    processes, (host, port) = spec["stream_workers"], listening.address_of(spec["listen"])
    if processes > 1 and not listening.is_free(host, port):
        raise TelehandlerError(f"cannot listen on {spec['listen']}: the port is in use; choose another --listen")
    server = listening.server(spec["max_connections"], processes)
    service = Service(jobs, frozenset(spec["admins"]), spec["max_calls_per_user"])
    server.add_generic_rpc_handlers(tuple(service.handlers()))
    number = listening.listen(server, host, port, credentials)
    await server.start()
    with contextlib.suppress(OSError):  # nobody reads any more
        if spec["first"] and link.missing_controllers:
            tls.tell(
                f"limits that the controllers {', '.join(link.missing_controllers)} would enforce are not in force: "
                "this machine lacks them, and the policy allows it; `telehandler check` says more"
            )
        if note:
            tls.tell(note)
        print(f"telehandler: listening on {listening.shown(host, number)}", file=sys.stderr, flush=True)
    control.send(supervisor, "serving")
    supervisor.setblocking(False)
    hello = {"host": host, "port": number, "connections": spec["max_connections"], "processes": processes}
    workers = WorkerLinks(service.methods(), hello | {"state_dir": str(state)})
    orders: set[asyncio.Task[None]] = set()
    loop.add_reader(supervisor, _hear, supervisor, jobs, workers, stopped, orders)
    grace_s = await stopped
    await asyncio.gather(server.stop(grace_s), workers.stop(grace_s))
    jobs.close()
    records.close()
    os._exit(0)  # what grpc still has under way would be cancelled, with a traceback each


def _settle(stopped: "asyncio.Future[float]", grace_s: float) -> None:
    if not stopped.done():
        stopped.set_result(grace_s)


def _hear(
    supervisor: socket.socket,
    jobs: Jobs,
    workers: WorkerLinks,
    stopped: "asyncio.Future[float]",
    orders: "set[asyncio.Task[None]]",
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
    if message.kind == "worker":
        return workers.add(socket.socket(fileno=message.fd))
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
