"""The mutants of named.toml (S54), and the tool that makes others: that it changes what it says, and does no harm."""

import os
import re
from pathlib import Path

import pytest
from mutants import named, suites, table
from mutants.sandbox import Copy
from support.cgroups import cgroup_root
from support.checkout import ROOT
from support.processes import processes_with

PROPERTIES, FAULTS = (
    re.findall(r"^\| ([SR]\d+) \|", (ROOT / "docs" / name).read_text(), re.MULTILINE)
    for name in ("security.md", "reliability.md")
)
OF_NO_CODE = {"S54"}  # it is about the tests themselves
WIRE_TEST = "tests/helper/test_wire_format.py"


@pytest.fixture
def copy(as_root: None, tmp_path: Path) -> Copy:
    return Copy(tmp_path / "copy")


def _unharmed() -> bool:
    """Whether nothing of a run is left, and nothing of it ever was, outside its namespaces."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    ours = [fields for fields in mounts if "harm" in fields or fields[4].startswith(str(ROOT))]
    cgroups = list(cgroup_root().glob(f"mutants-{os.getpid()}-*"))
    left = ours or cgroups or processes_with("4.1231056")
    return not left and os.uname().nodename != "harmed" and os.stat("/dev/null").st_uid == 0


def test_no_mutant_is_of_what_there_is_not() -> None:
    assert {one.property for one in named.mutants()} == {*PROPERTIES, *FAULTS} - OF_NO_CODE


@pytest.mark.parametrize("key", [key for key in (*PROPERTIES, *FAULTS) if key not in OF_NO_CODE])
def test_s54_each_has_a_mutant_and_tests_that_must_fail_on_it(key: str) -> None:
    found = [one for one in named.mutants() if one.property == key]
    assert found, f"tests/mutants/named.toml has no mutant of {key}"
    for one in found:
        assert one.changed((ROOT / one.file).read_text())
        names = [re.findall(rf"^def (test_{key.lower()}_\w+)", _text_of(test), re.MULTILINE) for test in one.tests]
        assert any(names), one.tests
        for test, there in zip(one.tests, names, strict=True):
            _, _, function = test.partition("::")
            assert not function or function.partition("[")[0] in there, test


def _text_of(test: str) -> str:
    return (ROOT / test.partition("::")[0]).read_text()


def test_s54_a_mutant_is_noticed_and_the_code_as_it_is_passes(copy: Copy) -> None:
    (one,) = [one for one in named.mutants() if one.property == "S4"]
    original = (copy.path / one.file).read_text()
    assert copy.run([WIRE_TEST], 120).failed == ""
    copy.write(one.file, one.changed(original))
    assert copy.run([WIRE_TEST], 120).failed.startswith(WIRE_TEST)
    copy.write(one.file, original)
    assert copy.run([WIRE_TEST], 120).failed == ""
    assert (ROOT / one.file).read_text() == original
    assert _unharmed()


def test_a_mutant_that_hangs_is_ended_and_has_failed(copy: Copy) -> None:
    copy.write("helper/wire.py", "while True: pass\n")
    assert copy.run([WIRE_TEST], 3).failed == "not within 3 s"
    assert _unharmed()


def test_what_a_mutant_does_to_the_machine_ends_with_its_run(copy: Copy) -> None:
    harm = "import os, subprocess\n"
    harm += "def test_harm():\n"
    harm += "    subprocess.run(['mount', '-t', 'tmpfs', 'harm', '/mnt'], check=True)\n"
    harm += "    subprocess.run(['hostname', 'harmed'], check=True)\n"
    harm += "    os.chown('/dev/null', 1, 1)\n"
    harm += "    subprocess.Popen(['setsid', 'sleep', '4.1231056'])\n"
    harm += "    os.kill(-1, 9)\n"  # of a root without a pid namespace: everybody's end
    copy.write("tests/test_harm.py", harm)
    assert copy.run(["tests/test_harm.py"], 60).failed
    assert _unharmed()


def test_suites_name_files_and_tests_that_there_are() -> None:
    for file, tests in suites.SUITES.items():
        assert (ROOT / file).is_file()
        for test in tests:
            assert (ROOT / test.removeprefix("--deselect=").partition("::")[0]).is_file(), test
    assert {f"helper/{path.name}" for path in (ROOT / "helper").glob("*.py")} - {"helper/__init__.py"} <= {
        *suites.SUITES
    }


def test_each_row_of_the_table_is_of_a_line_that_there_is() -> None:
    """A line that has changed may have a test by now: its row goes."""
    rows = table.rows()
    assert rows
    for row in rows:
        before = re.sub("«(.*?) → .*?»", lambda match: match[1], row.change)
        text = re.sub(r"\s", "", (ROOT / row.file).read_text())
        assert re.sub(r"\s", "", before) in text, row
        assert row.reason != "?"
        assert table.row(*row) in table.DOCUMENT.read_text()
