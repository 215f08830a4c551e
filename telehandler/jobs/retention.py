"""The removal of ended jobs: those over a bound, those that are deleted, and what a crash left half removed."""

import asyncio
import os
import re
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from telehandler.common.turns import Threads
from telehandler.jobs.records import Keep, Record, Records

_THREADS = 2
_AGAIN_S = 60.0
_REMOVED = ".removed"
# Nothing else is removed: the directory may have been somebody's before it was ours.
_OURS = re.compile(rf"[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}({re.escape(_REMOVED)})?")


class Retention:
    """Removes jobs from `directory`, which has one of each job's, and from the records.

    A job's directory goes before its record. It gets another name first, so that for everybody else the job is gone
    at once, while its bytes take their time; those who read its output have the files open.
    """

    def __init__(self, directory: Path, records: Records, keep: Keep) -> None:
        self._directory, self._records, self._keep = directory, records, keep
        self._threads = Threads("removal", _THREADS, _THREADS - 1)
        self._tasks: set[asyncio.Task[None]] = set()
        self.watched: Callable[[str], bool] = lambda uuid: False  # whether somebody reads this job's output

    async def remove(self, uuids: Iterable[str], user: str = "") -> None:
        """Ended jobs, for `user`; none: for the server itself. Raises OSError and sqlite3.Error."""
        removed = []
        for uuid in [name for job in uuids for name in (*self._records.ended_in(job), job)]:
            path = self._directory / uuid
            try:
                removed.append(path.rename(path.with_name(uuid + _REMOVED)))
            except FileNotFoundError:
                pass  # by hand, or by a server that was killed before it removed the record
            try:
                self._records.delete(uuid)
            except sqlite3.OperationalError:  # no room for that, until the bytes have gone
                await self._remove_trees(removed, user)
                removed = []
                self._records.delete(uuid)
        await self._remove_trees(removed, user)

    def expire(self, record: Record, pause_s: float | None = None) -> None:
        """Removes an ended job when it is time, if its user said so: later while it is watched, or `pause_s`."""
        if record.remove_after_ms is None:
            return
        pause_s = record.remove_after_ms / 1000 if pause_s is None else pause_s
        asyncio.get_running_loop().call_later(pause_s, self._expire, record)

    def _expire(self, record: Record) -> None:
        if record.remove_after_ms and self.watched(record.uuid):
            return self.expire(record)
        task = asyncio.get_running_loop().create_task(self._remove_expired(record))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _remove_expired(self, record: Record) -> None:
        try:
            await self.remove([record.uuid], record.owner)
        except (OSError, sqlite3.Error) as error:
            _tell(error)
            self.expire(record, _AGAIN_S)

    async def prune(self) -> None:
        """Removes what is over a bound, the oldest first. Failures are told in the log: the next end tries again."""
        try:
            await self.remove(self._records.surplus(self._keep, time.time_ns()))
        except (OSError, sqlite3.Error) as error:
            _tell(error)

    def orphans(self, live: Collection[str]) -> list[Path]:
        """Before any job starts: directories of no record, which a crash left, and of none of the `live` jobs.

        Records of ended jobs without a directory go at once: their output is no longer there.
        """
        try:
            there = {entry.name for entry in os.scandir(self._directory)}
        except FileNotFoundError:
            there = set()
        known = self._records.uuids()
        for uuid, ended in known.items():
            if ended and uuid not in there:
                self._records.delete(uuid)
        names = there - known.keys() - set(live)
        return [self._directory / name for name in names if _OURS.fullmatch(name)]

    async def sweep(self, orphans: list[Path]) -> None:
        """At start-up: removes `orphans`, and what is over a bound that may be a new one."""
        try:
            await self._remove_trees(orphans, "")
        except OSError as error:
            _tell(error)
        await self.prune()

    async def _remove_trees(self, paths: list[Path], user: str) -> None:
        """In a thread: a large file takes a while to go, and watchers should not wait for it."""

        def work() -> None:
            for path in paths:
                shutil.rmtree(path)

        if paths:
            await self._threads.run(user, work)


def _tell(error: OSError | sqlite3.Error) -> None:
    text = error.strerror if isinstance(error, OSError) else error
    print(f"telehandler: an ended job cannot be removed: {text}", file=sys.stderr, flush=True)
