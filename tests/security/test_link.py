"""The api's end of the helper's socket, with a peer that is not a helper: what does not match closes all (S3)."""

import array
import asyncio
import fcntl
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest

from helper import wire
from helper.wire import Type
from telehandler.errors import HelperUnavailable
from telehandler.link import HelperLink, Order

_DONE = wire.pack(Type.DONE, 1)


def _with_peer(test: Callable[[HelperLink, socket.socket], Any]) -> None:
    """Runs `test` with a link, and checks that the link leaves no fd open but those it gave."""

    async def run() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        link = HelperLink(ours)
        try:
            await test(link, theirs)
        finally:
            link.close()
            theirs.close()

    asyncio.run(run())


def _answer(
    theirs: socket.socket, datagram: bytes, fds: int, extra: list[tuple[int, int, bytes]] | None = None
) -> None:
    passed = array.array("i", [2] * fds)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed.tobytes())] if fds else []
    theirs.sendmsg([datagram], rights)


async def _asked(theirs: socket.socket) -> int:
    """The request id of what the link sends."""
    return wire.unpack(await asyncio.get_running_loop().sock_recv(theirs, wire.MAX_MESSAGE)).request_id


def _started(request_id: int, announced: int) -> bytes:
    return wire.pack(Type.STARTED, request_id, announced, handle=1, uid=1)


def _start(link: HelperLink) -> "asyncio.Task[Any]":
    return asyncio.create_task(link.start(Order(bytes(16), "", b"", [b"x"], [], {})))


@pytest.mark.parametrize(
    ("announced", "passed"), [(3, 0), (3, 1), (3, 2), (3, 4), (3, 7), (0, 0), (0, 3), (2, 2), (4, 4), (255, 3)]
)
def test_s3_a_wrong_count_of_fds_closes_all_and_ends_the_link(announced: int, passed: int) -> None:
    async def test(link: HelperLink, theirs: socket.socket) -> None:
        lost = asyncio.Event()
        link.on_closed = lost.set
        before = sorted(os.listdir("/proc/self/fd"))
        task = _start(link)
        _answer(theirs, _started(await _asked(theirs), announced), passed)
        with pytest.raises(HelperUnavailable):
            await task
        assert lost.is_set()
        after = sorted(os.listdir("/proc/self/fd"))
        assert len(after) == len(before) - 1  # the link's own socket
        with pytest.raises(HelperUnavailable):
            await link.kill(1)

    _with_peer(test)


@pytest.mark.parametrize(
    "datagram",
    [b"junk", _DONE[:-1], _DONE + bytes(wire.MAX_MESSAGE), wire.pack(Type.DONE, 1, 3)],
    ids="junk short oversized announced".split(),
)  # fmt: skip
def test_s3_fds_with_a_message_that_has_none_are_closed(datagram: bytes) -> None:
    async def test(link: HelperLink, theirs: socket.socket) -> None:
        lost = asyncio.Event()
        link.on_closed = lost.set
        before = len(os.listdir("/proc/self/fd"))
        _answer(theirs, datagram, 3)
        await asyncio.wait_for(lost.wait(), 10)
        assert len(os.listdir("/proc/self/fd")) == before - 1

    _with_peer(test)


def test_s3_three_fds_are_received_and_close_on_exec() -> None:
    async def test(link: HelperLink, theirs: socket.socket) -> None:
        task = _start(link)
        _answer(theirs, _started(await _asked(theirs), 3), 3)
        job = await task
        fds = [job.stdout_fd, job.stderr_fd, job.cgroup_fd]
        assert len(set(fds)) == 3
        assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in fds)
        for fd in fds:
            os.close(fd)

    _with_peer(test)


def test_s3_fds_for_nobody_are_closed_and_nothing_grows() -> None:
    """Replies to requests that were never made, or that an api before this one made: the link lives on."""

    async def test(link: HelperLink, theirs: socket.socket) -> None:
        before = len(os.listdir("/proc/self/fd"))
        for number in range(2000):
            while True:
                try:
                    _answer(theirs, _started(number, 3), 3)
                    break
                except BlockingIOError:
                    await asyncio.sleep(0)
        facts = dict.fromkeys(wire.LAYOUT[Type.EXITED][1].split(), 0)
        await asyncio.get_running_loop().sock_sendall(theirs, wire.pack(Type.EXITED, 0, **facts))
        await asyncio.wait_for(link.exited(0), 10)
        assert len(os.listdir("/proc/self/fd")) == before

    _with_peer(test)
