"""What a server keeps, as a test sees it and sets it up: lists of jobs, their directories, states of servers before."""

import json
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from support.servers import Server
from telehandler.jobs.records import Record, Records


def list_jobs(server: Server, *options: str, user: str = "client") -> list[dict[str, Any]]:
    """The jobs of `ls -o json`."""
    done = server.client("ls", "-o", "json", *options, user=user)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["schema"] == 1
    return list(answer["jobs"])


def pending_starts(server: Server) -> int:
    """What the api has asked the helper to start and is not answered yet: starts with a request id."""
    with closing(sqlite3.connect(f"file:{server.state}/jobs.sqlite3?mode=ro", uri=True)) as database:
        return int(database.execute("SELECT count(*) FROM start").fetchone()[0])


def output_directory(server: Server, name: str) -> Path:
    """The directory of a job's output."""
    return server.state / "jobs" / name.rpartition("/")[2]


def used_state_directory(make_server: Callable[..., Server], place: Path) -> Path:
    """The state directory of a server that has run and ended."""
    state = Path(tempfile.mkdtemp(prefix="state-", dir=place))
    assert make_server(state=state).stop() == 0
    return state


def write_jobs(state: Path, records: Iterable[Record]) -> None:
    """Jobs in a state directory as a server before would have left them, without output."""
    store = Records(state)
    for record in records:
        store.save(record)
        (state / "jobs" / record.uuid).mkdir(parents=True)
        (state / "jobs" / record.uuid / "output").touch()
    store.close()
    chown_to_server(state)


def chown_to_server(state: Path) -> None:
    """What a test, as root, put into a state directory becomes the server's."""
    owner = state.stat()
    for path in state.rglob("*"):
        os.chown(path, owner.st_uid, owner.st_gid)
