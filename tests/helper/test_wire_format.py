"""The bytes of the wire, written out: both ends share the code, so nothing else would notice that they have changed."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from helper import wire
from helper.wire import Stage, Type, WireError

VERSION = f"{wire.VERSION:02x}"
KILL = bytes.fromhex(f"544c4844 {VERSION} 04 00 00 07000000 08000000 0201000000000000")
# HELLO's answer: two numbers, no controllers, the profiles "a" and "".
WELCOME = bytes.fromhex(
    f"544c4844 {VERSION} 80 00 00 ffffffff 1b000000 03000000 e8030000 00000000 02000000 01000000 6100 00000000 00"
)
FIELDS: dict[str, Any] = {"live_jobs": 3, "max_jobs": 1000, "missing_controllers": [], "profiles": [b"a", b""]}
# The types and stages of version 2, which stay what they are.
TYPES = "HELLO 1 START 2 SIGNAL 3 KILL 4 RELEASE 5 SHUTDOWN 6 CHECK 7 CANCEL 8 CLOSE_STDIN 9 "
TYPES += "WELCOME 128 STARTED 129 DONE 130 "
TYPES += "ERROR 131 EXITED 132 ADOPT 133 VERDICT 134"
STAGES = "REQUEST 1 POLICY 2 LIMIT 3 CAPACITY 4 NO_SUCH_JOB 5 CGROUP 16 CLONE 17 MOUNT 18 NETWORK 19 PRIVILEGE 20 "
STAGES += "CHDIR 21 EXEC 22"


def _numbers(text: str) -> dict[str, int]:
    return {name: int(number) for name, number in re.findall(r"(\w+) (\d+)", text)}


def test_messages_are_these_bytes() -> None:
    assert wire.pack(Type.KILL, 7, handle=0x102) == KILL
    assert wire.unpack(KILL) == (Type.KILL, 7, 0, {"handle": 0x102})
    assert wire.pack(Type.WELCOME, 2**32 - 1, **FIELDS) == WELCOME
    assert wire.unpack(WELCOME) == (Type.WELCOME, 2**32 - 1, 0, FIELDS)
    assert wire.pack(Type.STARTED, 1, 3, handle=1, uid=2)[6] == 3  # the fd count


def test_types_and_stages_have_these_numbers() -> None:
    assert _numbers(TYPES) == {kind.name: kind.value for kind in Type}
    assert _numbers(STAGES) == {stage.name: stage.value for stage in Stage}


def _patched(at: int, value: int) -> Callable[[bytes], bytes]:
    return lambda datagram: datagram[:at] + bytes([value]) + datagram[at + 1 :]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_patched(0, 0x55), "bad magic"),
        (_patched(4, wire.VERSION - 1), "bad magic, version"),
        (_patched(4, wire.VERSION + 1), "bad magic, version"),
        (_patched(7, 1), "padding"),
        (_patched(12, 7), "length"),
        (_patched(12, 9), "length"),
        (_patched(5, 255), "255 is not a valid Type"),
        (_patched(5, 0), "0 is not a valid Type"),
        (_patched(5, 127), "127 is not a valid Type"),
        (_patched(5, Type.HELLO), "trailing bytes"),
        (lambda datagram: datagram[:15], "requires a buffer"),
        (lambda datagram: b"", "requires a buffer"),
        (lambda datagram: datagram[:-1], "length"),
        (lambda datagram: datagram + b"\0", "length"),
    ],
    ids="magic older newer zero shorter longer type-255 type-0 type-127 type-1 header empty cut more".split(),
)
def test_s4_what_is_not_well_formed_is_told_apart(change: Callable[[bytes], bytes], words: str) -> None:
    with pytest.raises(WireError, match=words):
        wire.unpack(change(KILL))


def _list(*strings: bytes, count: int | None = None) -> bytes:
    """A VERDICT's list, each string as it is given, counts and NULs and all."""
    body = (len(strings) if count is None else count).to_bytes(4, "little") + b"".join(strings)
    return wire._HEADER.pack(wire.MAGIC, wire.VERSION, Type.VERDICT, 0, 0, 1, len(body)) + body


def _string(text: bytes, size: int | None = None, end: bytes = b"\0") -> bytes:
    return (len(text) if size is None else size).to_bytes(4, "little") + text + end


@pytest.mark.parametrize(
    "strings",
    [[], [b""], [b"x" * wire.MAX_STRING], [b"x"] * wire.MAX_COUNT, [b"a", b"", b"bc"]],
    ids="none empty longest most several".split(),
)
def test_s2_lists_up_to_their_bounds_are_taken(strings: list[bytes]) -> None:
    datagram = _list(*map(_string, strings))
    assert wire.unpack(datagram).fields == {"rows": strings}
    assert wire.pack(Type.VERDICT, 1, rows=strings) == datagram


@pytest.mark.parametrize(
    ("datagram", "words"),
    [
        (_list(*[_string(b"")] * (wire.MAX_COUNT + 1)), "the bound is"),
        (_list(count=1), "requires a buffer"),
        (_list(_string(b"a"), count=2), "requires a buffer"),
        (_list(_string(b"x" * (wire.MAX_STRING + 1))), "too long"),
        (_list(_string(b"a", size=2**32 - 1)), "too long"),
        (_list(_string(b"a", size=2)), "truncated"),
        (_list(_string(b"a", end=b"b")), "NUL-terminated"),
        (_list(_string(b"a\0b")), "NUL-terminated once"),
        (_list(_string(b"\0")), "NUL-terminated once"),
        (_list(_string(b"a", size=0)), "NUL-terminated"),
        (_list(_string(b"a", end=b"\0\0")), "trailing bytes"),
    ],
    ids="count none fewer long longest short unterminated inner first-nul no-size more".split(),
)
def test_s2_lists_over_their_bounds_are_refused(datagram: bytes, words: str) -> None:
    with pytest.raises(WireError, match=words):
        wire.unpack(datagram)


def test_s2_the_longest_message_is_taken_and_one_byte_more_is_not() -> None:
    room = wire.MAX_MESSAGE - len(_list()) - 2 * len(_string(b""))
    for more, good in ((0, True), (1, False)):
        strings = [b"x" * wire.MAX_STRING, b"y" * (room - wire.MAX_STRING + more)]
        datagram = _list(*map(_string, strings))
        assert len(datagram) == wire.MAX_MESSAGE + more
        if good:
            assert wire.pack(Type.VERDICT, 1, rows=strings) == datagram
            assert wire.unpack(datagram).fields == {"rows": strings}
        else:
            with pytest.raises(WireError, match="of over"):
                wire.pack(Type.VERDICT, 1, rows=strings)
            with pytest.raises(WireError, match="size"):
                wire.unpack(datagram)


@pytest.mark.parametrize(
    ("rows", "good"),
    [
        ([b"x"] * wire.MAX_COUNT, True), ([b"x"] * (wire.MAX_COUNT + 1), False), ([b"x" * wire.MAX_STRING], True),
        ([b"x" * (wire.MAX_STRING + 1)], False), ([b"\0"], False), ([b"a", b"b\0"], False),
    ],
    ids="count over length longer nul last".split(),
)  # fmt: skip
def test_s2_nothing_over_a_bound_is_packed(rows: list[bytes], good: bool) -> None:
    if good:
        assert wire.unpack(wire.pack(Type.VERDICT, 1, rows=rows)).fields == {"rows": rows}
    else:
        with pytest.raises(WireError, match="rows: over"):
            wire.pack(Type.VERDICT, 1, rows=rows)
