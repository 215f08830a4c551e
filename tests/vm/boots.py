"""What is run in which virtual machine, and its results. The machines boot in a thread, beside other tests.

They wait more than they work, as the soak does: one after the other, both would take minutes more.
"""

import re
import shlex
import sys
import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.checkout import ROOT
from vm import machine

GUEST = "tests/vm/guest"
# Run, watch and stop with limits in force, a server that root starts; a part of it, since each client takes seconds.
RUN_WATCH_STOP = (
    "test_the_server_is_unprivileged_and_the_helper_is_root",
    "test_one_to_five_hundred",
    "test_fifty_mebibytes_of_random_bytes",
    "test_stdout_and_stderr_are_told_apart",
    "test_stop_ends_a_tree_with_a_session_of_its_own",
    "test_no_cgroup_of_an_ended_job_is_left",
)
# One boot for each: how it is booted, and what is run in it.
BOOTS = {
    "plain": (
        *(
            f"{GUEST}/test_{name}.py"
            for name in ("limits", "memory", "no_disk", "io_limits", "resource_hogs", "wall_clock")
        ),
        "tests/security/test_job_attributes.py",
        *(f"tests/e2e/test_run_watch_stop.py::{name}[root]" for name in RUN_WATCH_STOP),
    ),
    "systemd": (f"{GUEST}/test_systemd.py",),
}
TIMEOUT_S = 600.0  # for a machine that is busy: alone on two cores it takes two minutes


def _cases() -> Iterator[tuple[str, str, str]]:
    """Kind of boot, module and function of all that BOOTS names."""
    for mode, arguments in BOOTS.items():
        for argument in arguments:
            file, _, test = argument.partition("::")
            names = (
                [test.partition("[")[0]] if test else re.findall(r"^def (test_\w+)", (ROOT / file).read_text(), re.M)
            )
            yield from ((mode, Path(file).stem, name) for name in names)


CASES = list(_cases())


Results = dict[tuple[str, str], list[str]]  # for each module and function, what became of its cases: nothing is good


class Guests:
    """The machines of some kinds of boot, one after the other. `close` ends what still runs."""

    def __init__(self, modes: Collection[str]) -> None:
        self._machine = machine.Machine()
        self._thread = ThreadPoolExecutor(1)
        self._results = {mode: self._thread.submit(self._boot, mode) for mode in BOOTS if mode in modes}

    def results(self, mode: str) -> Results:
        """Waits for them. Raises machine.Unavailable, or RuntimeError when the guest gave none; each time."""
        return self._results[mode].result()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._machine.end()
        self._thread.shutdown()

    def _boot(self, mode: str) -> Results:
        arguments = [*BOOTS[mode], "-p", "no:cacheprovider", "--junitxml=/run/junit.xml", "--durations=10"]
        tests = shlex.join([sys.executable, "-m", "pytest", *arguments])
        script = f"cd {shlex.quote(str(ROOT))}\nexport CI=1 TELEHANDLER_GUEST={mode}\n{tests}\n"
        script += "cat /run/junit.xml >/run/vm/report"
        result = self._machine.run(script, systemd=mode == "systemd", timeout_s=TIMEOUT_S)
        try:
            report = ET.fromstring(result.report)
        except ET.ParseError as error:
            text = f"pytest in the virtual machine gave no report ({error}):\n{result.output[-5000:]}"
            raise RuntimeError(text) from None
        found: Results = {}
        for case in report.iter("testcase"):
            key = case.attrib["classname"].rpartition(".")[2], case.attrib["name"].partition("[")[0]
            # A case that passed has no child; failure, error and skipped are children.
            found.setdefault(key, []).extend(f"{case.attrib['name']} {child.tag}: {child.text}" for child in case)
        return found
