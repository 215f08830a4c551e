"""Every message in every state; whatever is not in the table ends the helper, its jobs and their cgroups."""

import array
import errno
import os
import random
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checkout import ROOT
from support.helper_driver import ENV, TAG, VIOLATION, Helper
from support.helper_startup import helper_command
from support.process_usage import process_usage, rss_bytes
from support.processes import live_processes_with
from support.wait import DEADLINE_S

from helper import monitor, wire
from helper.monitor import State
from helper.wire import Type

pytestmark = pytest.mark.usefixtures("as_root")
FIELDS: dict[Type, dict[str, Any]] = {
    Type.HELLO: {},
    Type.START: {
        **dict.fromkeys(wire.LIMITS.split(), 0),
        "tag": TAG,
        "stdio": 0,
        "parent": 0,
        "place": [b"", b""],
        "argv": [b"true"],
        "env": ENV,
    },
    Type.SIGNAL: {"handle": 1, "signal": 15},
    Type.KILL: {"handle": 1},
    Type.RELEASE: {"handle": 1},
    Type.CLOSE_STDIN: {"handle": 1},
    Type.SHUTDOWN: {},
    Type.WELCOME: {"live_jobs": 0, "max_jobs": 0, "missing_controllers": [], "profiles": []},
    Type.STARTED: {"handle": 1, "uid": 1},
    Type.DONE: {},
    Type.ERROR: {"stage": 1, "errno": 1, "text": [b""]},
    Type.EXITED: dict.fromkeys(wire.LAYOUT[Type.EXITED][1].split(), 0),
    Type.ADOPT: {"handle": 1, "uid": 1, "tag": TAG},
    Type.VERDICT: {"rows": [b"a b"]},
}
FIELDS[Type.CHECK], FIELDS[Type.CANCEL] = FIELDS[Type.START], {"start_id": 99}
REQUESTS = {kind for kind in Type if kind < Type.WELCOME}


def violates(helper: Helper, mark: str | None = None) -> None:
    """Asserts that the helper has ended as after a violation, with nothing left."""
    status, errors = helper.end()
    assert status == VIOLATION, errors
    assert errors.startswith("telehandler-helper: every job was killed")
    assert errors.count("\n") == 1
    assert "Traceback" not in errors
    assert not helper.cgroup.exists()
    assert not mark or not live_processes_with(mark)


@pytest.mark.parametrize("kind", [kind for kind in Type if kind is not Type.HELLO])
def test_s6_before_hello_nothing_else_is_permitted(policy: Path, kind: Type) -> None:
    with Helper(policy, hello=False) as helper:
        helper.send(kind, **FIELDS[kind])
        violates(helper)


@pytest.mark.parametrize("kind", [kind for kind in Type if kind not in REQUESTS])
def test_s6_replies_are_no_requests(policy: Path, kind: Type) -> None:
    with Helper(policy) as helper:
        helper.start("sleep", "1.7320508")
        helper.send(kind, **FIELDS[kind])
        violates(helper, "1.7320508")


@pytest.mark.parametrize("kind", [Type.SIGNAL, Type.KILL, Type.CLOSE_STDIN, Type.RELEASE, Type.CANCEL])
def test_s1_an_unknown_handle_is_an_error_reply(policy: Path, kind: Type) -> None:
    with Helper(policy) as helper:
        reply = helper.request(kind, **FIELDS[kind])
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
def test_s1_malformed_datagrams_end_all(policy: Path, change: Callable[[bytes], bytes]) -> None:
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
        (Type.START, FIELDS[Type.START] | {"stdio": 5}),
    ],
)
def test_s1_what_no_api_of_ours_would_ask_ends_all(policy: Path, kind: Type, changes: dict[str, Any]) -> None:
    with Helper(policy) as helper:
        helper.start("sleep", "2.4494897")
        helper.send(kind, **changes)
        violates(helper, "2.4494897")


def test_s4_random_datagrams_end_it_in_order(policy: Path) -> None:
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


def test_s3_fds_that_came_before_the_helper_are_discarded(policy: Path) -> None:
    """They are in its socket before it can refuse any, whatever the kernel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        reader, writer = os.pipe()
        ours.sendmsg([wire.pack(Type.HELLO, 1)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [writer]))])
        os.close(writer)
        with subprocess.Popen(helper_command(ROOT, policy), stdin=theirs.fileno(), cwd="/") as process:
            try:
                ours.settimeout(DEADLINE_S)
                assert ours.recv(wire.MAX_MESSAGE)[5] == Type.WELCOME
                os.set_blocking(reader, False)
                assert os.read(reader, 1) == b""  # nobody has the other end
            finally:
                ours.close()
                os.close(reader)
        assert process.returncode == 0


def test_s3_fds_that_are_passed_are_discarded_and_nothing_grows(policy: Path) -> None:
    """Where the kernel refuses them, they never come."""
    passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
    request = wire.pack(Type.KILL, 1, handle=99)

    def ask(count: int) -> None:
        for _ in range(count // _BATCH):
            for _ in range(_BATCH):
                _send_with_fds(helper.sock, request, passed)
            for _ in range(_BATCH):
                assert helper.sock.recv(wire.MAX_MESSAGE)[5] == Type.ERROR

    with Helper(policy) as helper:
        ask(1000)
        before = _fds_and_memory(helper.process.pid)
        ask(100_000)
        fds, memory = _fds_and_memory(helper.process.pid)
        assert fds == before[0]
        assert memory - before[1] < 1 << 20


def _send_with_fds(sock: socket.socket, request: bytes, passed: list[Any]) -> None:
    """Where the kernel refuses the fds, the request goes without."""
    try:
        sock.sendmsg([request], passed)
    except PermissionError:
        sock.send(request)


_BATCH = 10  # fewer than what a socket holds


def _fds_and_memory(pid: int) -> tuple[int, int]:
    return process_usage(pid).fds, rss_bytes(pid)


def _raw(kind: Type, payload: bytes) -> bytes:
    """A datagram that `pack` would not make."""
    return wire._HEADER.pack(wire.MAGIC, wire.VERSION, kind, 0, 0, 1, len(payload)) + payload


_U32 = (2**32 - 1).to_bytes(4, "little")
_FIXED = bytes(struct.calcsize(f"<{wire.LAYOUT[Type.START][0]}"))


def _string(text: bytes, end: bytes = b"\0") -> bytes:
    return len(text).to_bytes(4, "little") + text + end


def _start_with(argv: bytes) -> bytes:
    """START's payload with these bytes as its list argv; all else is good, so nothing but argv ends the helper."""
    place = (2).to_bytes(4, "little") + 2 * _string(b"")
    return _FIXED + place + argv + bytes(4)


_ONE = (1).to_bytes(4, "little")
_ROOM = wire.MAX_MESSAGE - wire._HEADER.size - len(_start_with(bytes(4) + 2 * _string(b"")))


@pytest.mark.parametrize(
    "payload",
    [
        _start_with(_U32),  # a list of 2^32 - 1 strings
        _start_with((wire.MAX_COUNT + 1).to_bytes(4, "little") + _string(b"x") * (wire.MAX_COUNT + 1)),
        _start_with(_ONE + _U32 + b"x\0"),  # a string of 2^32 - 1 bytes
        _start_with(_ONE + _string(b"a\0b")),  # a NUL inside
        _start_with(_ONE + _string(b"a", end=b"b")),  # no NUL behind
        _start_with(_ONE + _string(b"x" * (wire.MAX_STRING + 1))),
        # One byte over the bound, in two strings that are within theirs.
        _start_with((2).to_bytes(4, "little") + _string(b"x" * wire.MAX_STRING)
                    + _string(b"x" * (_ROOM + 1 - wire.MAX_STRING))),
        bytes(wire.MAX_MESSAGE + 2000),  # longer than is read
    ],
    ids="count list string inner-nul no-nul long-string bound truncated".split(),
)  # fmt: skip
def test_s2_whatever_is_over_a_bound_ends_all(policy: Path, payload: bytes) -> None:
    with Helper(policy) as helper:
        helper.start("sleep", "2.8284271")
        helper.sock.send(_raw(Type.START, payload))
        violates(helper, "2.8284271")


def test_s2_the_payload_of_the_tests_above_is_good_but_for_argv(policy: Path) -> None:
    with Helper(policy) as helper:
        helper.sock.send(_raw(Type.START, _start_with(_ONE + _string(b"/no/such"))))
        reply, _ = helper.receive()
        assert (reply.type, reply.fields["errno"]) == (Type.ERROR, errno.ENOENT)


def test_s2_messages_at_the_bounds_are_served(policy: Path) -> None:
    """The widest the parser takes: so the tests above fail for what is over, and for nothing else."""
    with Helper(policy) as helper:
        longest = b"x" * wire.MAX_STRING
        assert helper.run("printf", "%s", longest).stdout == longest
        ended = helper.run("sh", "-c", "echo $#", *["x"] * (wire.MAX_COUNT - 3))
        assert ended.stdout == f"{wire.MAX_COUNT - 4}\n".encode()


def test_s5_no_request_has_a_field_for_what_the_helper_decides() -> None:
    allowed = {"tag", "handle", "start_id", "signal", "stdio", "parent", "place", "argv", "env", *wire.LIMITS.split()}
    for kind in REQUESTS:
        _, names, lists = wire.LAYOUT[kind]
        assert {*names.split(), *lists.split()} <= allowed
    words = {word for name in allowed for word in name.split("_")}
    assert not words & {"uid", "gid", "pid", "path", "cgroup", "mount", "flags", "fd", "root", "device"}


def test_s5_handles_are_never_used_again_and_name_the_cgroups(policy: Path) -> None:
    with Helper(policy) as helper:
        seen: list[int] = []
        for _ in range(10):
            job = helper.start("sh", "-c", "sleep 100 & wait")
            assert [path.name for path in helper.cgroup.glob("job-*")] == [f"job-{job.handle}"]
            helper.request(Type.KILL, handle=job.handle)
            helper.finish(job)
            seen.append(job.handle)
            reply = helper.request(Type.KILL, handle=job.handle)
            assert reply.fields["stage"] == wire.Stage.NO_SUCH_JOB
        assert seen == sorted(set(seen))


@pytest.mark.parametrize("text", [b"../../x", b"/", b"telehandler.1", b"\n\x1b[2J", b"\xff\xfe", b"{disk}", b"%s%n"])
def test_s5_hostile_strings_make_no_name_anywhere(policy: Path, text: bytes) -> None:
    """A tag, a profile and a directory are looked up or given back; nothing is called after them."""
    with Helper(policy) as helper:
        stage, _, said = helper.start_error("true", place=[text, b""])
        assert stage is wire.Stage.POLICY
        assert text.decode("latin-1") not in said
        job = helper.start("sleep", "100", tag=text.ljust(16, b"\0"), env=[b"X=" + text])
        assert [path.name for path in helper.cgroup.iterdir() if path.is_dir()] == [f"job-{job.handle}"]
        job.close()
        helper.sock.close()
        assert helper.end() == (0, "")


@pytest.mark.parametrize("name", [*wire.LIMITS.split(), "handle"])
def test_s5_the_largest_number_in_any_field_is_refused(policy: Path, name: str) -> None:
    with Helper(policy) as helper:
        if name == "handle":
            for kind in (Type.KILL, Type.SIGNAL, Type.RELEASE):
                reply = helper.request(kind, **(FIELDS[kind] | {"handle": 2**64 - 1}))
                assert reply.fields["stage"] == wire.Stage.NO_SUCH_JOB
        else:
            for value in (2**63, 2**64 - 1):
                assert helper.start_error("true", **{name: value})[:2] == (wire.Stage.LIMIT, errno.EINVAL)
        assert helper.run("true").facts["exit_code"] == 0


def test_s6_the_table_permits_what_the_protocol_says() -> None:
    """The other side of the tests above, which send each type in each state."""
    table = {state: set(kinds) for state, kinds in monitor.PERMITTED.items()}
    assert table == {State.NEW: {Type.HELLO}, State.READY: REQUESTS, State.ENDING: set()}


def test_s33_the_log_has_nothing_of_what_the_api_sends(policy: Path) -> None:
    secret = b"s3cret\nfake: line\x1b[31m"
    with Helper(policy) as helper:
        helper.start_error("/no/" + secret.decode(), env=[b"TOKEN=" + secret])
        helper.start("sleep", secret)  # ends at once: no such time
        datagram = wire.pack(Type.START, 1, **(FIELDS[Type.START] | {"env": [secret], "argv": [secret]}))
        helper.sock.send(datagram)
        _, said = helper.end()
    assert "s3cret" not in said
    assert said.isascii()
    assert said.endswith("\n")
    assert said[:-1].isprintable()
    assert len(said) < 600
