"""What waits to be sent to an api that does not read (S32), and what of it a new api or a RELEASE finds (S1, R1)."""

import errno
import fcntl
import os
import signal
import socket
import struct
import termios
from contextlib import suppress
from pathlib import Path

import pytest
from support.helper_driver import ENV, TAG, VIOLATION, Helper
from support.process_usage import rss_bytes
from support.wait import wait_until

from helper import wire
from helper.wire import Message, Stdio, Type

pytestmark = pytest.mark.usefixtures("as_root")
QUEUE_MOST = 256  # messages that may wait; what the helper has is its own to choose, below this
_WAITS = b"232"  # epoll_wait, in /proc/PID/syscall
UNKNOWN = wire.pack(Type.KILL, 1, handle=99)  # answered by an ERROR of always the same size
START = dict.fromkeys(wire.LAYOUT[Type.START][1].split(), 0) | {"tag": TAG, "place": [b"", b""], "env": ENV}


def _sleeps(helper: Helper) -> bool:
    """Whether the helper waits, in poll or where it should not. It says "running" while it does not."""
    return not Path(f"/proc/{helper.process.pid}/syscall").read_bytes().startswith(b"running")


def _polls(helper: Helper) -> bool:
    return Path(f"/proc/{helper.process.pid}/syscall").read_bytes().split()[0] == _WAITS


def _unread(sock: socket.socket) -> int:
    """Bytes that we sent and the helper has not read."""
    (count,) = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))
    return int(count)


def _flood(helper: Helper, most: int) -> int:
    """Sends requests until the helper waits and takes no more, or `most` are sent: how many it took."""
    helper.sock.setblocking(False)
    sent = 0

    def at_its_bound() -> bool:
        nonlocal sent
        # In this order: one that waits with requests unread is no longer reading.
        waits = _sleeps(helper)
        try:
            while sent < most:
                helper.sock.send(UNKNOWN)
                sent += 1
                waits = False
        except BlockingIOError:
            return waits
        return True

    wait_until("the helper takes no more", at_its_bound)
    helper.sock.settimeout(30)
    return sent


def _capacity(datagram: bytes) -> int:
    """How many such datagrams a socket of the default size takes."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        count = 0
        with suppress(BlockingIOError):
            while True:
                ours.send(datagram)
                count += 1
    return count


def _queue_some(helper: Helper, few: int = 10) -> int:
    """Has a few answers wait in the helper's queue, with nothing else to do: how many the socket took besides."""
    helper.sock.send(UNKNOWN)
    capacity = _capacity(helper.sock.recv(wire.MAX_MESSAGE))
    for _ in range(capacity + few):
        helper.sock.send(UNKNOWN)
    _wait_until_read(helper)
    return capacity


def _wait_until_read(helper: Helper) -> None:
    wait_until("the requests are read", lambda: not _unread(helper.sock) and _polls(helper))


def _receive_until(helper: Helper, kind: Type) -> tuple[Message, int]:
    """The first message of that type, and how many came before it."""
    before = 0
    while (message := helper.receive()[0]).type is not kind:
        before += 1
    return message, before


def test_s32_the_queue_towards_an_api_that_does_not_read_is_bounded(policy: Path) -> None:
    capacity = _capacity(UNKNOWN)
    with Helper(policy) as helper:
        before = rss_bytes(helper.process.pid)
        sent = _flood(helper, 20 * capacity)
        # The answers in our socket, those in the queue, and the requests in the helper's socket.
        assert sent <= 2 * capacity + QUEUE_MOST
        assert rss_bytes(helper.process.pid) < before + (2 << 20)
        for _ in range(sent):  # each has an answer once we read: none was dropped
            assert helper.receive()[0].type is Type.ERROR


def test_s32_an_api_that_stops_reading_does_not_stop_the_reaping(policy: Path) -> None:
    with Helper(policy) as helper:
        jobs = [helper.start("sleep", "100") for _ in range(5)]
        pids = [pid for job in jobs for pid in helper.host_pids(job)]
        _flood(helper, 20_000)
        for pid in pids:
            with suppress(ProcessLookupError):  # it went with its init
                os.kill(pid, signal.SIGKILL)
        wait_until("all cgroups are removed", lambda: not list(helper.cgroup.glob("job-*")))
        handles = {_receive_until(helper, Type.EXITED)[0].fields["handle"] for _ in jobs}
        assert handles == {job.handle for job in jobs}
        for job in jobs:
            job.close()


def test_s1_a_release_before_exited_was_sent_ends_all(policy: Path) -> None:
    """The job has ended, and its EXITED still waits in the queue: who asks cannot know of it."""
    with Helper(policy) as helper:
        job = helper.start("sleep", "100")
        (init, *_) = helper.host_pids(job)
        _queue_some(helper)
        os.kill(init, signal.SIGKILL)
        wait_until("the job has ended", lambda: not list(helper.cgroup.glob("job-*")))
        helper.send(Type.RELEASE, handle=job.handle)
        status, said = helper.end()
        assert (status, "RELEASE before EXITED" in said) == (VIOLATION, True)
        job.close()


def test_s1_a_release_after_exited_was_sent_is_served(policy: Path) -> None:
    """The other side of the test above: a queue that waits is no violation."""
    with Helper(policy) as helper:
        job = helper.start("true")
        helper.exited(job)
        _queue_some(helper)
        helper.send(Type.RELEASE, handle=job.handle)
        _receive_until(helper, Type.DONE)
        job.close()


def test_r1_what_waits_for_an_api_before_is_not_sent_to_the_next(policy: Path) -> None:
    with Helper(policy) as helper:
        capacity = _queue_some(helper)
        helper.send(Type.HELLO, 50)
        _wait_until_read(helper)  # else what we read makes room for what waits
        welcome, before = _receive_until(helper, Type.WELCOME)
        assert welcome.request_id == 50
        assert before == capacity  # what was in the socket, and nothing of the queue


def test_r1_a_start_whose_api_has_gone_is_ended(policy: Path) -> None:
    """HELLO comes while the job starts: nobody knows of it, so it must not run, and is not handed over."""
    with Helper(policy) as helper:
        helper.process.send_signal(signal.SIGSTOP)
        # Both are there at the helper's next turn, in which it cannot have heard of the exec.
        helper.send(Type.START, 7, **START, argv=[b"sleep", b"100"])
        helper.send(Type.HELLO, 50)
        helper.process.send_signal(signal.SIGCONT)
        welcome, before = _receive_until(helper, Type.WELCOME)
        assert (before, welcome.fields["live_jobs"]) == (0, 0)
        refused, before = _receive_until(helper, Type.ERROR)
        assert (before, refused.request_id, refused.fields["errno"]) == (0, 7, errno.ECANCELED)
        assert not list(helper.cgroup.glob("job-*"))


@pytest.mark.parametrize("stdio", [Stdio.STDIN, Stdio.TERMINAL])
def test_s1_stdin_is_not_closed_before_it_was_handed_over(policy: Path, stdio: Stdio) -> None:
    """STARTED waits in the queue with the number of an fd, which would be another's by the time it is sent."""
    with Helper(policy) as helper:
        first = helper.start("true")
        _queue_some(helper)
        helper.send_start("sleep", "100", stdio=stdio)
        wait_until("it runs", lambda: _runs_sleep(helper, first.handle + 1) and _polls(helper))
        helper.send(Type.CLOSE_STDIN, handle=first.handle + 1)
        ended, said = helper.end()
        assert (ended, "CLOSE_STDIN before STARTED" in said) == (VIOLATION, True)
        first.close()


def _runs_sleep(helper: Helper, handle: int) -> bool:
    with suppress(OSError):
        return any(Path(f"/proc/{pid}/comm").read_text() == "sleep\n" for pid in helper.pids_in(f"job-{handle}"))
    return False
