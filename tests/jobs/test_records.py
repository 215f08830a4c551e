"""The records of jobs in the database: pages of a list, databases of other versions."""

import random
import sqlite3
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from telehandler.api import pagination
from telehandler.api.pagination import Query
from telehandler.common.errors import TelehandlerError
from telehandler.common.states import Reason, State
from telehandler.jobs.records import MAX_PAGE_BYTES, SCHEMA_VERSION, Keep, Record, Records
from telehandler.jobs.selection import Cursor, Marks

EVERYBODYS = Query(None, frozenset())
FINAL = [State.COMPLETED, State.FAILED, State.STOPPED]


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    records = Records(tmp_path)
    yield records
    records.close()


def _record(owner: str, state: State, start_ns: int, *argv: bytes) -> Record:
    return Record(str(uuid.uuid4()), owner, [*argv], state, start_ns=start_ns, end_ns=0 if state == 1 else start_ns)


def _fill(records: Records, count: int) -> list[Record]:
    """Many of three owners, in every state, often two of one start."""
    chance = random.Random(1)
    made = []
    for _ in range(count):
        owner, state = chance.choice(["ann", "anne", "-"]), chance.choice(list(State))
        made.append(_record(owner, state, chance.randrange(count // 2), b"true"))
        records.save(made[-1])
    return sorted(made, key=lambda record: record.cursor, reverse=True)


def _walk(records: Records, query: Query, size: int) -> Iterator[list[Record]]:
    """Page by page, by tokens, as a client does."""
    token, more = "", True
    while more:
        after = pagination.unpack(query, token) if token else None
        found, more = records.page(query.owner, query.states, after, size, query.prefix, query.marks)
        yield found
        token = pagination.pack(query, found[-1].cursor) if more else ""


@pytest.mark.parametrize("owner", [None, "ann", "-", "an", "a%"])
@pytest.mark.parametrize("states", [[], [State.RUNNING], FINAL])
def test_pages_hold_every_record_once_the_newest_first(
    records: Records, owner: str | None, states: list[State]
) -> None:
    made = _fill(records, 300)
    expected = [r for r in made if owner in (None, r.owner) and (not states or r.state in states)]
    for size in (1, 7, 299, 300):
        walked = list(_walk(records, Query(owner, frozenset(states)), size))
        assert [record for page in walked for record in page] == expected
        assert all(len(page) == size for page in walked[:-1])


@pytest.mark.parametrize("length", [1, 2, 9, 36])
def test_pages_of_a_prefix_hold_its_records_alone(records: Records, length: int) -> None:
    made = _fill(records, 300)
    for prefix in {made[0].uuid[:length], made[150].uuid[:length], "f" * length}:
        expected = [record for record in made if record.uuid.startswith(prefix)]
        walked = list(_walk(records, Query(None, frozenset(), prefix), 2))
        assert [record for page in walked for record in page] == expected


def test_a_walk_is_not_upset_by_what_comes_and_goes_meanwhile(records: Records) -> None:
    made = _fill(records, 100)
    walk = _walk(records, EVERYBODYS, 10)
    seen = next(walk)
    for record in (*made[:5], made[9], *made[50:55]):  # of the page that was read, its last one too; and of one to come
        records.delete(record.uuid)
    records.save(_record("ann", State.RUNNING, 1000))
    seen += [record for page in walk for record in page]
    assert seen == made[:50] + made[55:]


def test_a_page_of_long_commands_has_fewer(records: Records) -> None:
    made = [
        _record("ann", State.COMPLETED, number, bytes([1 + number]) * (MAX_PAGE_BYTES // 20)) for number in range(9)
    ]
    for record in made:
        records.save(record)
    walked = list(_walk(records, EVERYBODYS, 1000))
    assert [record for page in walked for record in page] == made[::-1]
    assert max(len(page) for page in walked) < 9
    sizes = [sum(len(word) for record in page for word in record.argv) for page in walked]
    assert max(sizes) <= MAX_PAGE_BYTES


def _version(number: int, directory: Path) -> sqlite3.Connection:
    database = sqlite3.connect(directory / "jobs.sqlite3")
    database.executescript(Path(__file__).with_name(f"version-{number}.sql").read_text())
    assert database.execute("PRAGMA user_version").fetchone() == (number,)
    return database


def test_a_database_of_version_1_is_brought_up_and_nothing_is_lost(tmp_path: Path) -> None:
    _version(1, tmp_path).close()
    for _ in range(2):  # brought up, and opened as it is
        records = Records(tmp_path)
        found, more = records.page(None, [], None, 10)
        assert [(r.owner, r.state, r.reason, r.exit_code, r.argv) for r in found] == [
            ("tele-tester", State.RUNNING, Reason.NONE, 0, [b"sleep", b"99"]),
            ("bubba", State.FAILED, Reason.EXITED, 1, [b"false"]),
            ("tele-tester", State.STOPPED, Reason.STOPPED, 143, [b"sleep", b"1000"]),
            ("tele-tester", State.COMPLETED, Reason.EXITED, 0, [b"sh", b"-c", b"printf '\xff'"]),
        ]
        assert not more
        assert found[1].extra == {"log_error": "No space left on device"}
        assert (found[3].stdout_sha256, found[3].dropped_bytes, found[3].output_bytes) == ("", 0, 507)
        assert records.running() == found[:1]
        by_end = [found[3].uuid, found[1].uuid, found[2].uuid]
        assert records.surplus(Keep(jobs=1), 0) == by_end[:2]
        assert records.surplus(Keep(output_bytes=12), 0) == by_end[:1]
        records.close()
    version = sqlite3.connect(tmp_path / "jobs.sqlite3").execute("PRAGMA user_version").fetchone()
    assert version == (SCHEMA_VERSION,) == (4,)


def test_a_database_of_version_2_is_brought_up_and_takes_request_ids(tmp_path: Path) -> None:
    _version(2, tmp_path).close()
    for _ in range(2):
        records = Records(tmp_path)
        found, _ = records.page(None, [], None, 10)
        assert [(r.owner, r.argv, r.request_id) for r in found] == [
            ("tele-tester", [b"sleep", b"99"], ""),
            ("bubba", [b"false"], ""),
            ("tele-tester", [b"sleep", b"1000"], ""),
            ("tele-tester", [b"sh", b"-c", b"printf '\xff'"], ""),
        ]
        assert (found[1].stdout_bytes, found[1].dropped_bytes) == (8192, 4096)
        assert found[1].extra == {"log_max_bytes": "4096", "log_policy": "drop"}
        assert (records.begun(), records.of_request("bubba", "")) == ([], None)
        records.close()
    records = Records(tmp_path)
    record = Record(str(uuid.uuid4()), "bubba", [b"true"], request_id=str(uuid.uuid4()))
    assert records.begin(record)
    assert not records.begin(replace(record, uuid=str(uuid.uuid4())))  # as long as it is not known what became of it
    assert records.begun() == [record]
    assert records.get(record.uuid) is records.of_request("bubba", record.request_id) is None
    records.save(record)
    assert (records.begun(), records.of_request("bubba", record.request_id)) == ([], record)
    assert records.of_request("tele-tester", record.request_id) is None
    records.delete(record.uuid)
    assert records.of_request("bubba", record.request_id) is None
    records.close()


def test_a_database_of_version_3_is_brought_up_and_takes_names_labels_and_restarts(tmp_path: Path) -> None:
    _version(3, tmp_path).close()
    for _ in range(2):
        records = Records(tmp_path)
        found, _ = records.page(None, [], None, 10)
        assert [(r.owner, r.argv, r.given_name, r.labels, r.stop_signal, r.max_restarts) for r in found] == [
            ("bubba", [b"sleep", b"99"], "", {}, 15, None),
            ("tele-tester", [b"sleep", b"1000"], "", {}, 15, None),
            ("tele-tester", [b"sh", b"-c", b"printf '\xff'"], "", {}, 15, None),
        ]
        assert [record.argv for record in records.begun()] == [[b"true"]]
        assert (records.to_remove(), records.restarts(), records.named("bubba", "")) == ([], [], None)
        records.close()
    records = Records(tmp_path)
    record = replace(found[0], given_name="build", labels={"a": "1"}, remove_after_ms=0, restarts=2, stop_signal=1)
    records.save(record)  # an update does not name it: only what is new has a name
    assert records.get(record.uuid) == record
    records.close()


def test_lists_are_by_names_and_labels(records: Records) -> None:
    marks = [
        ("build", {"a": "1", "b.c/d": ""}),
        ("build-2", {"a": "2"}),
        ("", {"a": "1", "x:y": "it's \\" + '"quoted"'}),
        ("rebuild", {}),
        ("", {}),
    ]
    made = []
    for number, (name, labels) in enumerate(marks):
        owner = "ann" if number != 3 else "bubba"
        made.append(replace(_record(owner, State.COMPLETED, number, b"true"), given_name=name, labels=labels))
        records.save(made[-1])

    def found(owner: str | None, *names: str, **labels: str | None) -> list[int]:
        wanted = Marks(names, tuple((key.replace("__", "b.c/d"), value) for key, value in labels.items()))
        walked = list(_walk(records, Query(owner, frozenset(), "", wanted), 1))
        return [made.index(record) for page in walked for record in page]

    assert found(None, "build") == [3, 1, 0]
    assert found("ann", "build") == [1, 0]
    assert found("ann", "build-", "xyz") == [1]
    assert found(None, "%") == found(None, "BUILD") == []
    assert found(None, a=None) == [2, 1, 0]
    assert found(None, a="1") == [2, 0]
    assert found(None, a="1", __="") == [0]
    assert found(None, a="1", __="x") == found(None, c=None) == []
    assert found(None, "build", a="2") == [1]
    assert found(None, **{"x:y": "it's \\" + '"quoted"'}) == [2]
    assert records.named("ann", "build") == made[0]
    assert records.named("ann", "rebuild") is records.named("bubba", "build") is None
    newer = replace(_record("ann", State.RUNNING, 99, b"true"), given_name="build")
    records.save(newer)
    assert records.named("ann", "build") == newer


def test_what_is_removed_by_itself_is_found(records: Records) -> None:
    made = [replace(_record("ann", state, 1, b"true"), remove_after_ms=5) for state in (State.RUNNING, State.FAILED)]
    for record in (*made, _record("ann", State.FAILED, 2, b"true")):
        records.save(record)
    assert records.to_remove() == made[1:]


def test_restarts_are_kept_until_they_are_deleted(records: Records) -> None:
    records.save_restart("first", "text")
    records.move_restart("first", "second")
    records.move_restart("none", "second")
    assert records.restarts() == [("first", "second", "text")]
    records.delete_restart("first")
    records.delete_restart("first")
    assert records.restarts() == []


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    database = _version(1, tmp_path)
    database.execute("UPDATE job SET record = '{' WHERE owner = 'bubba'")
    database.commit()
    before = list(database.iterdump())
    with pytest.raises(TelehandlerError, match="cannot be used: malformed JSON; restore the file, or move it away"):
        Records(tmp_path)
    assert list(database.iterdump()) == before
    assert database.execute("PRAGMA user_version").fetchone() == (1,)


def test_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    Records(tmp_path).close()
    path = tmp_path / "jobs.sqlite3"
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    database.close()
    before = path.read_bytes()
    with pytest.raises(TelehandlerError, match="records of version 5, this server knows up to 4: use the newer"):
        Records(tmp_path)
    assert path.read_bytes() == before
    path.unlink()
    Records(tmp_path).close()  # the lock was let go


def test_what_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite3").write_bytes(b"not a database" * 100)
    with pytest.raises(TelehandlerError, match="file is not a database; restore the file, or move it away"):
        Records(tmp_path)


def test_lists_and_removal_go_by_an_index(tmp_path: Path) -> None:
    """No query sorts, or reads through a table whose rows hold whole commands."""
    Records(tmp_path).close()
    plans: list[str] = []
    database = sqlite3.connect(tmp_path / "jobs.sqlite3")

    class Watched(Records):
        """Notes how each query is to be executed."""

        def __init__(self, directory: Path) -> None:
            super().__init__(directory)
            self._database.set_trace_callback(self._note)

        def _note(self, query: str) -> None:
            plans.extend(row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {query}"))

    records = Watched(tmp_path)
    labels = (("k", "v"), ("l", None))
    for owner in (None, "ann"):
        for states in ([], FINAL):
            for after in (None, Cursor(1, "x")):
                for marks in (Marks(), Marks(("x",)), Marks((), labels), Marks(("x",), labels)):
                    records.page(owner, states, after, 10, "", marks)
    records.named("ann", "x")
    records.to_remove()
    records.surplus(Keep(1, 1, 1), 0)
    records.running()
    records.of_request("ann", "x")
    records.close()
    database.close()
    assert len(plans) == 38
    assert [plan for plan in plans if "INDEX" not in plan or "TEMP B-TREE" in plan] == []
