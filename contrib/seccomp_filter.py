"""Compiles helper/seccomp.toml, what a job may ask of the kernel, into the listing helper/seccomp.bpf: `make seccomp`.

It runs unprivileged, when the table has changed: the helper loads the listing and has no compiler.

A deny list on top of no privileges: the job has no capability, so most of these fail anyway; the filter keeps the
kernel code behind them out of reach. For numbers, and for sockets, it is a list of what is allowed. Numbers are
x86_64's, the only machine the helper knows. See seccomp(2), linux/filter.h, asm/unistd_64.h.
"""

import errno
import struct
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

TABLE = Path(__file__).resolve().parent.parent / "helper" / "seccomp.toml"
_HEADING = """\
# Made of seccomp.toml by `make seccomp`: do not edit. The seccomp filter of every job, which confine.py loads.
# An instruction has a code, how many lines to skip when its test holds and when not, and a value. Codes: 0020 loads,
# 0054 masks; 0015 tests for equality, 0035 for as much or more, 0045 for a bit in common; 0006 returns the verdict.
"""
_SOCKET_CALLS = {"socket": 41, "socketpair": 53}
_CLONE3 = 435
_TYPE_MASK = 0xFFFFFFFF & ~0x80800  # without SOCK_CLOEXEC and SOCK_NONBLOCK

_ARCH_X86_64 = 0xC000003E
_LOAD, _AND, _JEQ, _JGE, _JSET, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCH, _ARG0, _ARG_SIZE = 0, 4, 16, 8  # offsets in struct seccomp_data, low words
_JUMPS = {"is": _JEQ, "has a bit of": _JSET}


class Instruction(NamedTuple):
    """A struct sock_filter, with a comment for its reader."""

    code: int
    value: int
    comment: str
    if_true: int = 0
    if_false: int = 0

    def line(self) -> str:
        """A line of the listing; struct.error when a jump is too far."""
        digits = struct.pack(">HBBI", self.code, self.if_true, self.if_false, self.value).hex()
        return f"{digits[:4]} {digits[4:6]} {digits[6:8]} {digits[8:]}  # {self.comment}\n"


Program = list[Instruction]


def _allow(comment: str) -> Instruction:
    return Instruction(_RETURN, _ALLOW, f"{comment}: allowed")


def _fail(error: int, comment: str) -> Instruction:
    return Instruction(_RETURN, _ERRNO | error, f"{comment}: {errno.errorcode[error]}")


def _when(code: int, value: int, comment: str, then: Program) -> Program:
    """`then` where the test holds; else on behind it."""
    return [Instruction(code, value, comment, 0, len(then)), *then]


def _load_argument(index: int, comment: str) -> Instruction:
    return Instruction(_LOAD, _ARG0 + index * _ARG_SIZE, comment)


def _one_of(code: int, values: dict[str, int], otherwise: Instruction) -> Program:
    """On behind this where one of the tests holds; else `otherwise`, which returns. `values` by their comments."""
    tests = enumerate(values.items())
    return [*(Instruction(code, value, name, len(values) - index) for index, (name, value) in tests), otherwise]


def _sockets(call: str, families: dict[str, Any]) -> Program:
    """Allows the families with their types and protocols; denies all others."""
    rules = [_load_argument(0, f"{call}: its family")]
    for name, (family, types, protocols) in families.items():
        where = f"{call} {name}"
        rule = [_load_argument(1, f"{where}: its type"), Instruction(_AND, _TYPE_MASK, f"{where}: without its flags")]
        type_names = {f"{where}: type {value}?": value for value in types}
        rule += _one_of(_JEQ, type_names, _fail(errno.EPERM, f"{where}, another type"))
        rule += [_load_argument(2, f"{where}: its protocol")]
        protocol_names = {f"{where}: protocol {value}?": value for value in protocols}
        rule += _one_of(_JEQ, protocol_names, _fail(errno.EPERM, f"{where}, another protocol"))
        rules += _when(_JEQ, family, f"{where}?", [*rule, _allow(where)])
    return [*rules, _fail(errno.EPERM, f"{call}, another family")]


def _arguments(call: str, tests: list[Any], error: int) -> Program:
    """Denies a call whose arguments pass all `tests`; else allows it."""
    rules: Program = []
    for index, test, values in tests:
        names = {f"{call}: {test} {value:#x}?": value for value in values}
        rules += [_load_argument(index, f"{call}: its argument {index}")]
        rules += _one_of(_JUMPS[test], names, _allow(call))
    return [*rules, _fail(error, call)]


def program(table: dict[str, Any]) -> Program:
    """The filter of seccomp.toml's tables; the architecture is checked first, then whether the number is known."""
    known = table["known"]
    filter_ = [Instruction(_LOAD, _ARCH, "the architecture"), Instruction(_JEQ, _ARCH_X86_64, "x86_64?", 1)]
    filter_ += [Instruction(_RETURN, _KILL_PROCESS, "another architecture: the process is killed")]
    filter_ += [Instruction(_LOAD, _NUMBER, "the number of the call")]
    # Past the last: x32 calls too, whose numbers have a high bit.
    past = known[-1][1] + 1
    filter_ += _when(_JGE, past, f"{past} or more?", [_fail(errno.ENOSYS, f"{past} or more")])
    for index in range(1, len(known)):  # between two ranges
        start, end = known[index - 1][1] + 1, known[index][0]
        unknown = [Instruction(_JGE, end, f"{end} or more?", 1), _fail(errno.ENOSYS, f"{start} to {end - 1}")]
        filter_ += _when(_JGE, start, f"{start} or more?", unknown)
    # Each of these rules returns, so the number is not needed again.
    for call, (number, tests, error, _) in table["arguments"].items():
        filter_ += _when(_JEQ, number, f"{call}?", _arguments(call, tests, error))
    for call, number in _SOCKET_CALLS.items():
        filter_ += _when(_JEQ, number, f"{call}?", _sockets(call, table["sockets"]))
    filter_ += _when(_JEQ, _CLONE3, "clone3?", [_fail(errno.ENOSYS, "clone3")])
    denied = {f"{call}?": number for call, (number, _) in table["denied"].items()}
    return [*filter_, *_one_of(_JEQ, denied, _allow("any other call")), _fail(errno.EPERM, "a denied call")]


def listing(table: dict[str, Any]) -> list[str]:
    """The lines of seccomp.bpf."""
    return [*_HEADING.splitlines(keepends=True), *(instruction.line() for instruction in program(table))]


if __name__ == "__main__":
    print(*listing(tomllib.loads(TABLE.read_text())), sep="", end="")
