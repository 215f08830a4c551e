"""Job records in SQLite: what outlives the api process. One file, one writer, kept under a lock."""

import fcntl
import json
import os
import sqlite3
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from telehandler.common.errors import TelehandlerError
from telehandler.common.states import Reason, State

# What brings a database from one version to the next; never changed once released. The first makes an empty one.
_MIGRATIONS = (
    (
        """CREATE TABLE job (
            uuid TEXT PRIMARY KEY,
            owner TEXT NOT NULL,
            state INTEGER NOT NULL,
            record TEXT NOT NULL
        ) STRICT""",
    ),
    (
        "ALTER TABLE job ADD COLUMN start_ns INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE job ADD COLUMN end_ns INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE job ADD COLUMN output_bytes INTEGER NOT NULL DEFAULT 0",
        """UPDATE job SET
            start_ns = json_extract(record, '$.start_ns'),
            end_ns = json_extract(record, '$.end_ns'),
            output_bytes = json_extract(record, '$.stdout_bytes') + json_extract(record, '$.stderr_bytes')""",
        "CREATE INDEX job_by_start ON job (start_ns, uuid, state)",
        "CREATE INDEX job_by_owner ON job (owner, start_ns, uuid, state)",
        "CREATE INDEX job_by_end ON job (end_ns, uuid, output_bytes) WHERE state <> 1",
        "CREATE INDEX job_running ON job (uuid) WHERE state = 1",
    ),
    (
        "ALTER TABLE job ADD COLUMN request_id TEXT NOT NULL DEFAULT ''",
        "CREATE UNIQUE INDEX job_by_request ON job (owner, request_id) WHERE request_id <> ''",
        # Starts with a request id that the helper has been asked for and that are not known to have succeeded.
        """CREATE TABLE start (
            uuid TEXT PRIMARY KEY,
            owner TEXT NOT NULL,
            request_id TEXT NOT NULL,
            record TEXT NOT NULL,
            UNIQUE (owner, request_id)
        ) STRICT""",
        "CREATE TRIGGER started AFTER INSERT ON job BEGIN DELETE FROM start WHERE uuid = NEW.uuid; END",
    ),
    (
        "ALTER TABLE job ADD COLUMN exec_in TEXT NOT NULL DEFAULT ''",
        "CREATE INDEX job_by_exec_in ON job (exec_in, start_ns, uuid) WHERE exec_in <> ''",
    ),
)
SCHEMA_VERSION = len(_MIGRATIONS)
MAX_PAGE_BYTES = 1 << 20  # of records in one page, whatever their number: a command may be long
# As the partial indices have them, word for word, so that they are used.
_RUNNING, _ENDED = "state = 1", "state <> 1"


class Cursor(NamedTuple):
    """Where in the list a record is: by its start, and by its name among those of one start."""

    start_ns: int
    uuid: str


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
        for statements in _MIGRATIONS[version:]:
            for statement in statements:
                self._database.execute(statement)
        self._database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")  # part of the transaction
        self._database.execute("COMMIT")

    def save(self, record: Record) -> None:
        self._database.execute(
            "INSERT INTO job (uuid, owner, state, record, start_ns, end_ns, output_bytes, request_id, exec_in) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) "
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
        exec_in: str = "",
    ) -> tuple[list[Record], bool]:
        """At most `count` records, the newest first, from behind `after`; and whether there are more.

        `owner` None: everybody's. No `states`: all. `prefix`: of UUIDs, in lower case. `exec_in`: the commands in this
        job; empty: all others, or with a prefix all. A page of long commands has fewer: see MAX_PAGE_BYTES.
        """
        where: list[str] = []
        values: list[str | int] = []
        if owner is not None:
            where.append("owner = ?")
            values.append(owner)
        if states:
            where.append(f"state IN ({', '.join('?' * len(states))})")
            values += [int(state) for state in states]
        if prefix:
            where.append("uuid >= ? AND uuid < ?")
            values += prefix, prefix + "g"  # behind every hexadecimal digit
        if exec_in or not prefix:
            where.append("exec_in = ?")
            values.append(exec_in)
        if after:
            where.append("(start_ns, uuid) < (?, ?)")
            values += after
        condition = f"WHERE {' AND '.join(where)} " if where else ""
        query = f"SELECT record FROM job {condition}ORDER BY start_ns DESC, uuid DESC LIMIT ?"
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

    def close(self) -> None:
        self._database.close()
        os.close(self._lock_fd)
