"""What a new job's init does to itself before anything of the user's runs: network, what it inherited, privileges.

Runs in the child, as root in fresh namespaces, once view.py has changed its root. The order matters; each step says
why. Any failure raises OSError and ends the child before exec.

A process inherits from whoever started it, and exec keeps, what is set to values of ours in every job: without this, it
would have the priority, processors, limits and audit user of a terminal, a unit or a cron job that happened to start
the server. See fork(2), execve(2), sched(7), setrlimit(2).
"""

import errno
import fcntl
import os
import resource
import signal
import socket
import struct
from contextlib import suppress

import capng
import prctl

from helper import cgroup, syscalls
from helper.policy import data

_MAX_INSTRUCTIONS = 4096  # the kernel's bound, BPF_MAXINSNS


def assemble(lines: list[str]) -> bytes:
    """The BPF program of a listing; ValueError or struct.error when a line is neither an instruction nor a comment."""
    code = [bytes.fromhex(line.partition("#")[0]) for line in lines if not line.startswith("#")]
    if not 0 < len(code) <= _MAX_INSTRUCTIONS:
        raise ValueError(f"a filter of {len(code)} instructions")
    return b"".join(struct.pack("<HBBI", *struct.unpack(">HBBI", one)) for one in code)


# As code is, it is read before `trusted_code` has checked it. Where its jumps lead the kernel checks, at each start.
with open(os.path.join(os.path.dirname(__file__), "seccomp.bpf"), encoding="ascii") as _file:
    FILTER = assemble(_file.readlines())
with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as _file:
    LAST_CAPABILITY = int(_file.read())  # may be more than prctl and capng know by name
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
RLIMITS = data("rlimits.toml")


def set_up_network() -> None:
    """Hostname and the loopback interface, which a new network namespace has, down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP))


def set_rlimits(table: dict[str, list[int]]) -> list[str]:
    """Sets every limit of `table`, as rlimits.toml has them; those that could not be raised to it."""
    lower = []
    for name, (kind, soft, hard) in table.items():
        try:
            resource.setrlimit(kind, (soft, hard))
        except ValueError:  # root without CAP_SYS_RESOURCE, as in some containers, cannot raise the starter's
            most = resource.getrlimit(kind)[1]
            resource.setrlimit(kind, (most if soft == resource.RLIM_INFINITY else min(soft, most), most))
            lower.append(name)
    return lower


def set_job_rlimits(limits: dict[str, int]) -> None:
    """Every limit of setrlimit(2)."""
    # One more than pids.max has, so that where there is a cgroup controller it refuses first, and counts.
    processes = limits["pids"] + 2
    set_rlimits(RLIMITS["job"] | {"nproc": [resource.RLIMIT_NPROC, processes, processes]})
    for kind, value in ((resource.RLIMIT_FSIZE, limits["file_bytes"]), (resource.RLIMIT_NOFILE, limits["open_files"])):
        resource.setrlimit(kind, (value, value))


def set_scheduling() -> None:
    """An ordinary process on all processors, whose place the cgroup decides."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # resets SCHED_RESET_ON_FORK too
    os.setpriority(os.PRIO_PROCESS, 0, 0)
    syscalls.default_scheduling()


def set_proc_attributes(uid: int) -> int:
    """What is set through /proc: takes root, and without it is for good. An fd of our status in there."""
    with suppress(PermissionError):  # without CAP_SYS_RESOURCE it cannot be lowered
        cgroup.write(None, "/proc/self/oom_score_adj", "0")
    # Unset, any process may set it once, and so write another user's name into the audit log.
    with suppress(FileNotFoundError, PermissionError):  # a kernel without audit; one that keeps the starter's for good
        cgroup.write(None, "/proc/self/loginuid", str(uid))
    return os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)


def drop_bounding_set() -> None:
    """The helper's own, which its children have from it: it executes nothing as root, and no job regains anything."""
    for capability in range(LAST_CAPABILITY + 1):
        prctl.capbset_drop(capability)


def drop_privileges(uid: int, own_status: int) -> None:
    """Gives up every privilege for good, then reads back what the kernel says, in set_proc_attributes' fd."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # After the uid: the new keyring is the job's own. Before the filter, which denies keyctl.
    syscalls.new_session_keyring()
    # The kernel empties the ambient set with the inheritable one: capabilities(7).
    capng.capng_clear(capng.CAPNG_SELECT_CAPS)
    if capng.capng_apply(capng.CAPNG_SELECT_CAPS) != 0:
        raise PermissionError(errno.EPERM, "capng_apply failed")
    prctl.set_no_new_privs(1)
    prctl.set_dumpable(0)  # the init's memory is a copy of the helper's
    # After the change of uid, which clears it: prctl(2). Had the helper died before, the status pipe would tell.
    prctl.set_pdeathsig(signal.SIGKILL)
    syscalls.set_seccomp_filter(FILTER)
    _read_back(uid, own_status)


def _read_back(uid: int, own_status: int) -> None:
    with open(own_status, "rb", buffering=0) as file:
        rows = [line.partition(":") for line in file.readall().decode("ascii", "replace").splitlines()]
    status = {name: value.split() for name, _, value in rows}
    wanted = {"Uid": [str(uid)] * 4, "Gid": [str(uid)] * 4, "Groups": [], "NoNewPrivs": ["1"], "Seccomp": ["2"]}
    wanted |= {f"Cap{name}": ["0" * 16] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
    wrong = [name for name, value in wanted.items() if status.get(name) != value]
    with suppress(PermissionError):
        os.setuid(0)
        wrong.append("uid 0 came back")
    if wrong:
        raise PermissionError(errno.EPERM, f"not as wanted after the drop: {wrong}")
