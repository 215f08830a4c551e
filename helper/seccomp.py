"""The BPF program made of seccomp.toml, the table of system calls a job may not make, with reasons.

A deny list on top of no privileges: the job has no capability, so most of these fail anyway; the
filter keeps the kernel code behind them out of reach. Numbers are x86_64's, the only machine the
helper knows. See seccomp(2), linux/filter.h, asm/unistd_64.h.
"""

import errno
import os
import struct
import tomllib

TABLE = os.path.join(os.path.dirname(os.path.realpath(__file__)), "seccomp.toml")
_IOCTL, _SOCKET, _CLONE, _UNSHARE, _CLONE3 = 16, 41, 56, 272, 435
_NEW_NAMESPACE = 0x7E020000  # CLONE_NEW*: mount, cgroup, uts, ipc, user, pid, net
_NEW_TIME = 0x80  # CLONE_NEWTIME, for unshare alone: in clone these bits are a signal
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # type into the terminal, paste into the console

_ARCH_X86_64, _X32_BIT = 0xC000003E, 0x40000000
_LOAD, _JEQ, _JGE, _JSET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24  # offsets in struct seccomp_data, low words


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _deny(number: int, error: int = errno.EPERM, test: int = _JEQ) -> bytes:
    return _op(test, number, 0, 1) + _op(_RETURN, _ERRNO | error)


def _deny_argument(number: int, offset: int, test: int, *values: int) -> bytes:
    """Denies call `number` when the argument word at `offset` passes `test`; else allows it."""
    checks = b"".join(_deny(value, test=test) for value in values)
    head = _op(_JEQ, number, 0, len(checks) // 8 + 2) + _op(_LOAD, offset)
    return head + checks + _op(_RETURN, _ALLOW)


def program() -> bytes:
    """The filter; the architecture is checked first."""
    with open(TABLE, "rb") as file:
        numbers = [number for number, _ in tomllib.load(file).values()]
    head = _op(_LOAD, _ARCH) + _op(_JEQ, _ARCH_X86_64, 1, 0) + _op(_RETURN, _KILL_PROCESS)
    head += _op(_LOAD, _NUMBER) + _deny(_X32_BIT, errno.ENOSYS, _JGE) + b"".join(map(_deny, numbers))
    # clone3's flags lie in memory that a filter cannot see: ENOSYS makes libc fall back to clone.
    head += _deny(_CLONE3, errno.ENOSYS) + _deny_argument(_CLONE, _ARG0, _JSET, _NEW_NAMESPACE)
    head += _deny_argument(_UNSHARE, _ARG0, _JSET, _NEW_NAMESPACE | _NEW_TIME)
    # Families past netlink, 16: vsock (40) reaches the hypervisor from any network namespace.
    head += _deny_argument(_SOCKET, _ARG0, _JGE, 17)
    return head + _deny_argument(_IOCTL, _ARG1, _JEQ, _TIOCSTI, _TIOCLINUX) + _op(_RETURN, _ALLOW)
