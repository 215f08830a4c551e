"""Runs tests on a changed copy of the checkout, where a mutant of root's code can do no harm to the machine.

The copy lies over the checkout in a mount namespace of the run, so every path is as usual. The run has pids, a host
name, System V IPC and a cgroup tree of its own: what a mutant mounts, kills or leaves behind ends with the run.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from support.cgroups import cgroup_root
from support.checkout import ROOT

# $1: checkout, $2: copy, $3: where cgroup v2 is mounted, $4: the run's cgroup. Then the command.
_ENTER_CGROUP = 'echo 0 >"$4/cgroup.procs"; exec unshare --cgroup -- sh -euc "$INSIDE_CGROUP" sh "$@"'
_INSIDE_CGROUP = 'echo 0 >"$4/tests/cgroup.procs"; exec unshare --mount --uts --ipc --pid --fork --kill-child=KILL '
_INSIDE_CGROUP += '--mount-proc -- sh -euc "$INSIDE_ALL" sh "$@"'
# A mutant that leaves out MS_PRIVATE, or the new mount namespace, changes this namespace and no other.
# /dev is the machine's. A start changes the owner of two fds, by a mutant that of /dev/null: that one is the run's own.
# The shell stays, as the init that reaps what a helper leaves at its end: a dead job that nobody reaps keeps its uid.
_INSIDE_ALL = """
mount --bind "$1/.venv" "$2/.venv"
mount --rbind "$2" "$1"
mount -t tmpfs -o mode=1777 none /var/tmp
mknod -m 666 /var/tmp/.null c 1 3
mount --bind /var/tmp/.null /dev/null
umount --lazy "$3"
mount -t cgroup2 none "$3"
cd "$1"
shift 4
"$@"
exit 0
"""
_MADE = (".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info")


class Outcome(NamedTuple):
    """Of one run: `failed` is the first test that failed, empty when all passed."""

    failed: str
    seconds: float
    output: str


class Copy:
    """A copy of the checkout, without what is made from it."""

    def __init__(self, place: Path) -> None:
        self.path, self._number = place, 0
        self._cgroup = cgroup_root() / f"mutants-{os.getpid()}-{place.name}"
        shutil.copytree(ROOT, place, symlinks=True, ignore=shutil.ignore_patterns(*_MADE))
        (place / ".venv").mkdir()

    def write(self, name: str, text: str) -> None:
        """Changes a file. No bytecode of the text before is left: it is told apart by second and size alone."""
        path = self.path / name
        path.write_text(text)
        shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)

    def run(self, tests: list[str], timeout_s: float) -> Outcome:
        """Runs tests up to the first that fails; one that does not end in time has failed."""
        # Without the plugin of hypothesis, whose import would take longer than most of these tests.
        plugins = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=short", *plugins, *tests]
        self._number += 1
        cgroup = Path(f"{self._cgroup}-{self._number}")
        (cgroup / "tests").mkdir(parents=True)
        arguments = [str(ROOT), str(self.path), str(cgroup_root()), str(cgroup)]
        began = time.monotonic()
        try:
            done = subprocess.run(
                ["sh", "-euc", _ENTER_CGROUP, "sh", *arguments, *command],
                env=os.environ | {"INSIDE_CGROUP": _INSIDE_CGROUP, "INSIDE_ALL": _INSIDE_ALL},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                timeout=timeout_s,
                check=False,
            )
            output = done.stdout.decode(errors="replace")
            failed = "" if done.returncode == 0 else _first_failure(output) or f"exit status {done.returncode}"
        except subprocess.TimeoutExpired as error:
            output, failed = (error.stdout or b"").decode(errors="replace"), f"not within {timeout_s:.0f} s"
        finally:
            _remove(cgroup)
        return Outcome(failed, time.monotonic() - began, output)


def _first_failure(output: str) -> str:
    """Of pytest's summary: `FAILED` or `ERROR`, the test, which may have spaces in its parameters, " - ", a message."""
    summary = output.rpartition(" short test summary info ")[2]
    found = re.findall(r"^(?:FAILED|ERROR) (\S+?\.py(?:::.*?)?)(?: - .*)?$", summary, re.MULTILINE)
    return found[0] if found else ""


def _remove(cgroup: Path) -> None:
    """Ends what is left in the run's cgroup, and removes it."""
    (cgroup / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + 10
    while "populated 1" in (cgroup / "cgroup.events").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    for directory, _, _ in os.walk(cgroup, topdown=False):
        with suppress(OSError):
            os.rmdir(directory)


def default_signals() -> None:
    """SIGTERM unwinds, so that copies and cgroups are removed. What a shell has background jobs ignore is not kept."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
