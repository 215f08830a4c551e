"""The api's end of the helper's socket, with a peer that is not a helper: what does not match closes all (S3)."""

import array
import asyncio
import fcntl
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest
from support.process_usage import fds_of_same_file

from helper import wire
from helper.wire import Type
from telehandler.common.errors import HelperUnavailable
from telehandler.jobs.helper_link import HelperLink, JobSpec

_DONE = wire.pack(Type.DONE, 1)
_PASSED = os.memfd_create("telehandler-test")  # each fd that is passed is of this file, and no other is


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
    passed = array.array("i", [_PASSED] * fds)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed.tobytes())] if fds else []
    theirs.sendmsg([datagram], rights)


async def _next_request_id(theirs: socket.socket) -> int:
    """The request id of what the link sends."""
    return wire.unpack(await asyncio.get_running_loop().sock_recv(theirs, wire.MAX_MESSAGE)).request_id


def _started(request_id: int, announced: int) -> bytes:
    return wire.pack(Type.STARTED, request_id, announced, handle=1, uid=1)


def _start(link: HelperLink) -> "asyncio.Task[Any]":
    return asyncio.create_task(link.start(JobSpec(bytes(16), "", b"", [b"x"], [], {})))


def _is_lost(link: HelperLink) -> None:
    """And nothing is left open, its own socket included."""
    assert link.lost
    assert link._sock.fileno() == -1
    assert fds_of_same_file(_PASSED) == 1


@pytest.mark.parametrize(
    ("announced", "passed"), [(3, 0), (3, 1), (3, 2), (3, 4), (3, 7), (0, 0), (0, 3), (2, 2), (4, 3), (5, 5), (255, 3)]
)
def test_s3_a_wrong_count_of_fds_closes_all_and_ends_the_link(announced: int, passed: int) -> None:
    async def test(link: HelperLink, theirs: socket.socket) -> None:
        task = _start(link)
        _answer(theirs, _started(await _next_request_id(theirs), announced), passed)
        with pytest.raises(HelperUnavailable):
            await task
        _is_lost(link)
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
        _answer(theirs, datagram, 3)
        await asyncio.wait_for(link.gone.wait(), 10)
        _is_lost(link)

    _with_peer(test)


@pytest.mark.parametrize("count", [3, 4])
def test_s3_three_fds_are_received_and_close_on_exec(count: int) -> None:
    """A fourth is stdin's, where it was asked for."""

    async def test(link: HelperLink, theirs: socket.socket) -> None:
        task = _start(link)
        _answer(theirs, _started(await _next_request_id(theirs), count), count)
        job = await task
        fds = [job.stdout_fd, job.stderr_fd, job.cgroup_fd, job.stdin_fd][:count]
        assert len(set(fds)) == count
        assert (job.stdin_fd < 0) == (count == 3)
        assert fds_of_same_file(_PASSED) == count + 1
        assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in fds)
        for fd in fds:
            os.close(fd)

    _with_peer(test)


def test_s3_fds_for_nobody_are_closed_and_nothing_grows() -> None:
    """Replies to requests that were never made, or that an api before this one made: the link lives on."""

    async def test(link: HelperLink, theirs: socket.socket) -> None:
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
        assert fds_of_same_file(_PASSED) == 1

    _with_peer(test)


def _adopt(request_id: int, handle: int) -> bytes:
    return wire.pack(Type.ADOPT, request_id, 3, handle=handle, uid=1, tag=bytes(16))


def _exited(handle: int, code: int) -> bytes:
    facts = dict.fromkeys(wire.LAYOUT[Type.EXITED][1].split(), 0) | {"handle": handle, "exit_code": code}
    return wire.pack(Type.EXITED, 0, **facts)


def test_s3_what_an_api_before_left_in_the_socket_is_told_apart() -> None:
    """Its ADOPTs and STARTED, and ends of jobs that are known and that are not: no fd stays, nothing is mixed up."""

    async def test(link: HelperLink, theirs: socket.socket) -> None:
        _answer(theirs, _adopt(77, 1), 3)  # of an older HELLO
        _answer(theirs, _started(78, 3), 3)
        _answer(theirs, _exited(5, 1), 0)
        hello = asyncio.create_task(link.hello())
        request = await _next_request_id(theirs)
        _answer(theirs, _adopt(77, 1), 3)
        welcome: dict[str, Any] = {"live_jobs": 2, "max_jobs": 9, "missing_controllers": [], "profiles": [b"host"]}
        _answer(theirs, wire.pack(Type.WELCOME, request, **welcome), 0)
        _answer(theirs, _adopt(request, 2), 3)
        await asyncio.sleep(0)
        assert not hello.done()  # one is missing
        _answer(theirs, _exited(2, 7), 0)
        _answer(theirs, _adopt(request, 3), 3)
        _, adopted = await asyncio.wait_for(hello, 10)
        assert [live.handle for _, live in adopted] == [2, 3]
        facts = await asyncio.wait_for(link.exited(2), 10)
        assert facts is not None
        assert facts["exit_code"] == 7
        assert not link.exited(3).done()
        with pytest.raises(BlockingIOError):  # not even a KILL of the other's job, which ADOPT may bring
            theirs.recv(wire.MAX_MESSAGE)
        for _, live in adopted:
            live.close()
        assert fds_of_same_file(_PASSED) == 1

    _with_peer(test)


def test_s3_a_helper_that_dies_while_it_hands_over_leaves_no_fd() -> None:
    async def test(link: HelperLink, theirs: socket.socket) -> None:
        hello = asyncio.create_task(link.hello())
        request = await _next_request_id(theirs)
        welcome: dict[str, Any] = {"live_jobs": 2, "max_jobs": 9, "missing_controllers": [], "profiles": [b"host"]}
        _answer(theirs, wire.pack(Type.WELCOME, request, **welcome), 0)
        _answer(theirs, _adopt(request, 2), 3)
        theirs.close()
        with pytest.raises(HelperUnavailable):
            await asyncio.wait_for(hello, 10)
        assert await asyncio.wait_for(link.exited(2), 10) is None  # lost
        _is_lost(link)

    _with_peer(test)


def test_s3_what_a_dead_helper_had_sent_is_read_first() -> None:
    """It dies with a request of ours unread, which is told as a reset, before its last event."""

    async def test(link: HelperLink, theirs: socket.socket) -> None:
        request = asyncio.create_task(link.kill(1))
        await asyncio.sleep(0)
        _answer(theirs, _exited(2, 7), 0)
        theirs.close()
        facts = await asyncio.wait_for(link.exited(2), 10)
        assert facts is not None
        assert facts["exit_code"] == 7
        with pytest.raises(HelperUnavailable):
            await request
        with pytest.raises(HelperUnavailable):
            await link.kill(1)

    _with_peer(test)


@pytest.mark.parametrize("when", ["before", "with"])
def test_s3_a_start_that_is_given_up_is_ended(when: str) -> None:
    """Its caller is cancelled before or as the answer comes: nobody knows of the job, so it is killed."""

    async def test(link: HelperLink, theirs: socket.socket) -> None:
        hello = asyncio.create_task(link.hello())
        welcome: dict[str, Any] = {"live_jobs": 0, "max_jobs": 9, "missing_controllers": [], "profiles": [b"host"]}
        _answer(theirs, wire.pack(Type.WELCOME, await _next_request_id(theirs), **welcome), 0)
        await hello
        task = _start(link)
        request = await _next_request_id(theirs)
        if when == "with":
            _answer(theirs, _started(request, 3), 3)
            link._receive()
            task.cancel()
        else:
            task.cancel()
            await asyncio.wait([task])
            _answer(theirs, _started(request, 3), 3)
        for wanted in (Type.KILL, Type.RELEASE):
            message = wire.unpack(await asyncio.get_running_loop().sock_recv(theirs, wire.MAX_MESSAGE))
            assert (message.type, message.fields["handle"]) == (wanted, 1)
            _answer(theirs, wire.pack(Type.DONE, message.request_id), 0)
            if wanted is Type.KILL:
                _answer(theirs, _exited(1, 0), 0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert fds_of_same_file(_PASSED) == 1

    _with_peer(test)
