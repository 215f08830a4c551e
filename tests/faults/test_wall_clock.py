"""R14: only stamps and ages are of the wall clock. A jump of it, for real: tests/vm/guest/test_wall_clock.py."""

import ast
from collections.abc import Iterator
from pathlib import Path

from support.checkout import ROOT

# Every place where the product reads the wall clock, and what it is there.
WALL_CLOCK = {
    "telehandler/jobs/start.py _start": "when a job began, for its record",
    "telehandler/jobs/start.py _new_record": "the same, until it is known to run",
    "telehandler/jobs/lifecycle.py end": "when it ended",
    "telehandler/jobs/restarts.py _start_next": "about when a job is started again, for who asks",
    "telehandler/output/log.py splice": "when output arrived",
    "telehandler/jobs/retention.py prune": "the age of an ended job, which may have ended under another server",
    "telehandler/output/watch.py _more": "how long until --until, a wall-clock time",
    "telehandler/cli/watch.py _time_ns": "the time that --since and --until mean",
    "telehandler/check/machine.py certificates": "how long a certificate is good",
    "telehandler/api/tls.py _check": "whether a certificate is good",
    "telehandler/api/auth.py caller_of": "the same",
    "telehandler/client/diagnosis.py _of_our_certificate": "the same, of the user's own",
    "telehandler/certs/authority.py _check": "the same",
    "telehandler/certs/authority.py _builder": "from when a certificate is good",
}
READS = {
    *("time.time", "time.time_ns", "time.localtime", "time.gmtime", "time.ctime", "time.strftime", "time.asctime"),
    *("datetime.now", "datetime.utcnow", "datetime.today", "date.today"),
}
CLOCKS = {"clock_gettime", "clock_gettime_ns"}


def _reads(path: Path) -> Iterator[tuple[str, str]]:
    """Function and clock of each read of the wall clock."""

    def walk(node: ast.AST, function: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            inside = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
            if isinstance(child, ast.Attribute):
                name = ".".join(ast.unparse(child).split(".")[-2:])
                if name in READS or child.attr in CLOCKS:
                    yield function, name
            if isinstance(child, ast.ImportFrom) and child.module == "time":
                yield function, "from time import"  # would hide a read from this test
            yield from walk(child, inside)

    yield from walk(ast.parse(path.read_text(), path), "")


def test_r14_the_wall_clock_is_read_for_stamps_alone() -> None:
    found: dict[str, set[str]] = {}
    for path in sorted([*ROOT.glob("telehandler/**/*.py"), *ROOT.glob("helper/*.py")]):
        for function, clock in _reads(path):
            found.setdefault(f"{path.relative_to(ROOT)} {function}", set()).add(clock)
    assert found.keys() == WALL_CLOCK.keys(), found


def test_r14_the_helper_never_reads_it() -> None:
    assert not [name for name in WALL_CLOCK if name.startswith("helper/")]
    assert not [read for path in ROOT.glob("helper/*.py") for read in _reads(path)]
