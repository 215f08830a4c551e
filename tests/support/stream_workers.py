"""The processes that serve one server's streams, and which of them has which connection."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from support.processes import descendants
from support.servers import Server
from support.wait import wait_until

_ESTABLISHED, _LISTENING = "01", "0A"
T = TypeVar("T")


def stream_workers(server: Server) -> list[int]:
    """The pids of the workers beside the api; those that live."""
    assert server.process is not None
    return [pid for pid in descendants(server.process.pid) if b"telehandler.stream_worker" in _command_line(pid)]


def serving(server: Server, processes: int) -> dict[str, int]:
    """Pids by name, once so many processes listen: the api and worker-1, worker-2, and so on."""

    def found() -> dict[str, int]:
        pids = [*filter(None, [server.children().get("api")]), *stream_workers(server)]
        listening = [pid for pid in pids if _sockets(server, pid, _LISTENING)]
        return dict(zip(_names(), listening, strict=False)) if len(listening) == processes else {}

    pids: dict[str, int] = wait_until("so many processes listen", found)
    return pids


def connections(server: Server, pid: int) -> int:
    """How many clients are connected to one of the processes."""
    return len(_sockets(server, pid, _ESTABLISHED))


def process_of_new(server: Server, pids: dict[str, int], connect: Callable[[], T]) -> tuple[str, T]:
    """What `connect` returns, which makes one connection and keeps it, and the name of the process that got it."""
    before = {name: _sockets(server, pid, _ESTABLISHED) for name, pid in pids.items()}
    made = connect()

    def new() -> list[str]:
        return [name for name, pid in pids.items() if _sockets(server, pid, _ESTABLISHED) - before[name]]

    (name,) = wait_until("the connection is there", new)
    return name, made


def _names() -> list[str]:
    return ["api", *(f"worker-{number}" for number in range(1, 64))]


def _sockets(server: Server, pid: int, state: str) -> set[str]:
    """The sockets of a process at the server's port, in one state: proc(5), net/tcp."""
    tables = (Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6"))
    rows = [row.split() for table in tables for row in table.splitlines()[1:]]
    port = f":{server.port:04X}"
    inodes = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(port) and row[3] == state}
    found = set()
    try:
        for path in Path(f"/proc/{pid}/fd").iterdir():
            try:
                found.add(os.readlink(path))
            except OSError:
                pass  # closed meanwhile
    except OSError:
        pass  # it has ended
    return found & inodes


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
