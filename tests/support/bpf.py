"""Runs a seccomp filter as the kernel does: its verdict on a system call, which is not made."""

import struct

ALLOW, ERRNO, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
X86_64, X32_BIT = 0xC000003E, 0x40000000
_ABSOLUTE_LOAD, _JEQ, _JGT, _JGE, _JSET, _RETURN, _JUMP, _AND = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06, 0x05, 0x54
_DATA = struct.Struct("<iIQ6Q")  # struct seccomp_data: number, architecture, instruction pointer, arguments


def verdict(program: bytes, number: int, *arguments: int, architecture: int = X86_64) -> int:
    """What the filter returns: ALLOW, KILL_PROCESS, or ERRNO with the errno in its lower half."""
    signed = number - (1 << 32) if number >= 1 << 31 else number
    data = _DATA.pack(signed, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, value = struct.unpack_from("<HBBI", program, at * 8)
        at += 1
        tests = {
            _JEQ: accumulator == value,
            _JGT: accumulator > value,
            _JGE: accumulator >= value,
            _JSET: bool(accumulator & value),
        }
        if code == _RETURN:
            return int(value)
        if code == _ABSOLUTE_LOAD:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == _JUMP:
            at += value
        elif code == _AND:
            accumulator &= value
        else:
            at += if_true if tests[code] else if_false
