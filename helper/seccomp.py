"""The BPF program made of seccomp.toml: what a job may ask of the kernel, with reasons.

A deny list on top of no privileges: the job has no capability, so most of these fail anyway; the
filter keeps the kernel code behind them out of reach. For numbers, and for sockets, it is a list of
what is allowed. Numbers are x86_64's, the only machine the helper knows. See seccomp(2),
linux/filter.h, asm/unistd_64.h.
"""

import errno
import struct
from typing import Any

from helper.policy import data

TABLE = data("seccomp.toml")
_SOCKET, _SOCKETPAIR, _CLONE3 = 41, 53, 435
_TYPE_MASK = 0xFFFFFFFF & ~0x80800  # without SOCK_CLOEXEC and SOCK_NONBLOCK

_ARCH_X86_64 = 0xC000003E
_LOAD, _AND, _JEQ, _JGE, _JSET, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCH, _ARG0, _ARG_SIZE = 0, 4, 16, 8  # offsets in struct seccomp_data, low words
_JUMPS = {"is": _JEQ, "has a bit of": _JSET}


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _fail(error: int) -> bytes:
    return _op(_RETURN, _ERRNO | error)


def _when(code: int, value: int, then: bytes) -> bytes:
    """`then` where the test holds; else on behind it."""
    return _op(code, value, 0, len(then) // 8) + then


def _load_argument(index: int) -> bytes:
    return _op(_LOAD, _ARG0 + index * _ARG_SIZE)


def _one_of(code: int, values: list[int], otherwise: bytes) -> bytes:
    """On behind this where one of the tests holds; else `otherwise`, one operation that returns."""
    tests = [_op(code, value, len(values) - index) for index, value in enumerate(values)]
    return b"".join(tests) + otherwise


def _sockets(families: dict[str, Any]) -> bytes:
    """Allows the families with their types and protocols; denies all others."""
    rules = _load_argument(0)
    for family, types, protocols in families.values():
        rule = _load_argument(1) + _op(_AND, _TYPE_MASK) + _one_of(_JEQ, types, _fail(errno.EPERM))
        rule += _load_argument(2) + _one_of(_JEQ, protocols, _fail(errno.EPERM))
        rules += _when(_JEQ, family, rule + _op(_RETURN, _ALLOW))
    return rules + _fail(errno.EPERM)


def _arguments(tests: list[Any], error: int) -> bytes:
    """Denies a call whose arguments pass all `tests`; else allows it."""
    allow = _op(_RETURN, _ALLOW)
    rules = [_load_argument(index) + _one_of(_JUMPS[test], values, allow) for index, test, values in tests]
    return b"".join(rules) + _fail(error)


def program() -> bytes:
    """The filter; the architecture is checked first, then whether the number is known."""
    known = TABLE["known"]
    unknown = _fail(errno.ENOSYS)
    filter_ = _op(_LOAD, _ARCH) + _op(_JEQ, _ARCH_X86_64, 1) + _op(_RETURN, _KILL_PROCESS) + _op(_LOAD, _NUMBER)
    # Past the last: x32 calls too, whose numbers have a high bit.
    filter_ += _when(_JGE, known[-1][1] + 1, unknown)
    for index in range(1, len(known)):  # between two ranges
        filter_ += _when(_JGE, known[index - 1][1] + 1, _op(_JGE, known[index][0], 1) + unknown)
    # Each of these rules returns, so the number is not needed again.
    for number, tests, error, _ in TABLE["arguments"].values():
        filter_ += _when(_JEQ, number, _arguments(tests, error))
    for number in (_SOCKET, _SOCKETPAIR):
        filter_ += _when(_JEQ, number, _sockets(TABLE["sockets"]))
    filter_ += _when(_JEQ, _CLONE3, unknown)
    denied = [number for number, _ in TABLE["denied"].values()]
    return filter_ + _one_of(_JEQ, denied, _op(_RETURN, _ALLOW)) + _fail(errno.EPERM)
