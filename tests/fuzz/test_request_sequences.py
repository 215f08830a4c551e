"""Sequences of requests, most of them well-formed, to a live helper: it answers or ends, and leaves nothing."""

import os
import select
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.helper_driver import VIOLATION, Helper

from helper import wire
from helper.wire import LAYOUT, Type, WireError

pytestmark = pytest.mark.usefixtures("as_root")
SECONDS = int(os.environ.get("FUZZ_SECONDS", "4"))
EXAMPLES_A_SECOND = 8
_TEXT = st.one_of(
    st.sampled_from(
        [b"", b"/", b"/tmp", b"host", b"/proc/self/fd", b"true", b"sleep", b"5", b"A=1", b"PATH=/bin", b"=x"]
    ),
    st.binary(max_size=12).map(lambda text: text.replace(b"\0", b"")),
)
_START = st.fixed_dictionaries(
    {
        "tag": st.binary(min_size=16, max_size=16),
        "stdio": st.sampled_from([0, 1, 2, 3, 4] * 4 + [5]),
        "parent": st.sampled_from([0] * 6 + [1, 2]),
        "place": st.sampled_from([[b"", b""]] * 4 + [[b"host", b"/tmp"], [b"none", b""], [b"", b"/no"], [b""]]),
        "argv": st.sampled_from([[b"/bin/true"], [b"/bin/sleep", b"9"]] * 4) | st.lists(_TEXT, max_size=3),
        "env": st.sampled_from([[], [b"A=1"]] * 4) | st.lists(_TEXT, max_size=3),
        **{name: st.sampled_from([0] * 30 + [1, 2**64 - 1]) for name in wire.LIMITS.split()},
    }
)
_HANDLE = st.integers(0, 4) | st.just(2**64 - 1)
_SIGNAL = st.integers(1, 64)
_VALID = st.one_of(
    st.tuples(st.just(Type.START), _START),
    st.tuples(st.just(Type.CHECK), _START),
    st.tuples(st.just(Type.HELLO), st.just({})),
    st.tuples(st.just(Type.SIGNAL), st.fixed_dictionaries({"handle": _HANDLE, "signal": _SIGNAL})),
    st.tuples(st.sampled_from([Type.KILL, Type.RELEASE, Type.CLOSE_STDIN]), st.fixed_dictionaries({"handle": _HANDLE})),
    st.tuples(st.just(Type.CANCEL), st.fixed_dictionaries({"start_id": st.integers(0, 9)})),
    st.tuples(st.just(Type.SHUTDOWN), st.just({})),
)


@st.composite
def datagrams(draw: st.DrawFn) -> bytes:
    """A request; one in twenty with a byte changed, or of a type that is none."""
    kind, fields = draw(_VALID)
    datagram = bytearray(wire.pack(kind, draw(st.integers(0, 9)), **fields))
    if draw(st.integers(0, 19)) == 0:
        datagram[draw(st.integers(0, len(datagram) - 1))] = draw(st.integers(0, 255))
    return bytes(datagram)


def _expected(sent: list[bytes]) -> set[int]:
    """The exit statuses that this sequence may have."""
    for datagram in sent:
        try:
            message = wire.unpack(datagram)
        except WireError:
            return {VIOLATION}
        if message.fd_count or message.type >= Type.WELCOME:
            return {VIOLATION}
        if message.type is Type.SHUTDOWN:
            return {0}
        if message.type is Type.SIGNAL and not 1 <= message.fields["signal"] <= wire.MAX_SIGNAL:
            return {VIOLATION}
        if message.type in (Type.START, Type.CHECK) and _is_violation(**message.fields):
            return {VIOLATION}
        if message.type in (Type.START, Type.CHECK) and message.fields["parent"]:  # it may run, or not
            return {0, VIOLATION}
        if message.type is Type.RELEASE:  # of a job that has not ended? That depends on how quick it is
            return {0, VIOLATION}
    return {0}


def _is_violation(argv: list[bytes], env: list[bytes], place: list[bytes], stdio: int, **_: Any) -> bool:
    names = [entry.partition(b"=")[0] for entry in env]
    named = all(b"=" in entry and not entry.startswith(b"=") for entry in env)
    return not argv or not argv[0] or not named or len(set(names)) != len(names) or len(place) != 2 or stdio > 4


def _drain(helper: Helper) -> None:
    """What the helper said: each is a message, and its fds are closed."""
    while select.select([helper.sock], [], [], 0)[0] and helper.sock.recv(1, socket.MSG_PEEK):
        message, fds = helper.receive()
        for fd in fds:
            os.close(fd)
        assert len(fds) == message.fd_count
        assert message.type in LAYOUT
        assert message.type >= Type.WELCOME


@settings(max_examples=SECONDS * EXAMPLES_A_SECOND, deadline=None, suppress_health_check=list(HealthCheck))
@given(sequence=st.lists(datagrams(), min_size=1, max_size=25))
def test_s4_sequences_are_answered_or_end_it_and_leave_nothing(policy: Path, sequence: list[bytes]) -> None:
    with Helper(policy) as helper:
        try:
            for datagram in sequence:
                helper.sock.send(datagram)
                _drain(helper)
            helper.sock.shutdown(socket.SHUT_WR)
        except ConnectionError:
            pass  # it has ended, and says why with its status
        status, said = helper.end()
        assert status in _expected(sequence), said
        assert "Traceback" not in said
        assert said.count("\n") == (status != 0)
        assert not helper.cgroup.exists()


def test_the_model_knows_both_ends() -> None:
    """So that the test above cannot pass because everything is allowed."""
    hello, kill = wire.pack(Type.HELLO, 1), wire.pack(Type.KILL, 1, handle=1)
    bad = struct.pack("<4sBBBBII", b"TLHD", wire.VERSION, Type.DONE, 0, 0, 0, 0)
    assert _expected([hello, kill]) == {0}
    assert _expected([hello, kill, bad]) == {VIOLATION}
    assert _expected([hello, wire.pack(Type.SHUTDOWN, 1), bad]) == {0}
