"""Every message in every state; whatever is not in the table ends the helper, its jobs and their cgroups."""

import array
import os
import random
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from driver import ENV, TAG, VIOLATION, Helper
from servers import alive, processes_with, wait_until

from helper import wire
from helper.wire import Type

pytestmark = pytest.mark.usefixtures("as_root")
FIELDS: dict[Type, dict[str, Any]] = {
    Type.HELLO: {},
    Type.START: {
        **dict.fromkeys(wire.LIMITS.split(), 0),
        "tag": TAG,
        "place": [b"", b""],
        "argv": [b"true"],
        "env": ENV,
    },
    Type.SIGNAL: {"handle": 1, "signal": 15},
    Type.KILL: {"handle": 1},
    Type.RELEASE: {"handle": 1},
    Type.SHUTDOWN: {},
    Type.WELCOME: {"live_jobs": 0, "max_jobs": 0, "missing_controllers": [], "profiles": []},
    Type.STARTED: {"handle": 1, "uid": 1},
    Type.DONE: {},
    Type.ERROR: {"stage": 1, "errno": 1, "text": [b""]},
    Type.EXITED: dict.fromkeys(wire.LAYOUT[Type.EXITED][1].split(), 0),
    Type.ADOPT: {"handle": 1, "uid": 1, "tag": TAG},
    Type.VERDICT: {"rows": [b"a b"]},
}
FIELDS[Type.CHECK] = FIELDS[Type.START]
REQUESTS = {Type.HELLO, Type.CHECK, Type.START, Type.SIGNAL, Type.KILL, Type.RELEASE, Type.SHUTDOWN}


def violates(helper: Helper, mark: str | None = None) -> None:
    """Asserts that the helper has ended as after a violation, with nothing left."""
    status, errors = helper.end()
    assert status == VIOLATION, errors
    assert errors.startswith("telehandler-helper: every job was killed")
    assert "Traceback" not in errors
    assert not helper.cgroup.exists()
    assert not mark or not [pid for pid in processes_with(mark) if alive(pid)]


@pytest.mark.parametrize("kind", [kind for kind in Type if kind is not Type.HELLO])
def test_before_hello_nothing_else_is_permitted(policy: Path, kind: Type) -> None:
    with Helper(policy, hello=False) as helper:
        helper.send(kind, **FIELDS[kind])
        violates(helper)


@pytest.mark.parametrize("kind", [kind for kind in Type if kind not in REQUESTS])
def test_replies_are_no_requests(policy: Path, kind: Type) -> None:
    with Helper(policy) as helper:
        helper.start("sleep", "1.7320508")
        helper.send(kind, **FIELDS[kind])
        violates(helper, "1.7320508")


@pytest.mark.parametrize("kind", [Type.SIGNAL, Type.KILL, Type.RELEASE])
def test_an_unknown_handle_is_an_error_reply(policy: Path, kind: Type) -> None:
    with Helper(policy) as helper:
        reply = helper.ask(kind, **FIELDS[kind])
        assert (reply.type, reply.fields["stage"]) == (Type.ERROR, wire.Stage.NO_SUCH_JOB)
        assert helper.run("true").facts["exit_code"] == 0


def _patched(at: int, value: int) -> Callable[[bytes], bytes]:
    return lambda datagram: datagram[:at] + bytes([value]) + datagram[at + 1 :]


@pytest.mark.parametrize(
    "change",
    [
        _patched(0, 0),
        _patched(4, 9),
        _patched(5, 77),
        _patched(6, 1),
        _patched(7, 1),
        _patched(12, 1),
        lambda datagram: datagram[:-1],
        lambda datagram: datagram + b"\0",
        lambda datagram: datagram[:8],
        lambda datagram: datagram + bytes(wire.MAX_MESSAGE),
    ],
    ids="magic version type fd-count zero length truncated trailing short oversized".split(),
)
def test_malformed_datagrams(policy: Path, change: Callable[[bytes], bytes]) -> None:
    with Helper(policy) as helper:
        helper.start("sleep", "2.2360679")
        helper.sock.send(change(wire.pack(Type.KILL, 1, handle=1)))
        violates(helper, "2.2360679")


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (Type.SIGNAL, {"handle": 1, "signal": 0}),
        (Type.SIGNAL, {"handle": 1, "signal": 65}),
        (Type.RELEASE, {"handle": 1}),
        (Type.START, FIELDS[Type.START] | {"argv": []}),
        (Type.START, FIELDS[Type.START] | {"argv": [b""]}),
        (Type.START, FIELDS[Type.START] | {"env": [b"A"]}),
        (Type.START, FIELDS[Type.START] | {"env": [b"=x"]}),
        (Type.START, FIELDS[Type.START] | {"env": [b"A=1", b"A=2"]}),
        (Type.START, FIELDS[Type.START] | {"place": [b""]}),
    ],
)
def test_what_no_api_of_ours_would_ask(policy: Path, kind: Type, changes: dict[str, Any]) -> None:
    with Helper(policy) as helper:
        helper.start("sleep", "2.4494897")
        helper.send(kind, **changes)
        violates(helper, "2.4494897")


def test_random_datagrams_end_it_in_order(policy: Path) -> None:
    chance = random.Random(7)
    for _ in range(10):
        with Helper(policy) as helper:
            helper.sock.send(chance.randbytes(chance.randrange(1, 300)))
            violates(helper)


def test_an_empty_datagram_ends_it_like_eof(policy: Path) -> None:
    with Helper(policy) as helper:
        helper.sock.send(b"")
        assert helper.end()[0] == 0
        assert not helper.cgroup.exists()


def test_fds_that_are_passed_are_discarded(policy: Path) -> None:
    with Helper(policy) as helper:
        fds = Path(f"/proc/{helper.process.pid}/fd")
        before = len(os.listdir(fds))
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
        for _ in range(200):
            helper.sock.sendmsg([wire.pack(Type.KILL, 1, handle=99)], passed)
            assert helper.receive()[0].type is Type.ERROR
        assert len(os.listdir(fds)) == before


def test_hello_again_hands_the_live_jobs_over(policy: Path) -> None:
    with Helper(policy) as helper:
        ended, live = helper.start("sh", "-c", "echo early; exit 4"), helper.start("sh", "-c", "echo late; sleep 100")
        helper.exited(ended)
        helper.send(Type.HELLO, 50)
        welcome, _ = helper.receive()
        assert (welcome.type, welcome.request_id, welcome.fields["live_jobs"]) == (Type.WELCOME, 50, 2)
        adopted = [helper.receive() for _ in range(2)]
        assert [message.fields["handle"] for message, _ in adopted] == [ended.handle, live.handle]
        assert {message.fields["tag"] for message, _ in adopted} == {TAG}
        again, _ = helper.receive()
        assert (again.type, again.fields["exit_code"]) == (Type.EXITED, 4)
        # The pipes are the same: nothing was read, nothing is lost.
        assert os.read(adopted[0][1][0], 100) == b"early\n"
        assert os.read(adopted[1][1][0], 100) == b"late\n"
        assert helper.ask(Type.KILL, handle=live.handle).type is Type.DONE
        assert helper.exited(live)["signal"] == 9
        for _, fds in adopted:
            for fd in fds:
                os.close(fd)
        ended.close()
        live.close()


def test_an_api_that_stops_reading_does_not_stop_the_reaping(policy: Path) -> None:
    with Helper(policy) as helper:
        jobs = [helper.start("sleep", "100") for _ in range(5)]
        pids = [
            int(pid)
            for job in jobs
            for pid in (helper.cgroup / f"job-{job.handle}" / "cgroup.procs").read_text().split()
        ]
        helper.sock.setblocking(False)
        try:
            while True:  # requests whose replies are not read, until the helper reads no more
                helper.send(Type.KILL, handle=99)
        except BlockingIOError:
            pass
        for pid in pids:
            with suppress(ProcessLookupError):  # it went with its init
                os.kill(pid, 9)
        wait_until("all cgroups are removed", lambda: not list(helper.cgroup.glob("job-*")))
        helper.sock.settimeout(30)
        end = time.monotonic() + 30
        while len(helper.events) < 5 and time.monotonic() < end:
            message, _ = helper.receive()
            helper.events += [message] if message.type is Type.EXITED else []
        assert len(helper.events) == 5
        for job in jobs:
            job.close()


def test_shutdown(policy: Path) -> None:
    with Helper(policy) as helper:
        helper.start("sleep", "2.6457513")
        assert helper.ask(Type.SHUTDOWN).type is Type.DONE
        assert helper.end()[0] == 0
        assert not helper.cgroup.exists()
        assert not [pid for pid in processes_with("2.6457513") if alive(pid)]
