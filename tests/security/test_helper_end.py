"""The end of the helper is certain: nothing in its socket, and nobody who holds the other end, keeps it alive (S41)."""

import array
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.checkout import ROOT
from support.helper_copy import helper_copy
from support.helper_driver import TAG, Helper
from support.helper_startup import helper_command
from support.processes import alive, copies_of_unix_sockets, live_processes_with
from support.servers import Server
from support.wait import DEADLINE_S, wait_until

from helper import wire
from helper.wire import Type

pytestmark = pytest.mark.usefixtures("as_root")
# Started by a process of its own, which gives our end of the socket away and ends.
_MAKER = """
import os, socket, subprocess, sys
channel = socket.socket(fileno=int(sys.argv[1]))
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
helper = subprocess.Popen(sys.argv[2:], stdin=theirs.fileno(), cwd="/")
socket.send_fds(channel, [str(helper.pid).encode()], [ours.fileno()])
channel.recv(1)
os._exit(0)
"""


def _request(kind: Type, argv: list[bytes]) -> bytes:
    fields: dict[str, Any] = dict.fromkeys(wire.LIMITS.split(), 0)
    fields |= {"tag": TAG, "stdio": 0, "parent": 0, "place": [b"", b""], "env": [], "argv": argv}
    return wire.pack(kind, 1, **fields)


def _fill(sock: socket.socket, request: bytes, fds: tuple[int, ...] = ()) -> int:
    """Sends until the socket takes no more: how many that were."""
    sock.setblocking(False)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sent = 0
    with suppress(BlockingIOError):
        while True:
            sock.sendmsg([request], rights)
            sent += 1
    return sent


def _make_deaf(helper: Helper) -> None:
    """Requests whose answers are not read, until it reads no more."""
    full = time.monotonic() + 0.5
    while time.monotonic() < full:  # until nothing goes in for that long
        if _fill(helper.sock, wire.pack(Type.KILL, 1, handle=99)):
            full = time.monotonic() + 0.5


def test_s41_the_other_end_among_what_it_has_not_read_does_not_keep_it(policy: Path, place: Path) -> None:
    """The api's end of the socket waits in the socket itself, behind requests whose answers nobody reads."""
    code = helper_copy(place, "impatient", STALL_S=1.0)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.send(wire.pack(Type.HELLO, 1))
    ours.send(_request(Type.START, [b"/bin/sleep", b"4.123105"]))
    assert _fill(ours, _request(Type.CHECK, [b"true"]), (ours.fileno(),)) > 200  # their answers are long
    process = subprocess.Popen(helper_command(code, policy), stdin=theirs.fileno(), cwd="/", stderr=subprocess.PIPE)
    theirs.close()
    try:
        wait_until("the job runs", lambda: live_processes_with("4.123105"))
        with pytest.raises(subprocess.TimeoutExpired):  # it reads no more, before the bound
            process.wait(0.5)
        assert _unread(ours)
        ours.close()
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert not live_processes_with("4.123105")
    finally:
        process.kill()
        process.communicate()


def test_s41_answers_that_nobody_reads_end_nothing_while_nothing_lies_unread(policy: Path, place: Path) -> None:
    """The bound is not for an api that is stopped, or is started anew, while jobs end."""
    code = helper_copy(place, "impatient too", STALL_S=0.5)
    with Helper(policy) as helper:
        until_deaf = _requests_until_deaf(helper)
    with Helper(policy, code=code) as helper:
        for _ in range(until_deaf - 1):
            helper.send(Type.KILL, handle=99)
        wait_until("all are read", lambda: not _unread(helper.sock))
        with pytest.raises(subprocess.TimeoutExpired):
            helper.process.wait(2)
        for _ in range(until_deaf - 1):
            assert helper.receive()[0].type is Type.ERROR
        assert helper.run("true").facts["exit_code"] == 0


def _requests_until_deaf(helper: Helper) -> int:
    """The number of the first request that is not read, when no answer is."""
    for number in range(1, 10_000):
        helper.send(Type.KILL, handle=99)
        if number < 150:  # of answers, the socket alone holds more
            continue
        with suppress(AssertionError):
            wait_until("it is read", lambda: not _unread(helper.sock), 1)
            continue
        return number
    raise AssertionError("it reads on for ever")


def _unread(sock: socket.socket) -> int:
    """Bytes that were sent and not received yet: SIOCOUTQ, unix(7)."""
    return struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]  # type: ignore[no-any-return]


def test_s41_a_deaf_helper_ends_at_once_when_told(policy: Path) -> None:
    with Helper(policy) as helper:
        helper.start("sleep", "4.242640").close()
        _make_deaf(helper)
        began = time.monotonic()
        helper.sock.shutdown(socket.SHUT_WR)  # as Helpers.end does
        assert helper.end() == (0, "")
        assert time.monotonic() - began < 10
        assert not live_processes_with("4.242640")


def test_s41_an_api_that_ends_with_requests_waiting_is_no_violation(policy: Path) -> None:
    with Helper(policy) as helper:
        _make_deaf(helper)
        helper.sock.close()
        assert helper.end() == (0, "")


def test_s41_it_ends_with_the_process_that_made_its_socket(policy: Path) -> None:
    """Whoever else has been given the other end, and holds it."""
    channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with channel:
        with theirs:
            maker = subprocess.Popen(
                [sys.executable, "-c", _MAKER, str(theirs.fileno()), *helper_command(ROOT, policy)],
                pass_fds=[theirs.fileno()],
            )
        pid, fds, _, _ = socket.recv_fds(channel, 16, 1)
        with socket.socket(fileno=fds[0]) as link:
            link.settimeout(DEADLINE_S)
            link.send(wire.pack(Type.HELLO, 1))
            assert wire.unpack(link.recv(wire.MAX_MESSAGE)).type is Type.WELCOME
            channel.send(b".")
            assert maker.wait(DEADLINE_S) == 0
            wait_until("the helper has ended", lambda: not alive(int(pid)), 10)


def test_s41_a_server_that_is_killed_leaves_no_helper_whoever_has_its_socket(
    make_server: Callable[..., Server],
) -> None:
    """As an api that was taken over might have given it away; here it is taken from the api."""
    server = make_server()
    pids = server.children()
    (held,) = copies_of_unix_sockets(pids["api"])
    with held:
        server.detach("sleep", "4.358898")
        assert server.process is not None
        server.process.kill()
        os.kill(pids["api"], signal.SIGKILL)
        wait_until("both have ended", lambda: not alive(pids["keeper"]) and not alive(pids["helper"]), 30)
        assert not live_processes_with("4.358898")


def test_s41_no_fd_can_be_sent_where_the_kernel_can_refuse(policy: Path) -> None:
    """SO_PASSRIGHTS; where there is none, what is sent is discarded: S3."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        has_it = True
        try:
            theirs.setsockopt(socket.SOL_SOCKET, 83, 0)
        except OSError:
            has_it = False
    with Helper(policy) as helper:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))]
        refused = False
        try:
            helper.sock.sendmsg([wire.pack(Type.KILL, 1, handle=99)], rights)
        except PermissionError:
            refused = True
        assert refused == has_it
