"""What clients ask for in their messages, checked before anything is done: a Refusal names what is wrong."""

import errno
import hashlib
import re
import uuid as uuids
from collections.abc import Iterable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from helper.wire import LIMITS, MAX_COUNT, MAX_SIGNAL, MAX_STRING, Stage
from telehandler.api.auth import Caller
from telehandler.common import bounds
from telehandler.common.errors import HelperRefused
from telehandler.common.states import State
from telehandler.jobs.manager import MAX_GRACE_S
from telehandler.jobs.request import DEFAULT_ENV, Life, Request
from telehandler.jobs.selection import Marks
from telehandler.output import tail, watch
from telehandler.output.log import Cap, JobLog, Stream
from telehandler.pb import telehandler_pb2 as pb

M = TypeVar("M", bound=Message)

_MAX_SECONDS = 253_402_300_799  # of a time, either way: the last one of the year 9999
_MAX_LETTERS = (1 << 16) - 1
_UUID_PREFIX = re.compile("[0-9a-fA-F-]{1,36}", re.ASCII)
_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)

_NAME = re.compile("[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}", re.ASCII)
# As `ls` shows a UUID, or more of it: never a name, so that it means the same whatever jobs are called.
_LIKE_UUID = re.compile("[0-9a-f]{8}[0-9a-f-]*", re.ASCII | re.IGNORECASE)
NAMES = (
    "a job's given name has 1 to 63 letters, digits, _, . and -, the first a letter or digit, and does not look like "
    "the beginning of a UUID: eight digits from 0 to f"
)
_LABEL_KEY = re.compile("[a-zA-Z0-9][a-zA-Z0-9_./:-]{0,127}", re.ASCII)
_MAX_LABELS, _MAX_LABEL_BYTES = 64, 1024
_MAX_REMOVE_AFTER_S = 86_400.0


class Refusal(Exception):
    """Ends a call with a status."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


def parse(message: type[M], body: bytes) -> M:
    """A request off the wire."""
    try:
        return message.FromString(body)
    except DecodeError:
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"the request is no {message.DESCRIPTOR.name}") from None


def start_request(request: pb.StartJobRequest, owner: str) -> Request:
    """What the helper takes; what it would treat as a violation is refused here, with a reason."""
    if request.argv and (request.command or request.args):
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "argv goes without command and args")
    argv: list[bytes] = list(request.argv) or [text.encode() for text in (request.command, *request.args)]
    env = {name.encode(): value for name, value in request.env.items()}
    cwd = request.working_directory.encode()
    if not argv[0]:
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "no command: say what to run")
    if cwd and not cwd.startswith(b"/"):
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "the working directory must be an absolute path")
    if any(not name or b"=" in name for name in env):
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "a variable's name must not be empty or contain '='")
    texts = [*argv, *env, *env.values(), cwd, request.profile.encode()]
    if any(b"\0" in text for text in texts):
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "an argument, a variable or the directory has a NUL byte")
    lengths = [*map(len, texts), *(len(name) + 1 + len(value) for name, value in env.items())]
    if max(lengths) > MAX_STRING or len(argv) > MAX_COUNT or len(DEFAULT_ENV | env) > MAX_COUNT:
        raise HelperRefused(Stage.REQUEST, errno.E2BIG, bounds.COMMAND_TOO_LONG)
    limits = {name: getattr(request.limits, name) for name in LIMITS.split()}
    if request.exec_in_job and (any(limits.values()) or request.profile or request.validate_only):
        text = "a command in a job has the job's limits and profile: it takes none, and is not checked beforehand"
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, text)
    if request.restart_policy and (request.exec_in_job or request.stdin or request.terminal):
        text = "neither a command in a job, nor a job with stdin or a terminal, is started again"
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, text)
    if request.log_policy not in pb.LogPolicy.values():
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"log policies are: {', '.join(pb.LogPolicy.keys())}")
    cap = Cap(request.log_max_bytes, request.log_policy == pb.LOG_POLICY_DROP_OLDEST)
    if request.log_policy and not cap.max_bytes:
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "a log policy needs a cap, log_max_bytes")
    kill = request.log_policy == pb.LOG_POLICY_KILL
    identity = _identity(request, owner) if request.request_id else ("", "")
    made = Request(
        owner, argv, env, cwd, limits, request.profile, cap, kill, *identity, request.merge_stderr, life=life(request)
    )
    made = made._replace(stdin=request.stdin, terminal=request.terminal)
    if not request.HasField("terminal_size"):
        return made
    if not request.terminal:
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "a terminal's size goes with a terminal")
    return made._replace(size=terminal_size(request.terminal_size))


def life(request: pb.StartJobRequest) -> Life:
    """How the job is to be found, stopped, removed and restarted."""
    if request.given_name and (not _NAME.fullmatch(request.given_name) or _LIKE_UUID.fullmatch(request.given_name)):
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, NAMES)
    if len(request.labels) > _MAX_LABELS:
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"a job has at most {_MAX_LABELS} labels")
    for key, value in request.labels.items():
        _check_label(key, value)
    if request.restart_policy not in pb.RestartPolicy.values():
        text = f"restart policies are: {', '.join(pb.RestartPolicy.keys())}"
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, text)
    restarted = request.restart_policy == pb.RESTART_POLICY_ON_FAILURE
    if request.max_restarts and not restarted:
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "a number of restarts needs the policy to restart on failure")
    remove_after_s = seconds(request, "remove_after", _MAX_REMOVE_AFTER_S)
    if restarted and remove_after_s is not None:
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "a job is removed at its end, or restarted, and not both")
    number = signal_number(request.stop_signal) if request.stop_signal else Life().stop_signal
    grace_s = seconds(request, "stop_grace", MAX_GRACE_S)
    return Life(
        request.given_name,
        dict(request.labels),
        number,
        Life().stop_grace_ms if grace_s is None else round(grace_s * 1000),
        None if remove_after_s is None else round(remove_after_s * 1000),
        request.max_restarts if restarted else None,
    )


def seconds(request: Any, field: str, most: float) -> float | None:
    """A duration of a message from 0 to `most` seconds; None where it is not set."""
    if not request.HasField(field):
        return None
    duration = getattr(request, field)
    found = float(duration.seconds + duration.nanos / 1e9)
    if not 0 <= found <= most:
        what = field.replace("_", " ")
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"the {what} must be from 0 to {most:.0f} s")
    return found


def marks(request: pb.ListJobsRequest) -> Marks:
    """The names and labels that a list is to have."""
    if len(request.labels) > _MAX_LABELS or len(request.name_contains) > _MAX_LABELS:
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"a list is by at most {_MAX_LABELS} names and labels")
    labels: list[tuple[str, str | None]] = []
    for text in request.labels:
        key, equals, value = text.partition("=")
        _check_label(key, value)
        labels.append((key, value if equals else None))
    return Marks(tuple(request.name_contains), tuple(labels))


def reference(text: str) -> str:
    """What may be a job's given name or the beginning of its UUID."""
    if not _NAME.fullmatch(text) and not _UUID_PREFIX.fullmatch(text):
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "a reference is a job's given name, or how its UUID begins")
    return text


def _check_label(key: str, value: str) -> None:
    if not _LABEL_KEY.fullmatch(key) or "\0" in value or len(value.encode()) > _MAX_LABEL_BYTES:
        text = f"a label has a key of 1 to 128 letters, digits and _./:-, and a value of {_MAX_LABEL_BYTES} bytes"
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, text)


def _identity(request: pb.StartJobRequest, owner: str) -> tuple[str, str]:
    """The request id in its one form, and a digest of all the rest, which must be the same with the same id."""
    if not _UUID.fullmatch(request.request_id) or not uuids.UUID(request.request_id).int:
        text = "a request id is a UUID, such as 4f1c2a9e-0b1d-4c52-9d0a-3f6f1f5b7a10, and not all zeros"
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, text)
    rest = pb.StartJobRequest()
    rest.CopyFrom(request)
    rest.request_id, rest.parent = "", f"users/{owner}"
    return request.request_id.lower(), hashlib.sha256(rest.SerializeToString(deterministic=True)).hexdigest()


async def watch_options(request: pb.WatchJobOutputRequest, log: JobLog, run: tail.Run) -> watch.WatchOptions:
    """Where to begin, and what to send. `run`: the caller's turns for work in threads."""
    if request.stream not in (0, *Stream):
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "a stream is stdout, stderr, or unspecified for both")
    stream = Stream(request.stream) if request.stream else None
    since_ns, until_ns = _nanoseconds(request.since), _nanoseconds(request.until)
    offset = request.offset
    if request.HasField("tail_lines"):
        if offset or since_ns:
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT, "the last lines go without an offset and a time to begin at"
            )
        if request.tail_lines > bounds.MAX_TAIL_LINES:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"at most the last {bounds.MAX_TAIL_LINES} lines")
        offset = log.size
        if request.tail_lines:
            offset = await tail.find(log, request.tail_lines, stream, run)
    elif since_ns:
        offset = max(offset, log.at_time(since_ns))
    if offset > log.size:
        text = f"offset {offset} is beyond the output, which has {log.size} bytes{'' if log.ended else ' so far'}"
        raise Refusal(grpc.StatusCode.OUT_OF_RANGE, text)
    return watch.WatchOptions(offset, not request.no_follow, stream, until_ns, request.accept_zstd, request.exact_times)


def _nanoseconds(time: Timestamp) -> int:
    """Since the epoch; 0 for none."""
    if not -_MAX_SECONDS <= time.seconds <= _MAX_SECONDS or not 0 <= time.nanos < 1_000_000_000:
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "a time has from 0001 to 9999 as its year and nanos from 0 up")
    return time.seconds * 1_000_000_000 + time.nanos


def owner(parent: str, caller: Caller) -> str | None:
    """Whose jobs are to be listed; None: everybody's."""
    user = parent.removeprefix("users/")
    if parent and (user == parent or not user or "/" in user):
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "the parent must be users/{user}, users/-, or empty")
    if not parent:
        return caller.name
    if user == "-" and caller.admin:  # AIP-159
        return None
    if user == "-" or not caller.may_see(user):
        raise Refusal(grpc.StatusCode.PERMISSION_DENIED, "the jobs of others are for admins to list")
    return user


def states(numbers: Iterable[int]) -> frozenset[State]:
    try:
        return frozenset(State(number) for number in numbers)
    except ValueError:
        text = f"states are: {', '.join(pb.JobState.Name(state) for state in State)}"
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, text) from None


def uuid_prefix(text: str) -> str:
    """The beginning of UUIDs, in their one form."""
    if text and not _UUID_PREFIX.fullmatch(text):
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "a prefix of UUIDs has 1 to 36 hexadecimal digits and dashes")
    return text.lower()


def terminal_size(size: pb.TerminalSize) -> tuple[int, int]:
    if not (1 <= size.rows <= _MAX_LETTERS and 1 <= size.columns <= _MAX_LETTERS):
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"a terminal has from 1 to {_MAX_LETTERS} rows and columns")
    return size.rows, size.columns


def signal_number(number: int) -> int:
    if not 1 <= number <= MAX_SIGNAL:
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"a signal is a number from 1 to {MAX_SIGNAL}")
    return number
