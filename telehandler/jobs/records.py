"""Job records in SQLite: what outlives the api process. One file, one writer, kept under a lock."""

import fcntl
import json
import os
import sqlite3
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM
from typing import NamedTuple

from telehandler.common.errors import TelehandlerError
from telehandler.common.states import Reason, State
from telehandler.jobs.schema import MIGRATIONS
from telehandler.jobs.schema import SCHEMA_VERSION as SCHEMA_VERSION
from telehandler.jobs.selection import ANY_MARKS, Cursor, Marks

MAX_PAGE_BYTES = 1 << 20  # of records in one page, whatever their number: a command may be long
# As the partial indices have them, word for word, so that they are used.
_RUNNING, _ENDED = "state = 1", "state <> 1"
_NAMED, _LABELLED = "given_name <> ''", "labels <> ''"


class Keep(NamedTuple):
    """How many ended jobs are kept; 0: no bound."""

    age_ms: int = 0
    jobs: int = 0
    output_bytes: int = 0


def name_of(owner: str, uuid: str) -> str:
    """A job's name."""
    return f"users/{owner}/jobs/{uuid}"


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
    dropped_bytes: int = 0  # at the beginning, no longer kept
    request_id: str = ""  # of StartJob; empty: none
    request_sha256: str = ""  # hex, of the request that had this id
    exec_in: str = ""  # the UUID of the job, of the same owner, in which it is a further command
    extra: dict[str, str] = field(default_factory=dict)
    given_name: str = ""  # these eight as in request.Life
    labels: dict[str, str] = field(default_factory=dict)
    stop_signal: int = SIGTERM
    stop_grace_ms: int = 10_000
    remove_after_ms: int | None = None
    max_restarts: int | None = None
    restart_of: str = ""
    restarts: int = 0
    next_run: str = ""  # UUID of the run that followed this one
    restart_ns: int = 0  # when the next one is due

    @property
    def name(self) -> str:
        return name_of(self.owner, self.uuid)

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.start_ns, self.uuid)

    @property
    def output_bytes(self) -> int:
        """What of its output is on disk."""
        return self.stdout_bytes + self.stderr_bytes - self.dropped_bytes


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
        try:
            self._open(directory)
        except sqlite3.Error as error:
            self.close()
            raise TelehandlerError(
                f"the records {directory}/jobs.sqlite3 cannot be used: {error}; restore the file, or move it away"
            ) from None
        except TelehandlerError:
            self.close()
            raise

    def _open(self, directory: Path) -> None:
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise TelehandlerError(
                f"{directory} has records of version {version}, this server knows up to {SCHEMA_VERSION}: "
                "use the newer server that wrote them, or another --state-dir"
            )
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        if version == SCHEMA_VERSION:
            return  # without a write: the disk may be full
        self._database.execute("BEGIN IMMEDIATE")
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                self._database.execute(statement)
        self._database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")  # part of the transaction
        self._database.execute("COMMIT")

    def save(self, record: Record) -> None:
        self._database.execute(
            "INSERT INTO job (uuid, owner, state, record, start_ns, end_ns, output_bytes, request_id, given_name, "
            "labels, removed_after, exec_in) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (uuid) DO UPDATE SET state = excluded.state, record = excluded.record, "
            "start_ns = excluded.start_ns, end_ns = excluded.end_ns, output_bytes = excluded.output_bytes",
            (
                record.uuid,
                record.owner,
                int(record.state),
                _dump(record),
                record.start_ns,
                record.end_ns,
                record.output_bytes,
                record.request_id,
                record.given_name,
                json.dumps(record.labels) if record.labels else "",
                int(record.remove_after_ms is not None),
                record.exec_in,
            ),
        )

    def begin(self, record: Record) -> bool:
        """Notes, before the helper is asked, what is to start; `save` turns it into a job's record.

        False: another start of this request is noted already.
        """
        query = "INSERT INTO start (uuid, owner, request_id, record) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
        values = (record.uuid, record.owner, record.request_id, _dump(record))
        return self._database.execute(query, values).rowcount == 1

    def begun(self) -> list[Record]:
        """Starts that were noted and neither saved nor forgotten."""
        return [_load(text) for (text,) in self._database.execute("SELECT record FROM start")]

    def forget(self, record: Record) -> None:
        """A start that was noted and came to nothing."""
        self._database.execute("DELETE FROM start WHERE uuid = ?", (record.uuid,))

    def of_request(self, owner: str, request_id: str) -> Record | None:
        query = "SELECT record FROM job WHERE owner = ? AND request_id = ? AND request_id <> ''"
        row = self._database.execute(query, (owner, request_id)).fetchone()
        return _load(row[0]) if row else None

    def named(self, owner: str, name: str) -> Record | None:
        """The newest job of its owner with this given name."""
        query = f"SELECT record FROM job WHERE owner = ? AND given_name = ? AND {_NAMED} ORDER BY start_ns DESC LIMIT 1"
        row = self._database.execute(query, (owner, name)).fetchone()
        return _load(row[0]) if row else None

    def to_remove(self) -> list[Record]:
        """Ended jobs that are removed some time after their end."""
        query = f"SELECT record FROM job WHERE removed_after = 1 AND {_ENDED}"
        return [_load(text) for (text,) in self._database.execute(query)]

    def delete(self, uuid: str) -> None:
        self._database.execute("DELETE FROM job WHERE uuid = ?", (uuid,))

    def get(self, uuid: str) -> Record | None:
        row = self._database.execute("SELECT record FROM job WHERE uuid = ?", (uuid,)).fetchone()
        return _load(row[0]) if row else None

    def running(self) -> list[Record]:
        return [_load(text) for (text,) in self._database.execute(f"SELECT record FROM job WHERE {_RUNNING}")]

    def page(
        self,
        owner: str | None,
        states: Collection[State],
        after: Cursor | None,
        count: int,
        prefix: str = "",
        marks: Marks = ANY_MARKS,
    ) -> tuple[list[Record], bool]:
        """At most `count` records, the newest first, from behind `after`; and whether there are more.

        `owner` None: everybody's. No `states`: all. `prefix`: of UUIDs, in lower case. A page of long commands has
        fewer: see MAX_PAGE_BYTES.
        """
        where: list[str] = []
        values: list[str | int] = []
        index = ""
        if marks.names:
            where += [_NAMED, f"({' OR '.join(['instr(given_name, ?)'] * len(marks.names))})"]
            values += marks.names
            index = "INDEXED BY job_named "
        if marks.labels:
            where.append(_LABELLED)
            index = "INDEXED BY job_labelled "
        for key, value in marks.labels:
            where.append("json_extract(labels, ?) IS NOT NULL" if value is None else "json_extract(labels, ?) = ?")
            values += [f'$."{key}"'] if value is None else [f'$."{key}"', value]
        if owner is not None:
            where.append("owner = ?")
            values.append(owner)
        if states:
            where.append(f"state IN ({', '.join('?' * len(states))})")
            values += [int(state) for state in states]
        if prefix:
            where.append("uuid >= ? AND uuid < ?")
            values += prefix, prefix + "g"  # behind every hexadecimal digit
        if marks.exec_in or not prefix:
            where.append("exec_in = ?")
            values.append(marks.exec_in)
        if after:
            where.append("(start_ns, uuid) < (?, ?)")
            values += after
        condition = f"WHERE {' AND '.join(where)} " if where else ""
        query = f"SELECT record FROM job {index}{condition}ORDER BY start_ns DESC, uuid DESC LIMIT ?"
        found: list[Record] = []
        size = 0
        for (text,) in self._database.execute(query, (*values, count + 1)):
            size += len(text)
            if len(found) == count or (found and size > MAX_PAGE_BYTES):
                return found, True
            found.append(_load(text))
        return found, False

    def ended_in(self, uuid: str) -> list[str]:
        """UUIDs of the commands that were run in a job and have ended."""
        query = f"SELECT uuid FROM job WHERE exec_in = ? AND exec_in <> '' AND {_ENDED}"
        return [found for (found,) in self._database.execute(query, (uuid,))]

    def surplus(self, keep: Keep, now_ns: int) -> list[str]:
        """UUIDs of the ended jobs that are over a bound, those that ended first first.

        The bytes of the job that ended last are no reason to remove it: who started it may not have read them yet.
        """
        if keep == Keep():
            return []
        query = f"SELECT count(*), total(output_bytes) FROM job WHERE {_ENDED}"
        jobs, size = self._database.execute(query).fetchone()
        too_old_ns = now_ns - keep.age_ms * 1_000_000 if keep.age_ms else 0
        found = []
        query = f"SELECT uuid, end_ns, output_bytes FROM job WHERE {_ENDED} ORDER BY end_ns, uuid"
        for uuid, end_ns, output_bytes in self._database.execute(query):
            too_many = keep.jobs and jobs > keep.jobs
            too_large = keep.output_bytes and size > keep.output_bytes and jobs > 1
            if not (too_many or too_large or end_ns < too_old_ns):
                break
            found.append(uuid)
            jobs, size = jobs - 1, size - output_bytes
        return found

    def uuids(self) -> dict[str, bool]:
        """Of all jobs, and whether each has ended."""
        return dict(self._database.execute(f"SELECT uuid, {_ENDED} FROM job"))

    def save_restart(self, uuid: str, request: str) -> None:
        """That the job `uuid` is restarted when it fails, by this request."""
        self._database.execute("INSERT INTO restart VALUES (?, ?, ?)", (uuid, uuid, request))

    def move_restart(self, uuid: str, newest: str) -> None:
        """That `newest` is the last of its runs so far."""
        self._database.execute("UPDATE restart SET newest = ? WHERE uuid = ?", (newest, uuid))

    def restarts(self) -> list[tuple[str, str, str]]:
        """Of each job that is restarted: UUIDs of its first and newest run, and its request."""
        return self._database.execute("SELECT uuid, newest, request FROM restart").fetchall()

    def delete_restart(self, uuid: str) -> None:
        """It is restarted no more."""
        self._database.execute("DELETE FROM restart WHERE uuid = ?", (uuid,))

    def close(self) -> None:
        self._database.close()
        os.close(self._lock_fd)
