"""The helper's poll set, and its socket to the api: what is read and sent when, and what ends the link."""

import array
import errno
import os
import select
import socket
from collections.abc import Callable, Iterator

import pytest

from helper import wire
from helper.link import MAX_QUEUE, STALL_S, Events, Link, refuse_fds
from helper.policy import Refusal
from helper.wire import Stage, Type, WireError

KILL = wire.pack(Type.KILL, 1, handle=99)


@pytest.fixture
def pair() -> Iterator[tuple[Link, socket.socket]]:
    """A link and the api's end, which is never waited for."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.setblocking(False)
        yield Link(ours), theirs


@pytest.fixture
def pipes() -> Iterator[list[tuple[int, int]]]:
    made = [os.pipe(), os.pipe()]
    yield made
    for fd in (fd for both in made for fd in both):
        os.close(fd)


def _answers(sock: socket.socket) -> list[int]:
    """The request ids of all that has come."""
    found = []
    try:
        while datagram := sock.recv(wire.MAX_MESSAGE):
            found.append(wire.unpack(datagram).request_id)
    except BlockingIOError:
        pass
    return found


def _queue(link: Link, count: int) -> None:
    """Puts answers in the queue, numbered from 1, as if the socket had taken none of them."""
    link.queue.extend((wire.pack(Type.DONE, number), ()) for number in range(1, count + 1))


def _fill(link: Link) -> int:
    """Sends until some wait in the queue: how many the socket took."""
    sent = 0
    while not link.queue:
        link.send(Type.DONE, sent)
        sent += 1
    return sent - 1


# Events


def test_each_fd_that_has_something_calls_its_own_callback(pipes: list[tuple[int, int]]) -> None:
    events, seen = Events(), []
    (one, to_one), (two, to_two) = pipes
    events.watch(one, select.POLLIN, lambda came: seen.append(("one", came)))
    events.watch(two, select.POLLIN, lambda came: seen.append(("two", came)))
    events.wait(0)
    assert seen == []
    os.write(to_one, b"x")
    events.wait(1000)
    assert seen == [("one", select.POLLIN)]
    os.write(to_two, b"x")
    events.wait(1000)
    assert sorted(seen[1:]) == [("one", select.POLLIN), ("two", select.POLLIN)]


def test_an_fd_is_watched_for_what_was_last_wanted(pipes: list[tuple[int, int]]) -> None:
    events, seen = Events(), []
    fd = pipes[0][1]
    events.watch(fd, select.POLLIN, lambda _: seen.append("first"))
    events.wait(0)
    assert seen == []
    events.watch(fd, select.POLLOUT, lambda _: seen.append("second"))
    events.wait(1000)
    assert seen == ["second"]


def test_an_fd_that_is_unwatched_calls_nothing_and_can_be_unwatched_again(pipes: list[tuple[int, int]]) -> None:
    events, seen = Events(), []
    (one, to_one), (two, to_two) = pipes

    def called(fd: int) -> None:
        seen.append(fd)
        events.unwatch(one + two - fd)

    for fd in (one, two):  # whichever comes first keeps the other from being called
        events.watch(fd, select.POLLIN, lambda _, fd=fd: called(fd))  # type: ignore[misc]
    os.write(to_one, b"x")
    os.write(to_two, b"x")
    events.wait(1000)
    assert len(seen) == 1
    events.unwatch(one + two - seen[0])
    events.wait(1000)
    assert seen == [seen[0]] * 2
    events.unwatch(seen[0])
    # Not even by poll, which would tell of it for ever.
    assert events._poll.poll(0) == []


# What is polled for


def test_requests_are_read_until_the_queue_is_full(pair: tuple[Link, socket.socket]) -> None:
    link, _ = pair
    assert link.wanted() == select.POLLIN
    _queue(link, MAX_QUEUE - 1)
    assert link.wanted() == select.POLLIN | select.POLLOUT
    _queue(link, 1)
    assert link.wanted() == select.POLLOUT | select.POLLRDHUP


# A full queue that does not move


def _stalls(link: Link) -> None:
    link._progress -= STALL_S + 1


def test_a_full_queue_that_does_not_move_ends_the_link_while_requests_lie_unread(
    pair: tuple[Link, socket.socket],
) -> None:
    link, theirs = pair
    theirs.send(KILL)
    for count, stalls, ended in ((MAX_QUEUE - 1, True, False), (MAX_QUEUE, False, False), (MAX_QUEUE, True, True)):
        link.queue.clear()
        assert link.wanted() & select.POLLIN  # so much is progress
        _queue(link, count)
        if stalls:
            _stalls(link)
        link.check_progress()
        assert link.ended == ended
    assert link.sock.recv(wire.MAX_MESSAGE, socket.MSG_DONTWAIT) == KILL  # it has only been looked at


def test_a_full_queue_that_does_not_move_ends_nothing_while_nothing_lies_unread(
    pair: tuple[Link, socket.socket],
) -> None:
    link, _ = pair
    link.check_progress()
    _queue(link, MAX_QUEUE)
    link.check_progress()  # of a link that has just begun
    _stalls(link)
    link.check_progress()
    assert not link.ended


def test_what_is_sent_is_progress(pair: tuple[Link, socket.socket]) -> None:
    link, theirs = pair
    theirs.send(KILL)
    _queue(link, MAX_QUEUE + 1)
    _stalls(link)
    link.on_event(select.POLLOUT)
    _queue(link, MAX_QUEUE)
    link.check_progress()
    assert not link.ended


# Requests


def test_a_request_is_read_when_there_is_one(pair: tuple[Link, socket.socket]) -> None:
    link, theirs = pair
    assert link.on_event(select.POLLIN) is None
    theirs.send(KILL)
    message = link.on_event(select.POLLIN)
    assert message is not None
    assert (message.type, message.request_id, message.fields) == (Type.KILL, 1, {"handle": 99})
    assert not link.ended


def test_room_for_answers_is_used_and_reads_nothing(pair: tuple[Link, socket.socket]) -> None:
    link, theirs = pair
    theirs.send(KILL)
    _queue(link, MAX_QUEUE)
    assert link.on_event(select.POLLOUT) is None
    assert _answers(theirs) == [*range(1, MAX_QUEUE + 1)]
    assert not link.ended
    _queue(link, 2)
    assert link.on_event(select.POLLIN | select.POLLOUT) is not None
    assert _answers(theirs) == [1, 2]


def test_the_end_of_an_api_that_does_not_read_ends_the_link_and_nothing_is_sent(
    pair: tuple[Link, socket.socket],
) -> None:
    link, theirs = pair
    theirs.send(KILL)
    _queue(link, MAX_QUEUE)
    theirs.shutdown(socket.SHUT_WR)
    assert link.on_event(select.POLLOUT | select.POLLRDHUP) is None
    assert link.ended
    assert _answers(theirs) == []


def test_a_link_that_has_ended_reads_and_sends_nothing(pair: tuple[Link, socket.socket]) -> None:
    link, theirs = pair
    link.ended = True
    theirs.send(KILL)
    _queue(link, 1)
    assert link.on_event(select.POLLIN | select.POLLOUT) is None
    assert link.ended
    assert _answers(theirs) == []


def _close(theirs: socket.socket, link: Link) -> None:
    theirs.close()


def _reset(theirs: socket.socket, link: Link) -> None:
    """The api ends with an answer unread."""
    link.send(Type.DONE, 1)
    theirs.close()


def _empty(theirs: socket.socket, link: Link) -> None:
    theirs.send(b"")


@pytest.mark.parametrize("end", [_close, _reset, _empty])
def test_what_ends_a_link(pair: tuple[Link, socket.socket], end: Callable[[socket.socket, Link], None]) -> None:
    link, theirs = pair
    end(theirs, link)
    assert link.on_event(select.POLLIN) is None
    assert link.ended


def test_the_longest_message_is_read_and_nothing_behind_it_is_cut_off() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    rows = [b"x" * wire.MAX_STRING]
    room = wire.MAX_MESSAGE - len(wire.pack(Type.VERDICT, 1, rows=[*rows, b""]))
    longest = wire.pack(Type.VERDICT, 1, rows=[*rows, b"x" * room])
    assert len(longest) == wire.MAX_MESSAGE
    with ours, theirs:
        link = Link(ours)
        theirs.send(longest)
        assert link.on_event(select.POLLIN) is not None
        for more in (b"x", bytes(2000)):
            theirs.send(longest + more)
            with pytest.raises(WireError):
                link.on_event(select.POLLIN)


def test_a_request_that_announces_fds_is_none(pair: tuple[Link, socket.socket]) -> None:
    link, theirs = pair
    theirs.send(wire.pack(Type.KILL, 1, 1, handle=99))
    with pytest.raises(WireError, match="KILL"):
        link.on_event(select.POLLIN)


def test_fds_that_come_with_a_request_are_closed(pair: tuple[Link, socket.socket]) -> None:
    link, theirs = pair
    reader, writer = os.pipe()
    theirs.sendmsg([KILL], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [writer]))])
    os.close(writer)
    assert link.on_event(select.POLLIN) is not None
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_fds_are_refused_where_the_kernel_can(pair: tuple[Link, socket.socket]) -> None:
    """SO_PASSRIGHTS, which is 83, of Linux 6.16."""
    link, theirs = pair
    refuse_fds(link.sock)
    try:
        assert link.sock.getsockopt(socket.SOL_SOCKET, 83) == 0
    except OSError:  # this one cannot
        return
    with pytest.raises(PermissionError):
        theirs.sendmsg([KILL], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))])


# Answers


def test_answers_wait_in_their_order_for_an_api_that_does_not_read(pair: tuple[Link, socket.socket]) -> None:
    link, theirs = pair
    sent = _fill(link)
    link.send(Type.DONE, sent + 1)
    assert len(link.queue) == 2
    assert not link.ended
    assert link.unsent(Type.DONE, sent)
    assert not link.unsent(Type.DONE, sent - 1)
    assert _answers(theirs) == [*range(sent)]
    link.flush()
    assert _answers(theirs) == [sent, sent + 1]
    assert not link.queue


def test_an_answer_brings_its_fds_and_no_others(pair: tuple[Link, socket.socket]) -> None:
    link, theirs = pair
    with open("/dev/null") as file, open("/dev/zero") as other:
        link.send(Type.STARTED, 1, (file.fileno(), other.fileno()), handle=3, uid=4)
        link.send(Type.DONE, 2)
    datagram, fds, _, _ = socket.recv_fds(theirs, wire.MAX_MESSAGE, 9)
    assert wire.unpack(datagram) == (Type.STARTED, 1, 2, {"handle": 3, "uid": 4})
    assert [os.readlink(f"/proc/self/fd/{fd}") for fd in fds] == ["/dev/null", "/dev/zero"]
    for fd in fds:
        os.close(fd)
    datagram, fds, _, _ = socket.recv_fds(theirs, wire.MAX_MESSAGE, 9)
    assert (wire.unpack(datagram).request_id, fds) == (2, [])


def test_an_answer_to_an_api_that_has_gone_ends_the_link(pair: tuple[Link, socket.socket]) -> None:
    link, theirs = pair
    theirs.close()
    link.send(Type.DONE, 1)
    assert link.ended


def test_a_refusal_is_an_error_whose_text_is_bounded(pair: tuple[Link, socket.socket]) -> None:
    link, theirs = pair
    link.refuse(5, Refusal(Stage.LIMIT, errno.EINVAL, "\udcff" + "x" * 2000))
    message = wire.unpack(theirs.recv(wire.MAX_MESSAGE))
    assert (message.type, message.request_id) == (Type.ERROR, 5)
    fields = {"stage": Stage.LIMIT, "errno": errno.EINVAL, "text": [b"?" + b"x" * (wire.MAX_TEXT - 1)]}
    assert message.fields == fields
