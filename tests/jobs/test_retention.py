"""Which ended jobs are over a bound: by age, number and bytes of output."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from telehandler.common.states import State
from telehandler.jobs.records import Keep, Record, Records

DAY_MS = 86_400_000
NOW_NS = 100 * DAY_MS * 1_000_000


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    """a to f, begun in this order; d still runs; f ended first, then a, b, c and e: 10 bytes each, a day apart."""
    records = Records(tmp_path)
    ends = {"f": 5, "a": 4, "b": 3, "c": 2, "e": 1}
    for number, uuid in enumerate("abcdef"):
        record = Record(uuid, "ann", [b"true"], State.RUNNING, start_ns=number + 1, stdout_bytes=8, stderr_bytes=4)
        record.dropped_bytes = 2
        if uuid in ends:
            record.state, record.end_ns = State.COMPLETED, NOW_NS - ends[uuid] * DAY_MS * 1_000_000
        records.save(record)
    yield records
    records.close()


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (Keep(), ""),
        (Keep(jobs=5), ""),
        (Keep(jobs=4), "f"),
        (Keep(jobs=1), "fabc"),
        (Keep(output_bytes=50), ""),
        (Keep(output_bytes=49), "f"),
        (Keep(output_bytes=20), "fab"),
        (Keep(output_bytes=1), "fabc"),  # the last one's bytes are kept, whatever their number
        (Keep(age_ms=5 * DAY_MS), ""),
        (Keep(age_ms=5 * DAY_MS - 1), "f"),
        (Keep(age_ms=1), "fabce"),
        (Keep(age_ms=3 * DAY_MS, jobs=4, output_bytes=50), "fa"),
        (Keep(age_ms=9 * DAY_MS, jobs=2, output_bytes=40), "fab"),
        (Keep(age_ms=9 * DAY_MS, jobs=4, output_bytes=20), "fab"),
    ],
    ids=str,
)
def test_those_over_a_bound_go_the_first_to_end_first(records: Records, keep: Keep, expected: str) -> None:
    assert "".join(records.surplus(keep, NOW_NS)) == expected
    for uuid in expected:
        records.delete(uuid)
    assert records.surplus(keep, NOW_NS) == []
    assert [record.uuid for record in records.running()] == ["d"]
