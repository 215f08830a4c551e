"""System calls that Python 3.11 lacks: one thin wrapper each, errno turned into OSError with the path.

The only ctypes of the helper. Numbers are x86_64's; the helper refuses other machines.
"""

import ctypes
import errno
import os
import signal
import struct

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x00020000, 0x02000000, 0x04000000
CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = 0x08000000, 0x20000000, 0x40000000
_CLONE_PIDFD, _CLONE_INTO_CGROUP = 0x00001000, 0x200000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 32, 4096, 16384, 1 << 18, 2
_PERSONALITY_OF_X86_64, _PR_SET_TIMERSLACK, _DEFAULT_SLACK_NS, _IOPRIO_WHO_PROCESS = 0, 29, 50_000, 1

_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_OPEN_TREE_CLONE, _RESOLVE_NO_SYMLINKS, _MOVE_MOUNT_EMPTY_PATHS = 1, 4, 0x4 | 0x40  # the last: both ends are fds
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, _KEYCTL_JOIN_SESSION_KEYRING = 22, 2, 1

_SYS_SCHED_SETAFFINITY, _SYS_SET_MEMPOLICY, _SYS_IOPRIO_SET = 203, 238, 251
_SYS_RT_SIGACTION, _SYS_PIVOT_ROOT, _SYS_KEYCTL, _SYS_OPEN_TREE, _SYS_MOVE_MOUNT = 13, 155, 250, 428, 429
_SYS_PIDFD_SEND_SIGNAL, _SYS_CLONE3, _SYS_OPENAT2, _SYS_MOUNT_SETATTR = 424, 435, 437, 442
SI_QUEUE = -1  # si_code of a signal with a value

_ALL_CPUS = b"\xff" * 1024  # of the 8,192 that x86_64 can have, the kernel takes what there is


class _Program(ctypes.Structure):
    """struct sock_fprog. A type of ours, because a buffer's would be made anew in each child."""

    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


# PyDLL keeps the GIL: clone3 must return in the child with the interpreter's locks as they were.
_libc = ctypes.PyDLL(None, use_errno=True)
# Looked up here, once: what the helper itself does not call, each child would look up anew.
_mount, _umount2, _unshare, _prctl = _libc.mount, _libc.umount2, _libc.unshare, _libc.prctl
_personality, _after_fork_child = _libc.personality, ctypes.pythonapi.PyOS_AfterFork_Child
_HOW, _ATTRIBUTES = struct.Struct("<Q8xQ"), struct.Struct("<Q24x")  # struct open_how, struct mount_attr


def _check(result: int, path: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def clone3(namespaces: int, cgroup_fd: int) -> tuple[int, int]:
    """(pid, pidfd) of a child born in `cgroup_fd`'s cgroup, in new `namespaces`; (0, -1) in the child.

    As os.fork does, the interpreter is told before and after. See clone(2).
    """
    pidfd = ctypes.c_int()
    flags = namespaces | _CLONE_PIDFD | _CLONE_INTO_CGROUP
    arguments = struct.pack("<QQ16xQ40xQ", flags, ctypes.addressof(pidfd), signal.SIGCHLD, cgroup_fd)
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = _libc.syscall(_SYS_CLONE3, arguments, len(arguments))
    if pid == 0:
        _after_fork_child()
        return 0, -1
    ctypes.pythonapi.PyOS_AfterFork_Parent()  # unlike _libc, it leaves ctypes' errno as it is
    return _check(pid, "clone3"), pidfd.value


def unshare(flags: int) -> None:
    _check(_unshare(flags), "unshare")


def setns(pidfd: int, namespaces: int) -> None:
    """Joins these namespaces of a process. See setns(2)."""
    _check(_libc.setns(pidfd, namespaces), "setns")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    _check(_mount(*texts[:3], ctypes.c_ulong(flags), texts[3]), target)


def umount2(target: str, flags: int) -> None:
    _check(_umount2(os.fsencode(target), flags), target)


def pivot_root(new_root: str, put_old: str) -> None:
    _check(_libc.syscall(_SYS_PIVOT_ROOT, os.fsencode(new_root), os.fsencode(put_old)), new_root)


def open_nofollow(path: str, last_may_be_link: bool = False) -> int:
    """An O_PATH fd; a symbolic link in `path` is an error (ELOOP), or as its last part the fd's. See openat2(2)."""
    flags = os.O_PATH | os.O_CLOEXEC | (os.O_NOFOLLOW if last_may_be_link else 0)
    how = _HOW.pack(flags, _RESOLVE_NO_SYMLINKS)
    return _check(_libc.syscall(_SYS_OPENAT2, _AT_FDCWD, os.fsencode(path), how, len(how)), path)


def detached_copy(path_fd: int, flags: int) -> int:
    """A detached copy of the mount at an O_PATH fd, from there down, without those below, as an fd.

    It is restricted by `flags` (MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC), whose values MOUNT_ATTR_* has too. See
    open_tree(2), mount_setattr(2).
    """
    clone = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH
    tree_fd = _check(_libc.syscall(_SYS_OPEN_TREE, path_fd, b"", clone), "open_tree")
    attributes = _ATTRIBUTES.pack(flags)
    result = _libc.syscall(_SYS_MOUNT_SETATTR, tree_fd, b"", _AT_EMPTY_PATH, attributes, len(attributes))
    _check(result, "mount_setattr")
    return tree_fd


def move_mount(tree_fd: int, target_fd: int) -> None:
    """Attaches a detached tree on top of `target_fd`. See move_mount(2)."""
    _check(_libc.syscall(_SYS_MOVE_MOUNT, tree_fd, b"", target_fd, b"", _MOVE_MOUNT_EMPTY_PATHS), "move_mount")


def new_session_keyring() -> None:
    """Leaves the session keyring that was inherited for an empty one. See keyctl(2)."""
    _check(_libc.syscall(_SYS_KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING, None), "keyctl")


def pidfd_queue_signal(pidfd: int, number: int, value: int) -> None:
    """Sends a signal with a value, as sigqueue(3) does. See pidfd_send_signal(2)."""
    info = struct.pack("=i4xi12xQ96x", number, SI_QUEUE, value)  # of siginfo_t: si_signo, si_code, si_value
    _check(_libc.syscall(_SYS_PIDFD_SEND_SIGNAL, pidfd, number, info, 0), "pidfd_send_signal")


def default_scheduling() -> None:
    """All processors; I/O priority, timer slack, address randomisation, the NUMA policy of memory.

    See sched_setaffinity(2), ioprio_set(2), prctl(2), personality(2), set_mempolicy(2).
    """
    _check(_libc.syscall(_SYS_SCHED_SETAFFINITY, 0, len(_ALL_CPUS), _ALL_CPUS), "sched_setaffinity")
    _check(_libc.syscall(_SYS_IOPRIO_SET, _IOPRIO_WHO_PROCESS, 0, 0), "ioprio_set")
    _check(_prctl(_PR_SET_TIMERSLACK, _DEFAULT_SLACK_NS), "timer slack")
    _check(_personality(_PERSONALITY_OF_X86_64), "personality")
    if _libc.syscall(_SYS_SET_MEMPOLICY, 0, None) < 0 and ctypes.get_errno() != errno.ENOSYS:  # without NUMA
        _check(-1, "set_mempolicy")


def default_signals() -> None:
    """SIG_DFL for every signal, those that libc keeps to itself (32, 33) too: one may be inherited ignored."""
    for number in set(range(1, signal.NSIG)) - {signal.SIGKILL, signal.SIGSTOP}:
        _check(_libc.syscall(_SYS_RT_SIGACTION, number, bytes(32), None, 8), "rt_sigaction")


def set_seccomp_filter(program: bytes) -> None:
    """Installs a BPF program of 8-byte instructions; no_new_privs must be set. See seccomp(2)."""
    header = _Program(len(program) // 8, program)
    _check(_prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(header)), "seccomp")
