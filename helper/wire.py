"""The wire between the api and the root helper: message types, fields, bounds. Imports nothing of ours.

One SOCK_SEQPACKET datagram is one message: a fixed header, the fixed fields of its type, then its lists of
byte strings, as LAYOUT says. Anything else is a `WireError`; there is no recovery and no optional field.
`PROTOCOL.md` is the reference.
"""

import struct
from enum import IntEnum, IntFlag
from typing import Any, NamedTuple

VERSION = 3
MAGIC = b"TLHD"
MAX_MESSAGE = 200 * 1024  # bytes, header included: what a socket of the default buffer takes in one datagram
MAX_COUNT = 16 * 1024  # strings in a list
MAX_STRING = 128 * 1024 - 1  # bytes: as much as exec takes in one argument, its NUL not counted (execve(2))
MAX_TEXT = 1024  # bytes of an error's message
MAX_FDS = 4  # stdout, stderr, cgroup directory, stdin
MAX_SIGNAL = 64
# The limits of a START, each a u64, 0 for the policy's default: thousandths of a core; bytes; bytes or
# operations a second on each disk that backs the job's files; RLIMIT_FSIZE; RLIMIT_NOFILE; wall-clock milliseconds;
# sizes of /tmp and of /dev/shm.
LIMITS = "cpu_millis memory_bytes memory_high_bytes pids read_bps write_bps read_iops write_iops"
LIMITS += " file_bytes open_files timeout_ms tmp_bytes shm_bytes"


class WireError(Exception):
    """A datagram that is not a well-formed message."""


class Type(IntEnum):
    """Message types: requests below 128, the helper's replies and events from 128."""

    HELLO, START, SIGNAL, KILL, RELEASE, SHUTDOWN, CHECK, CANCEL, CLOSE_STDIN = 1, 2, 3, 4, 5, 6, 7, 8, 9
    WELCOME, STARTED, DONE, ERROR, EXITED, ADOPT, VERDICT = 128, 129, 130, 131, 132, 133, 134


class Stage(IntEnum):
    """Where a request failed; with an errno it is the whole story of an ERROR.

    REQUEST: understood and refused. LIMIT: over its maximum, or not to be enforced here. CAPACITY: too many
    jobs, or starts too fast. The rest are steps of a start, but for NO_SUCH_JOB.
    """

    REQUEST, POLICY, LIMIT, CAPACITY, NO_SUCH_JOB = 1, 2, 3, 4, 5
    CGROUP, CLONE, MOUNT, NETWORK, PRIVILEGE, CHDIR, EXEC = 16, 17, 18, 19, 20, 21, 22


class Stdio(IntFlag):
    """What a START may ask for besides two pipes of output and /dev/null as stdin; see PROTOCOL.md.

    MERGE_STDERR: one pipe for both. STDIN: a pipe too. TERMINAL, alone: all three are a terminal.
    """

    MERGE_STDERR, STDIN, TERMINAL = 1, 2, 4


_FACTS = "handle exit_code signal oom_kills user_usec system_usec max_rss_bytes cgroup_usec memory_peak_bytes"
_FACTS += " pids_refused killed timed_out"
_START = f"16sIQ{len(LIMITS.split())}Q", f"tag stdio parent {LIMITS}", "place argv env"
# Fixed fields (struct's codes, little-endian), their names, and the names of the lists that follow. A list is a
# u32 count of strings; a string a u32 count, its bytes without NUL, and a NUL. `tag` is opaque to the helper and
# comes back in ADOPT; `place` is the profile's name and the working directory, both may be empty; `stdio` is of Stdio;
# `parent` is the handle of a job in whose sandbox the command is to run, or 0; `start_id` is the request id of a START.
LAYOUT = {
    Type.HELLO: ("", "", ""),
    Type.START: _START,
    Type.CHECK: _START,
    Type.CANCEL: ("I", "start_id", ""),
    Type.SIGNAL: ("QI", "handle signal", ""),
    Type.KILL: ("Q", "handle", ""),
    Type.RELEASE: ("Q", "handle", ""),
    Type.CLOSE_STDIN: ("Q", "handle", ""),
    Type.SHUTDOWN: ("", "", ""),
    Type.WELCOME: ("II", "live_jobs max_jobs", "missing_controllers profiles"),
    Type.STARTED: ("QI", "handle uid", ""),
    Type.DONE: ("", "", ""),
    Type.ERROR: ("Ii", "stage errno", "text"),
    Type.EXITED: ("QIIQQQQQQQII", _FACTS, ""),
    Type.ADOPT: ("QI16s", "handle uid tag", ""),
    Type.VERDICT: ("", "", "rows"),
}
_HEADER = struct.Struct("<4sBBBBII")  # magic, version, type, fd count, zero, request id, length
_COUNT = struct.Struct("<I")


class Message(NamedTuple):
    """A message off the wire: `fields` has exactly the names of its type's LAYOUT."""

    type: Type
    request_id: int
    fd_count: int
    fields: dict[str, Any]


def pack(kind: Type, request_id: int, fd_count: int = 0, **fields: Any) -> bytes:
    """One datagram; the fields of LAYOUT in any order. Raises WireError when a bound would be passed."""
    fixed, names, lists = LAYOUT[kind]
    payload = struct.pack(f"<{fixed}", *(fields.pop(name) for name in names.split()))
    for name in lists.split():
        strings = fields.pop(name)
        if len(strings) > MAX_COUNT or any(b"\0" in text or len(text) > MAX_STRING for text in strings):
            raise WireError(f"{name}: over {MAX_COUNT} strings, or one with a NUL or over {MAX_STRING} bytes")
        payload += _COUNT.pack(len(strings)) + b"".join(_COUNT.pack(len(text)) + text + b"\0" for text in strings)
    if fields or _HEADER.size + len(payload) > MAX_MESSAGE:
        raise WireError(f"unknown fields, or a message of over {MAX_MESSAGE} bytes")
    return _HEADER.pack(MAGIC, VERSION, kind, fd_count, 0, request_id, len(payload)) + payload


def unpack(datagram: bytes) -> Message:
    """The message in a datagram. Raises WireError, and nothing else, whatever the bytes."""
    try:
        magic, version, number, fd_count, zero, request_id, length = _HEADER.unpack_from(datagram)
        size = len(datagram)
        if (magic, version, zero, length) != (MAGIC, VERSION, 0, size - _HEADER.size) or size > MAX_MESSAGE:
            raise WireError("bad magic, version, padding, size or length")
        kind = Type(number)
        fixed, names, lists = LAYOUT[kind]
        fields = dict(zip(names.split(), struct.unpack_from(f"<{fixed}", datagram, _HEADER.size), strict=True))
        at = _HEADER.size + struct.calcsize(f"<{fixed}")
        for name in lists.split():
            fields[name], at = _strings(datagram, at)
    except (struct.error, ValueError) as error:  # truncated; an unknown type
        raise WireError(str(error)) from None
    if at != len(datagram):
        raise WireError("trailing bytes")
    return Message(kind, request_id, fd_count, fields)


def _strings(datagram: bytes, at: int) -> tuple[list[bytes], int]:
    """The list at offset `at`, and the offset behind it; struct.error past the end."""
    (count,) = _COUNT.unpack_from(datagram, at)
    if count > MAX_COUNT:
        raise WireError(f"{count} strings; the bound is {MAX_COUNT}")
    at += _COUNT.size
    strings = []
    for _ in range(count):
        (size,) = _COUNT.unpack_from(datagram, at)
        text, at = datagram[at + _COUNT.size : at + _COUNT.size + size + 1], at + _COUNT.size + size + 1
        if size > MAX_STRING or len(text) != size + 1 or text.find(b"\0") != size:
            raise WireError("a string that is too long, truncated or not NUL-terminated once")
        strings.append(text[:-1])
    return strings, at
