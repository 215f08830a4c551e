"""The parser: what it makes it takes, and from anything else it raises WireError alone."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helper import wire
from helper.wire import LAYOUT, Type, WireError

_TEXT = st.binary(max_size=60).map(lambda text: text.replace(b"\0", b""))
_LIST = st.lists(_TEXT, max_size=5)
_FIXED = {
    "Q": st.integers(0, 2**64 - 1),
    "I": st.integers(0, 2**32 - 1),
    "i": st.integers(-(2**31), 2**31 - 1),
    "16s": st.binary(min_size=16, max_size=16),
}


def _codes(fixed: str) -> list[str]:
    """struct's codes one by one."""
    limits = len(wire.LIMITS.split())
    return re.findall("16s|Q|I|i", fixed.replace(f"{limits}Q", "Q" * limits))


@st.composite
def messages(draw: st.DrawFn) -> tuple[Type, int, dict[str, Any]]:
    kind = draw(st.sampled_from(Type))
    fixed, names, lists = LAYOUT[kind]
    fields = {name: draw(_FIXED[code]) for name, code in zip(names.split(), _codes(fixed), strict=True)}
    fields |= {name: draw(_LIST) for name in lists.split()}
    return kind, draw(st.integers(0, 2**32 - 1)), fields


@given(messages())
def test_round_trip(message: tuple[Type, int, dict[str, Any]]) -> None:
    kind, request_id, fields = message
    assert wire.unpack(wire.pack(kind, request_id, **fields)) == (kind, request_id, 0, fields)


@settings(max_examples=500)
@given(st.binary(max_size=200))
def test_random_bytes_raise_wire_errors_alone(datagram: bytes) -> None:
    with pytest.raises(WireError):
        wire.unpack(datagram)


@settings(max_examples=500)
@given(messages(), st.data())
def test_a_changed_byte_parses_or_raises_wire_error(
    message: tuple[Type, int, dict[str, Any]], data: st.DataObject
) -> None:
    datagram = bytearray(wire.pack(message[0], message[1], **message[2]))
    at = data.draw(st.integers(0, len(datagram) - 1))
    datagram[at] = data.draw(st.integers(0, 255))
    try:
        wire.unpack(bytes(datagram))
    except WireError:
        pass


@given(messages(), st.data())
def test_truncated_or_longer_is_refused(message: tuple[Type, int, dict[str, Any]], data: st.DataObject) -> None:
    datagram = wire.pack(message[0], message[1], **message[2])
    with pytest.raises(WireError):
        wire.unpack(datagram[: data.draw(st.integers(0, len(datagram) - 1))])
    with pytest.raises(WireError):
        wire.unpack(datagram + data.draw(st.binary(min_size=1, max_size=20)))


def _start(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = dict.fromkeys(wire.LIMITS.split(), 0)
    return (
        fields | {"tag": bytes(16), "stdio": 0, "parent": 0, "place": [b"", b""], "argv": [b"x"], "env": []} | changes
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"argv": [b"x"] * (wire.MAX_COUNT + 1)},
        {"argv": [b"a\0b"]},
        {"argv": [b"x" * (wire.MAX_STRING + 1)]},
        {"argv": [b"x" * wire.MAX_STRING] * 3},
        {"more": 1},
    ],
)
def test_bounds_hold_when_packing(changes: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        wire.pack(Type.START, 1, **_start(**changes))


def test_a_count_that_promises_more_than_there_is() -> None:
    datagram = bytearray(wire.pack(Type.START, 1, **_start()))
    datagram[-4:] = (2**32 - 1).to_bytes(4, "little")
    with pytest.raises(WireError, match="bound"):
        wire.unpack(bytes(datagram))
