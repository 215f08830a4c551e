"""What a process inherits from whoever started it, and exec keeps: set to values of ours in every job.

Without this, a job would have the priority, processors, limits and audit user of a terminal, a unit or a
cron job that happened to start the server. See fork(2), execve(2), sched(7), setrlimit(2).
"""

import os
import resource
from contextlib import suppress

from helper import syscalls as sc

_INFINITE = resource.RLIM_INFINITY
_RLIMIT_LOCKS = 10  # without effect since Linux 2.4.25; set all the same
_MIB = 1 << 20
_MAX_CPUS = 8192  # the most that x86_64 has; the kernel takes of them what there is
# Those of every job, soft and hard. Of pids, file_bytes and open_files a job has its own: set_rlimits.
_RLIMITS = {
    resource.RLIMIT_CORE: (0, 0),
    resource.RLIMIT_CPU: (_INFINITE, _INFINITE),
    resource.RLIMIT_DATA: (_INFINITE, _INFINITE),
    resource.RLIMIT_STACK: (8 * _MIB, _INFINITE),
    resource.RLIMIT_RSS: (_INFINITE, _INFINITE),
    resource.RLIMIT_AS: (_INFINITE, _INFINITE),
    resource.RLIMIT_MEMLOCK: (8 * _MIB, 8 * _MIB),
    _RLIMIT_LOCKS: (_INFINITE, _INFINITE),
    # Bounds of the pools that the kernel keeps for a user; no other live job has this one's uid.
    resource.RLIMIT_SIGPENDING: (4096, 4096),  # POSIX timers count here too
    resource.RLIMIT_MSGQUEUE: (819200, 819200),
    resource.RLIMIT_NICE: (0, 0),
    resource.RLIMIT_RTPRIO: (0, 0),
    resource.RLIMIT_RTTIME: (_INFINITE, _INFINITE),
}


def set_rlimits(limits: dict[str, int]) -> None:
    """Every limit of setrlimit(2)."""
    # One more than pids.max has, so that where there is a cgroup controller it refuses first, and counts.
    processes = limits["pids"] + 2
    for kind, pair in (_RLIMITS | {resource.RLIMIT_NPROC: (processes, processes)}).items():
        try:
            resource.setrlimit(kind, pair)
        except ValueError:  # root without CAP_SYS_RESOURCE, as in some containers, cannot raise the starter's
            hard = resource.getrlimit(kind)[1]
            resource.setrlimit(kind, (hard if pair[0] == _INFINITE else min(pair[0], hard), hard))
    for kind, value in ((resource.RLIMIT_FSIZE, limits["file_bytes"]), (resource.RLIMIT_NOFILE, limits["open_files"])):
        resource.setrlimit(kind, (value, value))


def set_scheduling() -> None:
    """An ordinary process on all processors, whose place the cgroup decides."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # resets SCHED_RESET_ON_FORK too
    os.setpriority(os.PRIO_PROCESS, 0, 0)
    os.sched_setaffinity(0, range(_MAX_CPUS))
    sc.default_scheduling()


def set_proc_attributes(uid: int) -> None:
    """What is set through /proc, which must be the job's own by now: takes root, and without it is for good."""
    with suppress(PermissionError):  # without CAP_SYS_RESOURCE it cannot be lowered
        _write("/proc/self/oom_score_adj", "0")
    # Unset, any process may set it once, and so write another user's name into the audit log.
    with suppress(FileNotFoundError, PermissionError):  # a kernel without audit; one that keeps the starter's for good
        _write("/proc/self/loginuid", str(uid))


def _write(path: str, value: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CLOEXEC), "w") as file:
        file.write(value)
