"""Job records in SQLite: what outlives the api process. One file, one writer, kept under a lock."""

import fcntl
import json
import os
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

from telehandler.errors import TelehandlerError
from telehandler.states import Reason, State

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE job (
    uuid TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    state INTEGER NOT NULL,
    record TEXT NOT NULL
) STRICT
"""


@dataclass
class Record:
    """What is known of a job. Times in nanoseconds since the epoch, 0 for none."""

    uuid: str
    owner: str
    argv: list[bytes]
    state: State = State.RUNNING
    reason: Reason = Reason.NONE
    start_ns: int = 0
    end_ns: int = 0
    exit_code: int = 0  # 128 + n after signal n, as a shell shows it
    signal: int = 0
    job_uid: int = 0
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    cpu_usec: int = 0
    memory_peak_bytes: int = 0
    stdout_sha256: str = ""  # hex, of every byte it wrote; empty: not known
    stderr_sha256: str = ""
    dropped_bytes: int = 0
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"users/{self.owner}/jobs/{self.uuid}"


def _dump(record: Record) -> str:
    values = vars(record) | {"argv": [argument.decode("utf-8", "surrogateescape") for argument in record.argv]}
    return json.dumps(values)


def _load(text: str) -> Record:
    record = Record(**json.loads(text))
    record.argv = [os.fsencode(str(argument)) for argument in record.argv]
    record.state, record.reason = State(record.state), Reason(record.reason)
    return record


class Records:
    """The state directory's records. Raises TelehandlerError when another server has the directory."""

    def __init__(self, directory: Path) -> None:
        self._lock_fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_fd)
            raise TelehandlerError(
                f"another server uses the state directory {directory}: stop it, or choose another --state-dir"
            ) from None
        self._database = sqlite3.connect(directory / "jobs.sqlite3", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._database.execute(_SCHEMA)
            self._database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif version != SCHEMA_VERSION:
            raise TelehandlerError(f"{directory} has records of version {version}; this server reads {SCHEMA_VERSION}")

    def save(self, record: Record) -> None:
        self._database.execute(
            "INSERT INTO job VALUES (?, ?, ?, ?) ON CONFLICT (uuid) DO UPDATE SET state = excluded.state, "
            "record = excluded.record",
            (record.uuid, record.owner, int(record.state), _dump(record)),
        )

    def delete(self, uuid: str) -> None:
        self._database.execute("DELETE FROM job WHERE uuid = ?", (uuid,))

    def get(self, uuid: str) -> Record | None:
        row = self._database.execute("SELECT record FROM job WHERE uuid = ?", (uuid,)).fetchone()
        return _load(row[0]) if row else None

    def running(self) -> list[Record]:
        rows = self._database.execute("SELECT record FROM job WHERE state = ?", (int(State.RUNNING),))
        return [_load(text) for (text,) in rows]

    def close(self) -> None:
        self._database.close()
        os.close(self._lock_fd)
