"""What was tested in the virtual machine: each function of guest/ and of the main job is a test here too."""

import os
import re
import shlex
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from servers import ROOT
from vm import machine

GUEST = "tests/vm/guest"
# One boot for each: how it is booted, and what is run in it.
BOOTS = {
    "plain": (
        f"{GUEST}/test_limits.py",
        f"{GUEST}/test_disks.py",
        f"{GUEST}/test_hogs.py",
        "tests/e2e/test_main_job.py",
    ),
    "systemd": (f"{GUEST}/test_systemd.py",),
}
TIMEOUT_S = 400.0


def _functions(file: str) -> list[str]:
    return re.findall(r"^def (test_\w+)", (ROOT / file).read_text(), re.MULTILINE)


CASES = [(mode, Path(file).stem, name) for mode, files in BOOTS.items() for file in files for name in _functions(file)]


@pytest.fixture(scope="session")
def results(as_root: None) -> Callable[[str], dict[tuple[str, str], list[str]]]:
    """By kind of boot: for each file and function, what became of its cases. Boots at the first call."""

    @cache
    def boot(mode: str) -> dict[tuple[str, str], list[str]]:
        arguments = [*BOOTS[mode], "-p", "no:cacheprovider", "--junitxml=/run/junit.xml", "--durations=10"]
        tests = shlex.join([sys.executable, "-B", "-m", "pytest", *arguments])
        script = f"cd {shlex.quote(str(ROOT))}\nexport CI=1 TELEHANDLER_GUEST={mode}\n{tests}\nstatus=$?\n"
        script += "cat /run/junit.xml >/run/vm/report\nexit $status"
        try:
            result = machine.run(script, systemd=mode == "systemd", timeout_s=TIMEOUT_S)
        except machine.Unavailable as error:
            if os.environ.get("CI"):
                pytest.fail(f"the virtual machine cannot be run, and CI must: {error}", pytrace=False)
            pytest.skip(f"no virtual machine: {error}")
        print(result.output)  # pytest's report of the guest, shown with a failure
        found: dict[tuple[str, str], list[str]] = {}
        for case in ET.fromstring(result.report).iter("testcase"):
            key = case.attrib["classname"].rpartition(".")[2], case.attrib["name"].partition("[")[0]
            found.setdefault(key, []).extend(f"{case.attrib['name']} {child.tag}: {child.text}" for child in case)
        return found

    return boot


@pytest.mark.parametrize(("mode", "module", "name"), CASES, ids=["-".join(case) for case in CASES])
def test_in_the_guest(
    results: Callable[[str], dict[tuple[str, str], list[str]]], mode: str, module: str, name: str
) -> None:
    cases = results(mode)
    assert (module, name) in cases, f"not run in the virtual machine; it ran {sorted(cases)}"
    # A case that passed says nothing; failure, error and skipped do.
    assert not cases[module, name], "\n".join(cases[module, name])
