"""R18: whatever offset, number of lines or job a watcher names, the answer is clear: through the client, and raw."""

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from support.raw_client import SERVICE, RawClient, Response
from support.servers import Server
from support.wait import wait_until

from telehandler.common import bounds
from telehandler.pb import telehandler_pb2 as pb

OK, OUT_OF_RANGE = grpc.StatusCode.OK, grpc.StatusCode.OUT_OF_RANGE
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
TEXT = "for i in $(seq 1 300); do echo out $i; [ $((i % 3)) = 0 ] && echo err $i >&2; done; printf 'no newline'"
CAP = 256 << 10
HUGE = [1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


@pytest.fixture(scope="module")
def owner(server: Server) -> Iterator[RawClient]:
    with RawClient(server, server.ssl / "client") as owner:
        yield owner


def _ended(server: Server, *command: str) -> str:
    name = server.detach(*command)
    assert server.client("wait", name).returncode == 0
    return name


@pytest.fixture(scope="module")
def job(server: Server) -> str:
    """A job that has ended."""
    return _ended(server, "bash", "-c", TEXT)


@pytest.fixture(scope="module")
def whole(server: Server, job: str) -> bytes:
    """All that it wrote, in the order of arrival."""
    done = server.client("watch", "--raw", job)
    assert done.returncode == 0
    return done.stdout


@pytest.fixture(scope="module")
def live(server: Server) -> Iterator[str]:
    """A job that runs on, with 5 bytes of output."""
    name = server.detach("sh", "-c", "echo four; exec sleep 1000")
    wait_until("it has written", lambda: b"stdout bytes       5" in server.client("status", name).stdout)
    yield name
    server.client("rm", "-f", name)


def watch_output(owner: RawClient, name: str, **options: Any) -> Response:
    return owner.call(f"/{SERVICE}/WatchJobOutput", pb.WatchJobOutputRequest(name=name, **options))


def data(answer: Response) -> bytes:
    assert answer.code is OK, answer
    return b"".join(pb.JobOutput.FromString(body).data for body in answer.bodies)


def test_r18_any_offset_within_the_output(server: Server, owner: RawClient, job: str, whole: bytes) -> None:
    assert len(whole) > 3000
    for offset in (0, 1, 777, len(whole) - 1, len(whole)):
        assert server.client("watch", "--raw", "--offset", str(offset), job).stdout == whole[offset:]
        assert data(watch_output(owner, job, offset=offset)) == whole[offset:]


def test_r18_past_the_end_of_a_job_that_has_ended(server: Server, owner: RawClient, job: str, whole: bytes) -> None:
    for offset in (len(whole) + 1, *HUGE):
        text = f"offset {offset} is beyond the output, which has {len(whole)} bytes"
        for no_follow in (False, True):
            answer = watch_output(owner, job, offset=offset, no_follow=no_follow)
            assert (answer.code, answer.details, answer.bodies) == (OUT_OF_RANGE, text, [])
        done = server.client("watch", "--offset", str(offset), job)
        assert (done.returncode, done.stdout) == (125, b"")
        assert done.stderr == f"telehandler: {text}\n".encode()


def test_r18_past_the_end_of_a_job_that_runs(server: Server, owner: RawClient, live: str) -> None:
    for offset in (6, *HUGE):
        answer = watch_output(owner, live, offset=offset)
        text = f"offset {offset} is beyond the output, which has 5 bytes so far"
        assert (answer.code, answer.details, answer.bodies) == (OUT_OF_RANGE, text, [])
    assert data(watch_output(owner, live, offset=5, no_follow=True)) == b""
    assert data(watch_output(owner, live, offset=4, no_follow=True)) == b"\n"
    done = server.client("watch", "-F", "--offset", "1", live)
    assert (done.returncode, done.stdout) == (0, b"our\n")


@pytest.mark.parametrize("offset", ["-1", "-9223372036854775808", str(1 << 64), "9" * 40, "1.5", "0x10", ""])
def test_r18_what_is_no_offset(server: Server, job: str, offset: str) -> None:
    done = server.client("watch", f"--offset={offset}", job)
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"--offset" in done.stderr
    assert b"Traceback" not in done.stderr


def test_r18_a_negative_number_on_the_wire_is_a_huge_one(owner: RawClient, job: str) -> None:
    """-1 as a varint of ten bytes, which a client in another language may send for field 16."""
    body = pb.WatchJobOutputRequest(name=job).SerializeToString() + b"\x80\x01" + b"\xff" * 9 + b"\x01"
    answer = owner.call(f"/{SERVICE}/WatchJobOutput", body)
    assert answer.code is OUT_OF_RANGE
    assert answer.details.startswith(f"offset {(1 << 64) - 1} is beyond")


def test_r18_the_last_lines(server: Server, owner: RawClient, job: str, whole: bytes, live: str) -> None:
    lines = whole.splitlines(keepends=True)
    for count in (0, 1, 2, 5, len(lines) - 1, len(lines), len(lines) + 1, 1000, bounds.MAX_TAIL_LINES):
        expected = b"".join(lines[-count:]) if count else b""
        assert server.client("watch", "--raw", "-n", str(count), job).stdout == expected
        assert data(watch_output(owner, job, tail_lines=count)) == expected
    assert data(watch_output(owner, live, tail_lines=0, no_follow=True)) == b""
    assert data(watch_output(owner, live, tail_lines=1, no_follow=True)) == b"four\n"
    for count in (bounds.MAX_TAIL_LINES + 1, *HUGE):
        answer = watch_output(owner, job, tail_lines=count)
        assert (answer.code, answer.details) == (INVALID, f"at most the last {bounds.MAX_TAIL_LINES} lines")


def test_r18_the_last_lines_of_a_job_without_output(server: Server, owner: RawClient) -> None:
    name = _ended(server, "true")
    for count in (0, 1, 1000):
        assert data(watch_output(owner, name, tail_lines=count)) == b""
    assert data(watch_output(owner, name, offset=0)) == b""
    assert watch_output(owner, name, offset=1).code is OUT_OF_RANGE


def test_r18_the_last_lines_of_one_stream(server: Server, job: str) -> None:
    done = server.client("watch", "--stream", "stderr", "-n", "2", job)
    assert (done.stdout, done.stderr) == (b"", b"err 297\nerr 300\n")
    done = server.client("watch", "--stream", "stdout", "-n", "2", job)
    assert (done.stdout, done.stderr) == (b"out 300\nno newline", b"")


def test_r18_what_is_evicted_is_a_gap(server: Server, owner: RawClient) -> None:
    command = ["bash", "-c", "seq 1 400000"]
    done = server.client("run", "-d", "--log-max-size", "256k", "--log-policy", "drop-oldest", "--", *command)
    name = done.stdout.decode().strip()
    assert server.client("wait", name).returncode == 0
    everything = b"".join(b"%d\n" % number for number in range(1, 400001))
    kept = data(watch_output(owner, name))
    floor = len(everything) - len(kept)
    assert kept == everything[floor:]
    assert 0 < len(kept) <= CAP + 4096
    for offset in (0, 1, floor - 1, floor, floor + 1, len(everything)):
        bodies = [pb.JobOutput.FromString(body) for body in watch_output(owner, name, offset=offset).bodies]
        gap = [(body.offset, body.gap_bytes) for body in bodies if body.gap_bytes]
        assert gap == ([(floor, floor - offset)] if offset < floor else [])
        assert b"".join(body.data for body in bodies) == everything[max(offset, floor) :]
    done = server.client("watch", "--offset", "7", name)
    assert done.stdout == kept
    lost = f"{floor - 7} bytes before byte {floor} are no longer kept: the log has a cap"
    assert done.stderr == f"telehandler: {lost}\n".encode()
    assert watch_output(owner, name, offset=len(everything) + 1).code is OUT_OF_RANGE
    assert (
        data(watch_output(owner, name, tail_lines=bounds.MAX_TAIL_LINES)) == kept
    )  # beyond the start: all that is kept


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tail_lines": 3, "offset": 4}, "go without an offset"),
        ({"tail_lines": 0, "offset": (1 << 64) - 1}, "go without an offset"),
        ({"stream": 3}, "a stream is stdout, stderr"),
        ({"stream": -1}, "a stream is stdout, stderr"),
        ({"since": {"seconds": 1 << 62}}, "a time has"),
        ({"until": {"seconds": -(1 << 63)}}, "a time has"),
        ({"until": {"nanos": -1}}, "a time has"),
    ],
    ids=str,
)
def test_r18_invalid_options_are_refused(owner: RawClient, job: str, options: dict[str, Any], text: str) -> None:
    answer = watch_output(owner, job, **options)
    assert (answer.code, answer.bodies) == (INVALID, [])
    assert text in answer.details


def test_r18_times_at_their_bounds(owner: RawClient, job: str, whole: bytes) -> None:
    last = {"seconds": 253_402_300_799, "nanos": 999_999_999}  # of the year 9999
    first = {"seconds": -62_135_596_800}
    assert data(watch_output(owner, job, since=last)) == data(watch_output(owner, job, until=first)) == b""
    assert data(watch_output(owner, job, since=first)) == data(watch_output(owner, job, until=last)) == whole


def test_r18_a_job_that_is_unknown_removed_or_no_name(
    server: Server, owner: RawClient, make_server: Callable[..., Server]
) -> None:
    removed = _ended(server, "true")
    assert server.client("rm", removed).returncode == 0
    for name in (removed, f"users/tele-tester/jobs/{uuid.uuid4()}", f"users/nobody/jobs/{uuid.uuid4()}"):
        for options in ({}, {"offset": (1 << 64) - 1}, {"tail_lines": 0}):
            answer = watch_output(owner, name, **options)
            assert (answer.code, answer.details) == (NOT_FOUND, "no such job, or not yours")
        done = server.client("watch", name)
        assert (done.returncode, done.stderr) == (125, b"telehandler: no such job, or not yours\n")
    for name in ("", "x", "users/tele-tester/jobs/x", f"jobs/{uuid.uuid4()}"):
        assert watch_output(owner, name).code is INVALID


def test_r18_a_finished_job_tells_its_end_from_any_offset(server: Server, owner: RawClient) -> None:
    name = server.detach("sh", "-c", "echo out; kill -9 $$")
    assert server.client("wait", name).returncode == 128 + signal.SIGKILL
    for options in ({}, {"offset": 4}, {"tail_lines": 0}, {"no_follow": True}):
        trailing = dict(watch_output(owner, name, **options).trailing)
        assert (trailing["telehandler-state"], trailing["telehandler-exit-code"]) == ("failed", "137")
    assert os.fsencode(server.client("watch", "--offset", "4", name).stdout.decode()) == b""
