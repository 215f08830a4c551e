"""Runs inside a job and prints, as JSON, what the job can see and do. `telehandler check` and the tests judge it.

A script for `python3 -I -S -c`: the standard library alone, nothing of ours.
"""

import ctypes
import fcntl
import json
import os
import resource
import socket
import struct
from collections.abc import Callable

_SIOCGIFFLAGS, _IFF_UP = 0x8913, 1
_CALLS: dict[str, tuple[int, ...]] = {  # x86_64's numbers, and arguments that do no harm
    "ptrace with a stop at the exit": (101, 0x4206, 0, 0, 0x40),
    "mount": (165,),
    "umount2": (166,),
    "pivot_root": (155,),
    "chroot": (161,),
    "setns": (308,),
    "open_tree": (428,),
    "bpf": (321,),
    "keyctl": (250,),
    "userfaultfd": (323,),
    "io_uring_setup": (425, 1),
    "io_setup": (206, 1),
    "memfd_secret": (447,),
    "perf_event_open": (298,),
    "kexec_load": (246,),
    "init_module": (175,),
    "unshare user": (272, 0x10000000),
    "unshare mount": (272, 0x20000),
    "unshare time": (272, 0x80),
    "clone user": (56, 0x10000011),
    "TIOCSTI": (16, 0, 0x5412),
    "TIOCLINUX": (16, 0, 0x541C),
}
_SOCKETS: dict[str, tuple[int, ...]] = {
    "packet": (41, 17, 3),
    "alg": (41, 38, 5),
    "vsock": (41, 40, 1),
    "appletalk": (41, 5, 2),
    "sctp": (41, 2, 1, 132),
    "dccp": (41, 2, 6, 33),
    "uevents": (41, 16, 3, 15),
    "generic netlink": (41, 16, 3, 16),
    "pair of tipc": (53, 30, 1, 0),
}
_RLIMITS = "CORE CPU DATA STACK RSS AS MEMLOCK SIGPENDING MSGQUEUE NICE RTPRIO RTTIME NOFILE".split()
_NOT_WRITABLE = "/x /etc/x /proc/sys/kernel/hostname /proc/sysrq-trigger /dev/x /sys/x".split()
_libc = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: int) -> int:
    """The errno of a system call, 0 when it was allowed."""
    return ctypes.get_errno() if _libc.syscall(number, *arguments) < 0 else 0


def _refused(action: Callable[[], object]) -> int:
    try:
        action()
    except OSError as error:
        return error.errno or -1
    return 0


def _write(path: str) -> None:
    with open(path, "w") as file:
        file.write("1")


def _terminal() -> int | None:
    try:
        return os.open("/dev/tty", os.O_RDWR)
    except OSError:
        return None


def _is_up(interface: str) -> int:
    with socket.socket() as control:
        request = struct.pack("16sH22x", interface.encode(), 0)
        return fcntl.ioctl(control, _SIOCGIFFLAGS, request)[16] & _IFF_UP


def _device(name: str) -> list[int]:
    number = os.stat(f"/dev/{name}").st_rdev
    return [os.major(number), os.minor(number)]


def _listing(path: str) -> list[str] | None:
    try:
        return os.listdir(path)
    except OSError:
        return None


def _lines(path: str) -> list[str]:
    with open(path) as file:
        return file.read().splitlines()


def probe() -> dict[str, object]:
    """Everything, by name."""
    fds = sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:-1]  # without that of the listing
    return {
        "status": dict(line.split(":\t", 1) for line in _lines("/proc/self/status") if ":\t" in line),
        "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
        "fds": fds,
        "targets": [os.readlink(f"/proc/self/fd/{fd}") for fd in fds[:3]],
        "namespaces": {name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")},
        "mounts": [line.split() for line in _lines("/proc/self/mountinfo")],
        "interfaces": {name: _is_up(name) for _, name in socket.if_nameindex()},
        "hostname": socket.gethostname(),
        "session": [os.getsid(0), os.getpid(), _terminal()],
        "environment": dict(os.environ),
        "rlimits": {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in _RLIMITS},
        "scheduling": [
            os.sched_getscheduler(0),
            os.getpriority(os.PRIO_PROCESS, 0),
            _lines("/proc/self/oom_score_adj"),
        ],
        "umask": os.umask(0o022),
        "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
        "cgroup": _lines("/proc/self/cgroup"),
        "devices": {name: _device(name) for name in ("null", "zero", "full", "random", "urandom", "tty")},
        "sys": [_listing(path) for path in ("/sys/devices", "/sys/devices/system", "/sys/fs")],
        "empty": {path: _listing(path) for path in ("/root", "/run", "/tmp", "/dev/shm", "/proc/bus")},
        "writes": {
            path: _refused(lambda path=path: _write(path))  # type: ignore[misc]
            for path in (*_NOT_WRITABLE, "/sys/fs/cgroup/cgroup.procs")
        },
        "init": [_refused(lambda: os.listdir("/proc/1/fd")), _refused(lambda: os.readlink("/proc/1/exe"))],
        "setuid": [_refused(lambda: os.setuid(0)), _refused(lambda: os.setgid(0)), _refused(lambda: os.setgroups([0]))],
        "denied": {name: _call(*call) for name, call in _CALLS.items()},
        "sockets": {name: _call(*call) for name, call in _SOCKETS.items()},
        "unknown": [_call(number) for number in (340, 400, 423, 470, 511)],
        "clone3": _call(435),
        "x32": _call(0x40000000 + 39),
        "unshare files": _call(272, 0x400),
    }


if __name__ == "__main__":
    print(json.dumps(probe()))
