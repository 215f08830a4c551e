"""What a job's init does to itself, step by step: each step left out in its turn is read back and ends the start."""

import json
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checkout import ROOT
from support.helper_copy import helper_copy
from support.helper_startup import helper_command, startup_outcome

from helper import confine
from helper import syscalls as sc

pytestmark = pytest.mark.usefixtures("as_root")
UID = 79_999
# In a process of its own: the drop is for good. As where fs.suid_dumpable is 1, its memory can be dumped once the uid
# has changed.
DROP = f"""
import json, os
import capng, prctl
from helper import confine, syscalls
UID, setresuid = {UID}, os.setresuid
def dumpable(*uids):
    setresuid(*uids)
    prctl.set_dumpable(1)
def nothing(*_):
    return 0
os.setgroups([5])
prctl.set_dumpable(1)
prctl.set_pdeathsig(0)
os.setresuid = dumpable
%s
said = ""
try:
    confine.drop_bounding_set()
    confine.drop_privileges(UID, os.open("/proc/self/status", os.O_RDONLY))
except PermissionError as error:
    said = error.strerror
print(json.dumps([said, prctl.get_dumpable(), prctl.get_pdeathsig(), prctl.get_no_new_privs()]))
"""


def _child(code: str, before: Callable[[], None] | None = None) -> Any:
    """What a program of this checkout prints, as JSON."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, check=True, preexec_fn=before)
    return json.loads(done.stdout)


def test_s23_after_the_drop_the_memory_is_closed_and_the_helpers_end_is_the_inits() -> None:
    assert _child(DROP % "") == ["", False, signal.SIGKILL, True]


@pytest.mark.parametrize(
    ("without", "said"),
    [
        ("os.setgroups = nothing", "['Groups']"),
        ("os.setresgid = nothing", "['Gid']"),
        ("os.setresuid = nothing", "['Uid', 'uid 0 came back']"),
        ("os.setresuid = lambda *_: setresuid(UID, UID, 0)", "['Uid', 'uid 0 came back']"),
        ("os.setresgid = lambda *_: os.setegid(UID)", "['Gid']"),
        ("prctl.capbset_drop = nothing", "['CapBnd']"),
        ("syscalls.set_seccomp_filter = nothing", "['Seccomp']"),
        ("syscalls.set_seccomp_filter = prctl.set_no_new_privs = nothing", "['NoNewPrivs', 'Seccomp']"),
        ("capng.capng_apply = lambda _: -1", "capng_apply failed"),
    ],
)
def test_s17_what_is_not_as_wanted_is_said_and_ends_the_start(without: str, said: str) -> None:
    assert _child(DROP % without)[0].endswith(said)


GOOD = "0006 00 00 7fff0000  # allowed\n"


@pytest.mark.parametrize(
    "line",
    [
        "\n",
        "0006 00 00 7fff000  # a digit is missing\n",
        "0006 00 7fff0000  # a jump is missing\n",
        "0006 00 00 00 7fff0000  # one jump too many\n",
        "00006 00 00 7fff0000  # one digit too many\n",
        "0006 00 00 0x7fff0000  # another notation\n",
        "0006 00 00 -7fff000  # a sign\n",
        "0006 00 00 7fff0000  a comment without its mark\n",
        "0006 00 00 7fff0000 0006 00 00 7fff0000  # two of them\n",
        "0006 00 00 7fff\n",
        "comment\n",
    ],
)
def test_s18_a_line_that_is_no_instruction_is_an_error(line: str) -> None:
    assert confine.assemble(["# a comment\n", GOOD]) == bytes.fromhex("060000000000ff7f")
    with pytest.raises((ValueError, struct.error)):
        confine.assemble([GOOD, line, GOOD])


def test_s18_a_filter_has_as_many_instructions_as_the_kernel_takes() -> None:
    assert len(confine.assemble([GOOD] * 4096)) == 8 * 4096
    for lines in ([], ["# a comment\n"], [GOOD] * 4097):
        with pytest.raises(ValueError, match="instructions"):
            confine.assemble(lines)


@pytest.mark.parametrize(("name", "spoil"), [("short", "head -c -30"), ("empty", ":"), ("not text", "tr 0 '\\377'")])
def test_s18_without_a_good_listing_no_helper_starts(policy: Path, place: Path, name: str, spoil: str) -> None:
    code = helper_copy(place, name)
    assert startup_outcome(*helper_command(code, policy)) == (0, "")
    subprocess.run(f"{spoil} <{ROOT}/helper/seccomp.bpf >'{code}/helper/seccomp.bpf'", shell=True, check=True)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        done = subprocess.run(helper_command(code, policy), stdin=theirs.fileno(), stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert b"helper/confine.py" in done.stderr


def test_s46_limits_that_cannot_be_raised_are_told() -> None:
    """Without CAP_SYS_RESOURCE, as in some containers: whoever needs them all can refuse."""

    def without_the_capability() -> None:
        assert sc._libc.prctl(24, 24, 0, 0, 0) == 0  # PR_CAPBSET_DROP: exec does not give it back
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, 8192))
        resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, 1 << 22))

    code = """
import json, resource
from helper import confine
lower = confine.set_rlimits({"memlock": [8, 1 << 20, -1], "core": [4, 0, 0], "stack": [3, 1 << 16, -1]})
print(json.dumps([lower, *map(resource.getrlimit, (8, 4, 3))]))"""
    assert _child(code, without_the_capability) == [["memlock", "stack"], [8192] * 2, [0, 0], [1 << 16, 1 << 22]]
