"""What a process inherits: in a job it is of our choice, whatever whoever starts the server has."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import prctl
import pytest
from support.helper_driver import Helper

from helper import syscalls as sc
from helper.policy import parse

pytestmark = pytest.mark.usefixtures("as_root")
_ADDR_NO_RANDOMIZE, _IOPRIO_IDLE, _MPOL_PREFERRED_LOCAL = 0x0040000, 3 << 13, 4
_INFINITE, _RLIMIT_LOCKS = resource.RLIM_INFINITY, 10
_LOWERED = {  # of who starts it: such that the helper itself still runs
    "CPU": 3600,
    "DATA": 1 << 32,
    "STACK": 1 << 20,
    "RSS": 1 << 30,
    "AS": 1 << 34,
    "MEMLOCK": 4096,
    "SIGPENDING": 11,
    "MSGQUEUE": 12,
    "RTTIME": 1 << 40,
    "NPROC": 50_000,
    "NOFILE": 700,
    "FSIZE": 1 << 30,
    "CORE": 4096,
}
_RAISED = {"NICE": 30, "RTPRIO": 20}


# Where root has no CAP_SYS_RESOURCE, as in some containers, nobody can raise a hard limit, and the starter has the soft
# ones lowered alone. In tests/vm it has.
_CAP_SYS_RESOURCE = 24
CAPABLE = bool(prctl.cap_effective.sys_resource)


def _as_odd_as_can_be() -> None:
    for kind, value in {getattr(resource, f"RLIMIT_{name}"): value for name, value in _LOWERED.items()}.items():
        resource.setrlimit(kind, (value, value if CAPABLE else resource.getrlimit(kind)[1]))
    for name, value in _RAISED.items() if CAPABLE else ():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    resource.setrlimit(_RLIMIT_LOCKS, (13, 13 if CAPABLE else _INFINITE))
    os.setpriority(os.PRIO_PROCESS, 0, 7)
    os.sched_setscheduler(0, os.SCHED_BATCH | os.SCHED_RESET_ON_FORK, os.sched_param(0))
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    Path("/proc/self/oom_score_adj").write_text("-321" if CAPABLE else "321")
    libc = sc._libc
    assert libc.syscall(251, 1, 0, _IOPRIO_IDLE) == 0
    assert libc.syscall(238, _MPOL_PREFERRED_LOCAL, None, 0) == 0
    assert libc.prctl(29, 777_000, 0, 0, 0) == 0
    assert libc.personality(_ADDR_NO_RANDOMIZE) >= 0


@pytest.fixture(scope="module")
def helper(policy: Path, as_root: None) -> Iterator[Helper]:
    with Helper(policy, preexec_fn=_as_odd_as_can_be) as helper:
        yield helper


def test_s46_scheduling_is_ours(helper: Helper) -> None:
    started_with = f"/proc/{helper.process.pid}/stat"
    assert Path(started_with).read_text().rpartition(")")[2].split()[16] == "7", "the test is to give the helper a nice"
    seen = helper.probe("""
mode = ctypes.c_int(-1)
call(239, ctypes.byref(mode), None, 0, None, 0)  # get_mempolicy
tell({
    "class": os.sched_getscheduler(0),
    "nice": os.getpriority(os.PRIO_PROCESS, 0),
    "processors": sorted(os.sched_getaffinity(0)),
    "io": libc.syscall(252, 1, 0),
    "memory": mode.value,
    "slack": libc.prctl(30, 0, 0, 0, 0),
    "personality": open("/proc/self/personality").read().strip(),
    "oom": open("/proc/self/oom_score_adj").read().strip(),
    "lower": attempt(lambda: os.write(os.open("/proc/self/oom_score_adj", os.O_WRONLY), b"-1")),
})""")
    assert seen == {
        "class": os.SCHED_OTHER,
        "nice": 0,
        "processors": sorted(os.sched_getaffinity(0)),
        "io": seen["io"],
        "memory": 0,
        "slack": 50_000,
        "personality": "00000000",
        "oom": "0",
        "lower": "EACCES",
    }
    assert seen["io"] >> 13 in (0, 2)  # none, or what newer kernels say instead: best effort


def test_s46_every_resource_limit_is_ours(helper: Helper) -> None:
    default = parse("", "").default
    wanted = {
        "Max cpu time": (_INFINITE, _INFINITE),
        "Max file size": (default["file_bytes"],) * 2,
        "Max data size": (_INFINITE, _INFINITE),
        "Max stack size": (8 << 20, _INFINITE),
        "Max core file size": (0, 0),
        "Max resident set": (_INFINITE, _INFINITE),
        "Max processes": (default["pids"] + 2,) * 2,
        "Max open files": (default["open_files"],) * 2,
        "Max locked memory": (8 << 20, 8 << 20),
        "Max address space": (_INFINITE, _INFINITE),
        "Max file locks": (_INFINITE, _INFINITE),
        "Max pending signals": (4096, 4096),
        "Max msgqueue size": (819200, 819200),
        "Max nice priority": (0, 0),
        "Max realtime priority": (0, 0),
        "Max realtime timeout": (_INFINITE, _INFINITE),
    }
    found = {}
    for line in helper.run("cat", "/proc/self/limits").stdout.decode().splitlines()[1:]:
        numbers = [_INFINITE if word == "unlimited" else int(word) for word in line[26:].split()[:2]]
        found[line[:26].strip()] = tuple(numbers)
    assert found == wanted


def test_s46_a_limit_that_root_may_not_raise_stays_and_jobs_start(policy: Path) -> None:
    """Without CAP_SYS_RESOURCE, as in some containers."""

    def without_the_capability() -> None:
        assert sc._libc.prctl(24, _CAP_SYS_RESOURCE, 0, 0, 0) == 0  # PR_CAPBSET_DROP: exec does not give it back
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, 8192))
        resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, 1 << 22))

    with Helper(policy, preexec_fn=without_the_capability) as helper:
        lines = helper.run("grep", "-E", "stack|locked|pending", "/proc/self/limits").stdout.decode().splitlines()
    assert [line.split()[3:5] for line in lines] == [[str(1 << 22)] * 2, ["8192"] * 2, ["4096"] * 2]


def test_s46_the_audit_log_names_the_jobs_own_uid(helper: Helper) -> None:
    """Unset, as it is in a service, a process may set it to any user's once."""
    seen = helper.probe("""
path = "/proc/self/loginuid"
tell([int(open(path).read()) - os.getuid(), attempt(lambda: os.write(os.open(path, os.O_WRONLY), b"0"))])""")
    assert seen == [0, "EPERM"]
