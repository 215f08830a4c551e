"""System calls that Python 3.11 lacks: one thin wrapper each, errno turned into OSError with the path.

The only ctypes of the helper. Numbers are x86_64's; the helper refuses other machines. Calls from
mount_setattr(2) up have the same number on every architecture since Linux 5.
"""

import ctypes
import os
import signal
import struct

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_PIDFD = 0x00001000
CLONE_INTO_CGROUP = 0x200000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
RESOLVE_NO_SYMLINKS = 4

_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_KEYCTL_JOIN_SESSION_KEYRING = 1

_SYS_PIVOT_ROOT = 155
_SYS_KEYCTL = 250
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_CLONE3 = 435
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442

# PyDLL keeps the GIL: clone3 must return in the child with the interpreter's locks as they were.
_libc = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_pointer = ctypes.byref


def _check(result: int, path: str | bytes | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def clone3(namespaces: int, cgroup_fd: int) -> tuple[int, int]:
    """(pid, pidfd) of a child born in `cgroup_fd`'s cgroup, in new `namespaces`; (0, -1) in the child.

    As os.fork does, the interpreter is told before and after. See clone(2).
    """
    pidfd = ctypes.c_int(-1)
    flags = namespaces | CLONE_PIDFD | CLONE_INTO_CGROUP
    address = ctypes.addressof(pidfd)
    arguments = struct.pack("<11Q", flags, address, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, cgroup_fd)
    _libc.PyOS_BeforeFork()
    pid = _libc.syscall(_SYS_CLONE3, arguments, len(arguments))
    if pid == 0:
        _libc.PyOS_AfterFork_Child()
        return 0, -1
    number = ctypes.get_errno()
    _libc.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(number, os.strerror(number), "clone3")
    return pid, pidfd.value


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    values = [None if value is None else os.fsencode(value) for value in (source, target, kind, data)]
    _check(_libc.mount(*values[:3], ctypes.c_ulong(flags), values[3]), target)


def umount2(target: str, flags: int) -> None:
    _check(_libc.umount2(os.fsencode(target), flags), target)


def pivot_root(new_root: str, put_old: str) -> None:
    _check(_libc.syscall(_SYS_PIVOT_ROOT, os.fsencode(new_root), os.fsencode(put_old)), new_root)


def open_nofollow(path: str) -> int:
    """An O_PATH fd; a symbolic link anywhere in `path` is an error (ELOOP). See openat2(2)."""
    how = struct.pack("<QQQ", os.O_PATH | os.O_CLOEXEC, 0, RESOLVE_NO_SYMLINKS)
    return _check(_libc.syscall(_SYS_OPENAT2, AT_FDCWD, os.fsencode(path), how, len(how)), path)


def open_tree(dir_fd: int, path: str) -> int:
    """A detached copy of the mounts at `path` and below, as an fd. See open_tree(2)."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE | AT_EMPTY_PATH
    return _check(_libc.syscall(_SYS_OPEN_TREE, dir_fd, os.fsencode(path), flags), path)


def mount_setattr(tree_fd: int, flags: int) -> None:
    """Sets `flags` (MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC) on every mount of a tree.

    MOUNT_ATTR_* has the same values as these four MS_*. See mount_setattr(2).
    """
    attributes = struct.pack("<4Q", flags, 0, 0, 0)
    at = AT_EMPTY_PATH | AT_RECURSIVE
    _check(_libc.syscall(_SYS_MOUNT_SETATTR, tree_fd, b"", at, attributes, len(attributes)), "mount_setattr")


def move_mount(tree_fd: int, target_fd: int) -> None:
    """Attaches a detached tree on top of `target_fd`. See move_mount(2)."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    _check(_libc.syscall(_SYS_MOVE_MOUNT, tree_fd, b"", target_fd, b"", flags), "move_mount")


def new_session_keyring() -> None:
    """Leaves the session keyring that was inherited for an empty one. See keyctl(2)."""
    _check(_libc.syscall(_SYS_KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING, None), "keyctl")


def clear_ambient() -> None:
    _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "prctl ambient")


def set_seccomp_filter(program: bytes) -> None:
    """Installs a BPF program of 8-byte instructions; no_new_privs must be set. See seccomp(2)."""
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0), "seccomp")
