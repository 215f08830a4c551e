"""The control channel of supervisor and api: what is no message of it is refused, and no fd is left."""

import array
import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator

import pytest
from support.process_usage import fds_of_same_file

from telehandler.common import control
from telehandler.common.errors import TelehandlerError

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = control.pair()
    with ours, theirs:
        yield ours, theirs


def test_messages_and_their_end(pair: Pair) -> None:
    control.send(pair[0], "spec", {"listen": ":1", "admins": ("ü",)})
    assert control.receive(pair[1]) == ("spec", {"listen": ":1", "admins": ["ü"]}, -1)
    control.send(pair[0], "link", fd=pair[0].fileno())
    message = control.receive(pair[1])
    assert message is not None
    assert (message.kind, message.spec) == ("link", {})
    assert os.path.sameopenfile(message.fd, pair[0].fileno())
    assert fcntl.fcntl(message.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    os.close(message.fd)
    pair[0].close()
    assert control.receive(pair[1]) is None
    with pytest.raises(OSError, match="Broken pipe"):
        control.send(pair[1], "ready")


@pytest.mark.parametrize(
    ("datagram", "passed"),
    [
        (b"junk", 0),
        (b"junk", 1),
        (b"[]", 0),
        (b'{"kind": "ready"}', 0),
        (b'{"kind": "other", "spec": {}}', 0),
        (b'{"kind": "ready", "spec": []}', 0),
        (b'{"kind": ["ready"], "spec": {}}', 0),
        (b'{"kind": "ready", "spec": {}}', 1),
        (b'{"kind": "link", "spec": {}}', 0),
        (b'{"kind": "link", "spec": {}}', 2),
        (b'{"kind": "link", "spec": {}}', 5),
        (b'{"kind": "ready", "spec": {}}' + b" " * control.MAX_MESSAGE, 0),
        (b"[" * 60_000, 0),
        (b"\xff\xfe", 1),
    ],
)
def test_what_is_no_message_is_refused(pair: Pair, datagram: bytes, passed: int) -> None:
    with tempfile.TemporaryFile() as file:
        fds = array.array("i", [file.fileno()] * passed).tobytes()
        pair[0].sendmsg([datagram], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if passed else [])
        with pytest.raises(TelehandlerError, match="no message"):
            control.receive(pair[1])
        assert fds_of_same_file(file.fileno()) == 1


def test_a_message_over_the_bound_is_not_sent(pair: Pair) -> None:
    with pytest.raises(TelehandlerError, match="over 64 KiB"):
        control.send(pair[0], "spec", {"admins": ["x" * control.MAX_MESSAGE]})
