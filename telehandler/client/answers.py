"""What a server's answers say, checked: a server that is broken or hostile costs an error, and no more (S53).

Raises TelehandlerError where an answer is none that a server of ours gives.
"""

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from telehandler.common.errors import TelehandlerError

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from telehandler.pb import telehandler_pb2 as pb

MAX_CHUNK_BYTES = 4 << 20  # of a message, uncompressed
MAX_PAGES = 10_000  # of a list
STDOUT, STDERR = 1, 2
_MAX_OFFSET = (1 << 64) - 1
_MAX_EXIT_CODE, _MAX_SIGNAL = 255, 64
_UUID_LETTERS = frozenset("0123456789abcdef-")


class End(NamedTuple):
    """How a job ended, from the trailing metadata of its watch. `exit_code` None: it was lost, and nobody knows."""

    state: str
    reason: str
    exit_code: int | None
    signal: int
    detail: str


def job_name(name: str) -> str:
    """The name of a job that was just started: users/{user}/jobs/{uuid}, safe in a file and on a terminal."""
    words = name.split("/")
    good = len(words) == 4 and words[0] == "users" and words[1] and words[2] == "jobs" and name.isprintable()
    if not good or len(words[3]) != 36 or not set(words[3]) <= _UUID_LETTERS:
        raise TelehandlerError("the server answered the start with what is no job's name: is it a telehandler server?")
    return name


def unpack(output: "pb.JobOutput") -> None:
    """Puts what came compressed into `data`; no more than MAX_CHUNK_BYTES, whatever the message states."""
    if output.stream not in (STDOUT, STDERR) and not output.gap_bytes:
        raise TelehandlerError(f"the server sent output of stream {output.stream}, which there is not")
    if output.zstd:
        output.data = _decompressed(output.zstd, output.length)
        output.ClearField("zstd")
    if output.offset + len(output.data) > _MAX_OFFSET:
        raise TelehandlerError(f"the server sent output at byte {output.offset}, where there can be none")


def _decompressed(frame: bytes, length: int) -> bytes:
    import zstandard  # only for those who get something compressed

    fault = "the server sent output that cannot be decompressed"
    if length > MAX_CHUNK_BYTES:
        raise TelehandlerError(f"{fault}: {length} bytes in one message")
    try:
        # What the frame states is what zstandard allocates, whatever max_output_size says: looked at before.
        parameters = zstandard.get_frame_parameters(frame)
        stated = parameters.content_size
        if stated not in (length, zstandard.CONTENTSIZE_UNKNOWN) or parameters.window_size > 2 * MAX_CHUNK_BYTES:
            raise TelehandlerError(f"{fault}: it is not as long as it says")
        data = zstandard.ZstdDecompressor().decompress(frame, max_output_size=max(length, 1))
    except (zstandard.ZstdError, MemoryError) as error:
        raise TelehandlerError(f"{fault}: {error}") from None
    if len(data) != length:
        raise TelehandlerError(f"{fault}: it is not as long as it says")
    return data


def end(metadata: dict[str, str]) -> End | None:
    """A job's end, None when it has not ended."""
    if "telehandler-state" not in metadata:
        return None
    reason = metadata.get("telehandler-reason", "")
    code = None if reason == "lost" else _number(metadata, "telehandler-exit-code", _MAX_EXIT_CODE)
    number = _number(metadata, "telehandler-signal", _MAX_SIGNAL)
    return End(metadata["telehandler-state"], reason, code, number, metadata.get("telehandler-detail", ""))


def errno_of(metadata: dict[str, str]) -> int:
    """Of a start that failed; 0 for what is none."""
    text = metadata.get("telehandler-errno", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0


def status(answer: "pb.JobStatus") -> "pb.JobStatus":
    """A job's status whose numbers are numbers of a job."""
    if answer.HasField("end_time") and exit_code(answer) is not None:
        _bounded(answer.exit_code, _MAX_EXIT_CODE, "exit code")
    _bounded(answer.signal, _MAX_SIGNAL, "signal")
    _bounded(answer.stop_signal, _MAX_SIGNAL, "stop signal")
    for stamp in (answer.start_time, answer.end_time, answer.restart_time):
        time_text(stamp)
    return answer


def exit_code(answer: "pb.JobStatus") -> int | None:
    """None while it runs, and for a job that was lost: nobody knows."""
    lost = reason_name(answer) == "lost"
    return answer.exit_code if answer.HasField("end_time") and not lost else None


def state_name(answer: "pb.JobStatus") -> str:
    """In small letters; a number that a newer server has is shown as it is."""
    from telehandler.common.states import State  # which run does without

    return _name(State, answer.state)


def reason_name(answer: "pb.JobStatus") -> str:
    from telehandler.common.states import Reason

    return _name(Reason, answer.reason)


def time_text(stamp: "Timestamp") -> str:
    """As of RFC 3339."""
    try:
        return stamp.ToJsonString()
    except ValueError:
        raise TelehandlerError("the server sent a time that is none") from None


def _name(kind: type[IntEnum], number: int) -> str:
    try:
        return kind(number).name.lower()
    except ValueError:
        return str(number)


def _number(metadata: dict[str, str], key: str, most: int) -> int:
    text, what = metadata.get(key, ""), key.removeprefix("telehandler-").replace("-", " ")
    if not text.isascii() or not text.isdigit() or len(text) > len(str(most)):
        raise TelehandlerError(f"the server sent the {what} {text[:20]!r}, which no job has")
    return _bounded(int(text), most, what)


def _bounded(number: int, most: int, what: str) -> int:
    if not 0 <= number <= most:
        raise TelehandlerError(f"the server sent the {what} {number}, which no job has")
    return number
