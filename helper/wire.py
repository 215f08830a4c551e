"""The wire between the api and the root helper: message types, fields, bounds. Imports nothing of ours.

One SOCK_SEQPACKET datagram is one message: a fixed header, then the fields that LAYOUT names for its
type, little-endian. Anything else is a `WireError`; there is no recovery and no optional field.
`PROTOCOL.md` is the reference.
"""

import struct
from enum import IntEnum
from typing import Any, NamedTuple

VERSION = 1
MAGIC = b"TLHD"
MAX_MESSAGE = 64 * 1024  # bytes, header included
MAX_COUNT = 1024  # strings in a list, limits
MAX_STRING = 32 * 1024  # bytes
MAX_TEXT = 1024  # bytes of an error's message
MAX_FDS = 4  # stdout, stderr, cgroup directory, stdin
MAX_SIGNAL = 64
FLAG_STDIN = 1  # START: make a stdin pipe and hand over its write end; else /dev/null


class WireError(Exception):
    """A datagram that is not a well-formed message."""


class Type(IntEnum):
    """Message types: requests below 128, the helper's replies and events from 128."""

    HELLO, START, SIGNAL, KILL, RELEASE, SHUTDOWN = 1, 2, 3, 4, 5, 6
    WELCOME, STARTED, DONE, ERROR, EXITED, ADOPT = 128, 129, 130, 131, 132, 133


class Limit(IntEnum):
    """Limits a START may carry, each a u64.

    CPU_MILLIS: thousandths of one core. *_BPS: bytes a second, *_IOPS: operations a second, on each disk
    that backs the job's files. FILE_BYTES: RLIMIT_FSIZE. OPEN_FILES: RLIMIT_NOFILE.
    """

    CPU_MILLIS, MEMORY_BYTES, MEMORY_HIGH_BYTES, PIDS = 1, 2, 3, 4
    READ_BPS, WRITE_BPS, READ_IOPS, WRITE_IOPS = 5, 6, 7, 8
    FILE_BYTES, OPEN_FILES = 9, 10


class Stage(IntEnum):
    """Where a request failed; with an errno it is the whole story of an ERROR.

    REQUEST: understood and refused. LIMIT: over its maximum, or not to be enforced here. CAPACITY: too many
    jobs, or starts too fast. The rest are steps of a start, but for NO_SUCH_JOB.
    """

    REQUEST, POLICY, LIMIT, CAPACITY, NO_SUCH_JOB = 1, 2, 3, 4, 5
    CGROUP, CLONE, MOUNT, NETWORK, PRIVILEGE, CHDIR, EXEC = 16, 17, 18, 19, 20, 21, 22


# Field codes: Q u64, I u32, i i32; T a job's tag, 16 bytes opaque to the helper, back in ADOPT;
# s a string: u32 count, bytes, NUL; A a u32 count of strings; L a u32 count of limits: u32, u64.
LAYOUT = {
    Type.HELLO: "",
    Type.START: "tag:T flags:I profile:s cwd:s argv:A env:A limits:L",
    Type.SIGNAL: "handle:Q signal:I",
    Type.KILL: "handle:Q",
    Type.RELEASE: "handle:Q",
    Type.SHUTDOWN: "",
    Type.WELCOME: "live_jobs:I max_jobs:I missing_controllers:s profiles:s",
    Type.STARTED: "handle:Q uid:I",
    Type.DONE: "",
    Type.ERROR: "stage:I errno:i text:s",
    Type.EXITED: "handle:Q exit_code:I signal:I oom_kills:Q user_usec:Q system_usec:Q max_rss_bytes:Q"
    " cgroup_usec:Q memory_peak_bytes:Q killed:I",
    Type.ADOPT: "handle:Q uid:I tag:T",
}
_HEADER = struct.Struct("<4sBBBBII")  # magic, version, type, fd count, zero, request id, length
_FIXED = {"Q": struct.Struct("<Q"), "I": struct.Struct("<I"), "i": struct.Struct("<i"), "T": struct.Struct("16s")}
_LIMIT = struct.Struct("<IQ")


class Message(NamedTuple):
    """A message off the wire: `fields` has exactly the names of its type's LAYOUT."""

    type: Type
    request_id: int
    fd_count: int
    fields: dict[str, Any]


class Start(NamedTuple):
    """START's fields: a job as the api may ask for it."""

    tag: bytes
    flags: int
    profile: bytes  # empty: the policy's first
    cwd: bytes  # absolute; empty: /
    argv: list[bytes]
    env: list[bytes]  # NAME=value
    limits: dict[Limit, int]


def _string(value: bytes) -> bytes:
    if b"\0" in value or len(value) > MAX_STRING:
        raise WireError(f"a NUL byte inside a string, or over {MAX_STRING} bytes")
    return _FIXED["I"].pack(len(value)) + value + b"\0"


def _encode(code: str, value: Any) -> bytes:
    if code in _FIXED:
        return _FIXED[code].pack(value)
    if code == "s":
        return _string(value)
    if len(value) > MAX_COUNT:
        raise WireError(f"{len(value)} items; the bound is {MAX_COUNT}")
    items = map(_string, value) if code == "A" else (_LIMIT.pack(*item) for item in value.items())
    return _FIXED["I"].pack(len(value)) + b"".join(items)


def pack(kind: Type, request_id: int, fd_count: int = 0, **fields: Any) -> bytes:
    """One datagram; `fields` in any order. Raises WireError when a bound would be passed."""
    names = [part.split(":") for part in LAYOUT[kind].split()]
    payload = b"".join(_encode(code, fields.pop(name)) for name, code in names)
    if fields or _HEADER.size + len(payload) > MAX_MESSAGE:
        raise WireError(f"unknown fields, or a message of over {MAX_MESSAGE} bytes")
    return _HEADER.pack(MAGIC, VERSION, kind, fd_count, 0, request_id, len(payload)) + payload


class _Reader:
    """Takes fields off a payload; every read is checked against what is left."""

    def __init__(self, payload: bytes) -> None:
        self.rest = memoryview(payload)

    def fixed(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack(self.raw(layout.size))

    def raw(self, size: int) -> bytes:
        if size > len(self.rest):
            raise WireError("truncated field")
        piece, self.rest = bytes(self.rest[:size]), self.rest[size:]
        return piece

    def count(self, maximum: int) -> int:
        (value,) = self.fixed(_FIXED["I"])
        if value > maximum:
            raise WireError(f"count {value} over {maximum}")
        return int(value)

    def string(self) -> bytes:
        value = self.raw(self.count(MAX_STRING))
        if b"\0" in value or self.raw(1) != b"\0":
            raise WireError("a string that is not NUL-terminated once")
        return value

    def field(self, code: str) -> Any:
        if code in _FIXED:
            return self.fixed(_FIXED[code])[0]
        if code == "s":
            return self.string()
        if code == "A":
            return [self.string() for _ in range(self.count(MAX_COUNT))]
        pairs = [self.fixed(_LIMIT) for _ in range(self.count(len(Limit)))]
        limits = {Limit(number): value for number, value in pairs}
        if len(limits) != len(pairs):
            raise WireError("a limit given twice")
        return limits


def unpack(datagram: bytes) -> Message:
    """The message in a datagram. Raises WireError, and nothing else, whatever the bytes."""
    try:
        magic, version, kind, fd_count, zero, request_id, length = _HEADER.unpack_from(datagram)
        if (magic, version, zero) != (MAGIC, VERSION, 0) or len(datagram) > MAX_MESSAGE:
            raise WireError("bad magic, version, padding or size")
        if length != len(datagram) - _HEADER.size:
            raise WireError("the length field differs from the datagram's")
        reader, kind = _Reader(datagram[_HEADER.size :]), Type(kind)
        names = [part.split(":") for part in LAYOUT[kind].split()]
        fields = {name: reader.field(code) for name, code in names}
    except (struct.error, ValueError) as error:  # too short for a header; an unknown type or limit
        raise WireError(str(error)) from None
    if reader.rest:
        raise WireError("trailing bytes")
    return Message(kind, request_id, fd_count, fields)
