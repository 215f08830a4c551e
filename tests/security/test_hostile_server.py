"""S53: what a broken or hostile server sends costs a client an error: no memory, no raw control character, no hang."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import zstandard
from support.scripted_server import ENDED, NAME, ScriptedServer

from telehandler.client import answers
from telehandler.common.errors import TelehandlerError
from telehandler.pb import telehandler_pb2 as pb

BOMB = 3 << 30


@pytest.fixture
def hostile(ssl: Path) -> Iterator[ScriptedServer]:
    server = ScriptedServer(ssl)
    yield server
    server.close()


def _frame_that_states(size: int, data: bytes = b"x") -> bytes:
    """A zstd frame (RFC 8878) whose header states `size` bytes of content: magic, descriptor, size, one raw block."""
    block = (len(data) << 3 | 1).to_bytes(3, "little") + data
    return b"\x28\xb5\x2f\xfd" + bytes([0b11100000]) + size.to_bytes(8, "little") + block


def _output(**fields: Any) -> bytes:
    return pb.JobOutput(**{"stream": 1, **fields}).SerializeToString()


WINDOW = b"\x28\xb5\x2f\xfd\x00\xa0" + (9).to_bytes(3, "little") + b"x"  # no size, a window of a gigabyte


def _frame_of_runs(size: int) -> bytes:
    """No size, a window of 128 KiB, and blocks of four bytes that are as much each: it unpacks to zeros."""
    block = 128 << 10
    blocks = [
        (block << 3 | 1 << 1 | (at + block >= size)).to_bytes(3, "little") + b"\0" for at in range(0, size, block)
    ]
    return b"\x28\xb5\x2f\xfd\x00\x38" + b"".join(blocks)


BAD_OUTPUT = {
    "zstd states gigabytes": _output(zstd=_frame_that_states(BOMB), length=1),
    "and so does the message": _output(zstd=_frame_that_states(BOMB), length=BOMB),
    "zstd that unpacks to more": _output(zstd=zstandard.ZstdCompressor().compress(bytes(100 << 20)), length=10),
    "no size, gigabytes as its window": _output(zstd=WINDOW, length=1),
    "no size, and what it unpacks to is too long": _output(zstd=_frame_of_runs(32 << 20), length=32 << 20),
    "no zstd": _output(zstd=b"nothing of the kind", length=10),
    "zstd that is shorter": _output(zstd=zstandard.ZstdCompressor().compress(b"abc"), length=5),
    "stream 0": _output(stream=0, data=b"x"),
    "stream 7": _output(stream=7, data=b"x"),
    "behind the last offset": _output(offset=(1 << 64) - 1, data=b"xx"),
}


@pytest.mark.parametrize("verb", ["run", "watch"])
@pytest.mark.parametrize("name", BAD_OUTPUT)
def test_s53_output_that_is_none(hostile: ScriptedServer, tmp_path: Path, name: str, verb: str) -> None:
    hostile.watch = [BAD_OUTPUT[name]]
    hostile.client(tmp_path, verb, *(["--", "true"] if verb == "run" else [NAME])).refused("sent")


def test_s53_a_benchmark_takes_no_more_of_it(hostile: ScriptedServer, tmp_path: Path) -> None:
    hostile.watch = [BAD_OUTPUT["and so does the message"]]
    seen = hostile.client(tmp_path, "benchmark", "--discard", "--watchers", "2", "--processes", "1", "--", "true")
    assert seen.code == 1
    assert b"cannot be decompressed" in seen.stderr
    seen.harmless()


@pytest.mark.parametrize("kind", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_s53_messages_that_grpc_would_unpack(hostile: ScriptedServer, tmp_path: Path, kind: grpc.Compression) -> None:
    """A megabyte on the wire, a gigabyte in memory."""
    hostile.compression = kind
    hostile.start = pb.JobResponse(name=NAME, sandbox=[bytes(200 << 20)]).SerializeToString()
    seen = hostile.client(tmp_path, "run", "-d", "--", "true")
    assert seen.code == 125
    assert len(seen.stderr.splitlines()) == 1
    seen.harmless()


def _refused(call: Callable[[], object], *words: str) -> None:
    """As the command line tells it: one line."""
    with pytest.raises(TelehandlerError) as caught:
        call()
    assert caught.value.exit_code == 125
    assert "the server " in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["-1", "256", "1" + "0" * 20, "9" * 5000, "", "x", "1.5", "\xb2", None])
@pytest.mark.parametrize("key", ["exit-code", "signal"])
def test_s53_numbers_of_an_end_that_are_none(text: str | None, key: str) -> None:
    metadata = dict(ENDED) | ({} if text is None else {f"telehandler-{key}": text})
    if text is None:
        del metadata[f"telehandler-{key}"]
    _refused(lambda: answers.end(metadata), key.replace("-", " "))


def test_s53_a_number_that_is_none_ends_a_watch(hostile: ScriptedServer, tmp_path: Path) -> None:
    assert hostile.client(tmp_path, "watch", NAME)[:3] == (0, b"", b"")
    hostile.end = tuple((key, "1" + "0" * 20 if key.endswith("code") else value) for key, value in ENDED)
    hostile.client(tmp_path, "watch", NAME).refused("exit code")


STATUS = {
    "exit code": {"exit_code": 256},
    "negative": {"exit_code": -3},
    "signal": {"signal": 1 << 30},
    "start": {"start_time": {"seconds": 1 << 62}},
    "nanos": {"start_time": {"nanos": -5}},
    "end": {"end_time": {"seconds": -(1 << 62)}},
}


@pytest.mark.parametrize("name", STATUS)
def test_s53_a_status_whose_numbers_are_none(name: str) -> None:
    status = pb.JobStatus(state="JOB_STATE_FAILED", reason="JOB_REASON_EXITED")
    status.end_time.seconds = 1
    answers.status(status)
    status.MergeFrom(pb.JobStatus(**STATUS[name]))  # type: ignore[arg-type]
    _refused(lambda: answers.status(status), "sent")


@pytest.mark.parametrize("verb", ["status", "ls", "wait"])
def test_s53_every_verb_looks_at_them(hostile: ScriptedServer, tmp_path: Path, verb: str) -> None:
    hostile.status.start_time.seconds = 1 << 62
    hostile.pages = lambda _: pb.ListJobsResponse(jobs=[hostile.status]).SerializeToString()
    hostile.client(tmp_path, verb, *([] if verb == "ls" else [NAME])).refused("a time")


def test_s53_a_state_that_only_a_newer_server_has(hostile: ScriptedServer, tmp_path: Path) -> None:
    hostile.status.state, hostile.status.reason = 77, 78  # type: ignore[assignment]
    seen = hostile.client(tmp_path, "status", NAME)
    assert seen.code == 0
    assert b"77" in seen.stdout
    assert b"78" in seen.stdout


NAMES = [
    *("", "x", "users/a/jobs/b", f"{NAME}\n", NAME.replace("tester", "\x1b[31mtester"), NAME.upper()),
    *(NAME.replace("tele", "\x9b5n"), NAME.replace("tester", "\u202e"), f"{NAME}/x", NAME.replace("tele-tester", "")),
    "users/" + "x" * 100_000,
]


@pytest.mark.parametrize("name", NAMES)
def test_s53_a_name_that_is_none(name: str) -> None:
    assert answers.job_name(NAME) == NAME
    _refused(lambda: answers.job_name(name), "no job's name")


@pytest.mark.parametrize("how", [["-d"], []])
def test_s53_a_run_prints_and_writes_no_such_name(hostile: ScriptedServer, tmp_path: Path, how: list[str]) -> None:
    hostile.start = pb.JobResponse(name=NAME.replace("tester", "\x1b[31mtester")).SerializeToString()
    hostile.client(tmp_path, "run", *how, "--", "true").refused("no job's name")
    assert not (tmp_path / "jid").exists()


def test_s53_no_control_character_reaches_a_terminal(hostile: ScriptedServer, tmp_path: Path) -> None:
    """Of any field, in any verb that prints it."""
    bad = "a\x1b[2J\x9b\r\n\x07\u202eb"
    hostile.status.MergeFrom(pb.JobStatus(name=bad, owner=bad, argv=[bad.encode(), b"\xff\x1b["]))
    hostile.pages = lambda _: pb.ListJobsResponse(jobs=[hostile.status]).SerializeToString()
    hostile.end = tuple((name, f"{value}\x1b[2J" if name.endswith("detail") else value) for name, value in ENDED)
    hostile.start = pb.JobResponse(
        name=NAME, sandbox=[f"env {bad}".encode()], unenforced_limits=[bad]
    ).SerializeToString()
    for verb, *words in (
        ["status", NAME],
        ["ls"],
        ["ls", "-q"],
        ["ls", "-a"],
        ["status", "-o", "json", NAME],
        ["run", "--dry-run", "--", "true"],
        ["run", "-d", "--", "true"],
        ["watch", NAME],
    ):
        seen = hostile.client(tmp_path, verb, *words)
        for line in (seen.stdout + seen.stderr).decode().splitlines():
            assert line.isprintable(), (verb, line)
        seen.harmless()
    hostile.abort = (grpc.StatusCode.INTERNAL, bad, ())
    seen = hostile.client(tmp_path, "ls")
    assert (seen.code, len(seen.stderr.decode().splitlines())) == (125, 1)
    assert seen.stderr.decode().strip().isprintable()


@pytest.mark.parametrize("errno", ["-5", "x", "", "9" * 5000, "2"])
def test_s53_an_errno_that_is_none(hostile: ScriptedServer, tmp_path: Path, errno: str) -> None:
    trailing = (("telehandler-stage", "exec"), ("telehandler-errno", errno))
    hostile.abort = (grpc.StatusCode.FAILED_PRECONDITION, "no", trailing)
    seen = hostile.client(tmp_path, "run", "--", "true")
    assert (seen.code, seen.stderr) == (127 if errno == "2" else 126, b"telehandler: no\n")


def test_s53_a_list_without_an_end(hostile: ScriptedServer, tmp_path: Path) -> None:
    """Pages without a job that say there are more; and more jobs than were asked for."""
    hostile.pages = lambda _: pb.ListJobsResponse(next_page_token="x").SerializeToString()
    hostile.client(tmp_path, "ls").refused("empty page")
    hostile.client(tmp_path, "status", "abc").refused("empty page")
    jobs = [hostile.status] * 5000
    hostile.pages = lambda _: pb.ListJobsResponse(jobs=jobs, next_page_token="x").SerializeToString()
    seen = hostile.client(tmp_path, "ls", "-q", "--limit", "3")
    assert (seen.code, len(seen.stdout.splitlines())) == (0, 3)


def test_s53_a_wait_that_is_answered_too_soon(hostile: ScriptedServer, tmp_path: Path) -> None:
    hostile.status.ClearField("end_time")
    hostile.client(tmp_path, "wait", NAME).refused("does not know")


def test_s53_bodies_that_are_no_message(hostile: ScriptedServer, tmp_path: Path) -> None:
    hostile.start = b"\xff\xff\xff"
    hostile.watch = [b"\xff\xff\xff"]
    for verb, *words in (["run", "--", "true"], ["watch", NAME]):
        seen = hostile.client(tmp_path, verb, *words)
        assert seen.code == 125
        assert len(seen.stderr.splitlines()) == 1
        seen.harmless()
