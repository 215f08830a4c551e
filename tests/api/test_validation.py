"""What a message may ask for: each bound at its last good value and at the first bad one, each refusal in its words."""

import asyncio
import errno
import os
import uuid as uuids
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from helper.wire import LIMITS, MAX_COUNT, MAX_STRING, Stage
from telehandler.api import validation
from telehandler.api.auth import Caller
from telehandler.api.validation import Refusal
from telehandler.common import bounds
from telehandler.common.errors import HelperRefused
from telehandler.common.states import State
from telehandler.jobs.request import DEFAULT_ENV
from telehandler.output.log import Cap, JobLog, Stream
from telehandler.pb import telehandler_pb2 as pb

INVALID, DENIED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED
LONGEST = MAX_STRING
REQUEST_ID = "4F1C2A9E-0b1d-4c52-9d0a-3f6f1f5b7a10"
YEAR_9999_S = 253_402_300_799


def _refused(code: grpc.StatusCode, words: str, call: Callable[[], Any]) -> None:
    with pytest.raises(Refusal) as raised:
        call()
    assert raised.value.code is code
    assert words in str(raised.value)
    assert not str(raised.value).startswith("(")  # of all its arguments


def _too_long(call: Callable[[], Any]) -> None:
    with pytest.raises(HelperRefused) as raised:
        call()
    assert (raised.value.stage, raised.value.errno) == (Stage.REQUEST, errno.E2BIG)


def _start(**fields: Any) -> Any:
    return validation.start_request(pb.StartJobRequest(**({"argv": [b"true"]} | fields)), "owner")


# StartJob


def test_argv_or_command_and_args() -> None:
    assert _start(argv=[b"a", b"", b"\xff"]).argv == [b"a", b"", b"\xff"]
    assert _start(argv=[], command="é", args=["b", ""]).argv == ["é".encode(), b"b", b""]
    for mixed in ({"command": "x"}, {"args": ["x"]}):
        _refused(INVALID, "argv goes without", lambda mixed=mixed: _start(**mixed))  # type: ignore[misc]


@pytest.mark.parametrize("fields", [{"argv": []}, {"argv": [b""]}, {"argv": [], "args": ["x"]}], ids=str)
def test_there_is_a_command(fields: dict[str, Any]) -> None:
    _refused(INVALID, "no command", lambda: _start(**fields))


def test_the_working_directory_is_absolute_or_none() -> None:
    assert [_start(working_directory=path).cwd for path in ("", "/", "/é")] == [b"", b"/", "/é".encode()]
    for path in ("a", "./", " /"):
        _refused(INVALID, "must be an absolute path", lambda path=path: _start(working_directory=path))  # type: ignore[misc]


def test_a_variable_has_a_name_without_an_equals_sign() -> None:
    assert _start(env={"A": b"b=c", "é": b"\xff"}).env == {b"A": b"b=c", "é".encode(): b"\xff"}
    for name in ("", "=", "A=", "=A"):
        _refused(INVALID, "variable's name", lambda name=name: _start(env={name: b"x"}))  # type: ignore[misc]


@pytest.mark.parametrize(
    "fields_of",
    [
        lambda text: {"argv": [b"true", text]},
        lambda text: {"env": {"A": text}},
        lambda text: {"env": {text.decode(): b""}},
        lambda text: {"working_directory": "/" + text[1:].decode()},
        lambda text: {"profile": text.decode()},
    ],
    ids="argument value name directory profile".split(),
)
def test_a_string_has_a_bound_and_no_nul(fields_of: Callable[[bytes], dict[str, Any]]) -> None:
    longest = LONGEST - len(b"A=") if "env" in fields_of(b"") else LONGEST
    assert _start(**fields_of(b"x" * longest)).owner == "owner"
    _refused(INVALID, "a NUL byte", lambda: _start(**fields_of(b"xx\0x")))
    _too_long(lambda: _start(**fields_of(b"x" * (LONGEST + 1))))


def test_arguments_and_variables_are_counted() -> None:
    most = MAX_COUNT - len(DEFAULT_ENV)
    assert len(_start(argv=[b"x"] * MAX_COUNT, env={str(n): b"" for n in range(most)}).argv) == MAX_COUNT
    _too_long(lambda: _start(argv=[b"x"] * (MAX_COUNT + 1)))
    _too_long(lambda: _start(env={str(n): b"" for n in range(most + 1)}))


def test_every_limit_reaches_the_job_under_its_name() -> None:
    limits = {name: number for number, name in enumerate(LIMITS.split(), 1)}
    assert _start(limits=limits).limits == limits
    assert set(_start().limits.values()) == {0}


@pytest.mark.parametrize(
    ("policy", "cap", "expected"),
    [
        (0, 0, (Cap(0, False), False)),
        (0, 5, (Cap(5, False), False)),
        (pb.LOG_POLICY_BLOCK, 5, (Cap(5, False), False)),
        (pb.LOG_POLICY_KILL, 5, (Cap(5, False), True)),
        (pb.LOG_POLICY_DROP_OLDEST, 5, (Cap(5, True), False)),
        (pb.LOG_POLICY_DROP_OLDEST, 0, "needs a cap"),
        (99, 5, "log policies are: "),
    ],
)
def test_a_log_policy_is_one_of_the_list_and_has_a_cap(policy: Any, cap: int, expected: Any) -> None:
    if isinstance(expected, str):
        _refused(INVALID, expected, lambda: _start(log_policy=policy, log_max_bytes=cap))
    else:
        wanted = _start(log_policy=policy, log_max_bytes=cap)
        assert (wanted.log_cap, wanted.log_kill) == expected


@pytest.mark.parametrize("text", ["x", REQUEST_ID[:-1], REQUEST_ID + "0", "0" * 8 + "-0000" * 3 + "-" + "0" * 12])
def test_a_request_id_is_a_uuid_and_not_all_zeros(text: str) -> None:
    _refused(INVALID, "a request id is a UUID", lambda: _start(request_id=text))


def test_a_request_id_has_one_form_and_a_digest_of_all_the_rest() -> None:
    one = _start(request_id=REQUEST_ID)
    assert one.request_id == REQUEST_ID.lower()
    assert _start(request_id=REQUEST_ID.lower()).request_sha256 == one.request_sha256
    assert (
        _start(request_id=REQUEST_ID, parent="users/owner").request_sha256 == one.request_sha256
    )  # who calls, said or not
    assert _start(request_id=REQUEST_ID, parent="users/other").request_sha256 == one.request_sha256
    variables = {str(number): b"x" for number in range(30)}
    turned = dict(reversed(variables.items()))
    assert len({_start(request_id=REQUEST_ID, env=env).request_sha256 for env in (variables, turned)}) == 1
    others: list[dict[str, Any]] = [{"argv": [b"false"]}, {"env": {"A": b""}}, {"profile": "p"}, {"log_max_bytes": 1}]
    digests = {_start(request_id=REQUEST_ID, **fields).request_sha256 for fields in others}
    assert len(digests | {one.request_sha256}) == len(others) + 1
    assert (_start().request_id, _start().request_sha256) == ("", "")


# WatchJobOutput


@pytest.fixture
def log(tmp_path: Path) -> Iterator[JobLog]:
    """Three lines: two of stdout, one of stderr between them."""
    log = JobLog(tmp_path / str(uuids.uuid4()), Cap(0, False))
    for stream, text in ((Stream.STDOUT, b"one\n"), (Stream.STDERR, b"two\n"), (Stream.STDOUT, b"three\n")):
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK)
        os.write(write_fd, text)
        os.close(write_fd)
        assert log.splice(read_fd, stream) == len(text)
        os.close(read_fd)
    yield log
    log.release()


def _watch(log: JobLog, **fields: Any) -> Any:
    async def run(work: Callable[[], Any]) -> Any:
        return work()

    return asyncio.run(validation.watch_options(pb.WatchJobOutputRequest(**fields), log, run))


def test_a_watch_follows_from_the_beginning_unless_told(log: JobLog) -> None:
    plain = _watch(log)
    assert (plain.offset, plain.follow, plain.stream, plain.until_ns) == (0, True, None, 0)
    assert not plain.zstd
    assert not plain.exact
    told = _watch(
        log, offset=3, no_follow=True, stream=2, accept_zstd=True, exact_times=True, until=Timestamp(seconds=9)
    )
    assert (told.offset, told.follow, told.stream, told.until_ns) == (3, False, Stream.STDERR, 9_000_000_000)
    assert told.zstd
    assert told.exact


@pytest.mark.parametrize("stream", [3, -1, 99])
def test_a_stream_is_one_of_two(log: JobLog, stream: Any) -> None:
    _refused(INVALID, "a stream is", lambda: _watch(log, stream=stream))


def test_an_offset_is_within_the_output(log: JobLog) -> None:
    assert _watch(log, offset=log.size).offset == log.size
    _refused(grpc.StatusCode.OUT_OF_RANGE, "which has 14 bytes so far", lambda: _watch(log, offset=log.size + 1))
    log.finish()
    _refused(grpc.StatusCode.OUT_OF_RANGE, "which has 14 bytes", lambda: _watch(log, offset=2**63))
    with pytest.raises(Refusal) as raised:
        _watch(log, offset=log.size + 1)
    assert "so far" not in str(raised.value)


def test_the_last_lines_go_without_another_beginning(log: JobLog) -> None:
    assert [_watch(log, tail_lines=count).offset for count in (0, 1, 2, 3, bounds.MAX_TAIL_LINES)] == [14, 8, 4, 0, 0]
    assert [_watch(log, tail_lines=1, stream=stream).offset for stream in (1, 2)] == [
        4,
        0,
    ]  # behind the line before, of its own stream
    _refused(
        INVALID, f"at most the last {bounds.MAX_TAIL_LINES}", lambda: _watch(log, tail_lines=bounds.MAX_TAIL_LINES + 1)
    )
    for other in ({"offset": 1}, {"since": Timestamp(nanos=1)}):
        _refused(INVALID, "the last lines go without", lambda other=other: _watch(log, tail_lines=1, **other))  # type: ignore[misc]


def test_since_and_offset_begin_at_the_later_one(log: JobLog) -> None:
    long_ago, never = Timestamp(seconds=1), Timestamp(seconds=YEAR_9999_S)
    assert [_watch(log, since=long_ago, offset=offset).offset for offset in (0, 5)] == [0, 5]
    assert _watch(log, since=never, offset=5).offset == log.size


@pytest.mark.parametrize(
    ("seconds", "nanos", "good"),
    [
        (YEAR_9999_S, 999_999_999, True), (-YEAR_9999_S, 0, True), (0, 0, True), (YEAR_9999_S + 1, 0, False),
        (-YEAR_9999_S - 1, 0, False), (1, -1, False), (1, 1_000_000_000, False),
    ],
)  # fmt: skip
def test_a_time_is_one_that_can_be_told(log: JobLog, seconds: int, nanos: int, good: bool) -> None:
    time = Timestamp(seconds=seconds, nanos=nanos)
    for name in ("since", "until"):
        if good:
            options = _watch(log, **{name: time})
            assert name == "since" or options.until_ns == seconds * 1_000_000_000 + nanos
        else:
            _refused(INVALID, "a time has from 0001", lambda name=name: _watch(log, **{name: time}))  # type: ignore[misc]


# Lists and signals

BOB, BOSS = Caller("bob", False), Caller("boss", True)


def test_s37_whose_jobs_a_list_has() -> None:
    assert [validation.owner(parent, BOB) for parent in ("", "users/bob")] == ["bob", "bob"]
    assert [validation.owner(parent, BOSS) for parent in ("", "users/bob", "users/-")] == ["boss", "bob", None]
    for parent in ("users/-", "users/boss", "users/bobby"):
        _refused(DENIED, "for admins to list", lambda parent=parent: validation.owner(parent, BOB))  # type: ignore[misc]
    for parent in ("bob", "users/", "users/a/b", "users", "Users/bob", "-"):
        for caller in (BOB, BOSS):
            _refused(INVALID, "the parent must be", lambda one=parent, who=caller: validation.owner(one, who))  # type: ignore[misc]


def test_states_are_those_of_the_list() -> None:
    assert validation.states([]) == frozenset()
    assert validation.states([state.value for state in State]) == frozenset(State)
    for number in (0, -1, 99):
        _refused(INVALID, "states are: ", lambda number=number: validation.states([number]))  # type: ignore[misc]


def test_a_signal_is_a_number_from_1_to_64() -> None:
    assert [validation.signal_number(number) for number in (1, 15, 64)] == [1, 15, 64]
    for number in (0, 65, -1):
        _refused(INVALID, "from 1 to 64", lambda number=number: validation.signal_number(number))  # type: ignore[misc]
