"""The wire between the api and the root helper: headers, fields, bounds. Imports nothing of ours.

One SOCK_SEQPACKET datagram is one message: a fixed header, then a payload of fixed little-endian
integers and byte strings, each string a u32 count, its bytes and a terminating NUL. Anything else
is a `WireError`; there is no recovery and no optional field. `PROTOCOL.md` is the reference.
"""

import struct
from enum import IntEnum
from typing import NamedTuple

VERSION = 1
MAGIC = b"TLHD"
MAX_MESSAGE = 64 * 1024  # bytes, header included
MAX_ARGS = 1024
MAX_ENV = 1024
MAX_STRING = 32 * 1024
MAX_LIMITS = 32
MAX_TEXT = 1024  # bytes of an error's message
MAX_FDS = 4  # stdout, stderr, cgroup directory, stdin
TAG_BYTES = 16

HEADER = struct.Struct("<4sBBBBII")  # magic, version, type, fd count, zero, request id, length


class WireError(Exception):
    """A datagram that is not a well-formed message."""


class Type(IntEnum):
    """Message types: requests below 128, the helper's replies and events from 128."""

    HELLO = 1
    START = 2
    SIGNAL = 3
    KILL = 4
    RELEASE = 5
    SHUTDOWN = 6
    WELCOME = 128
    STARTED = 129
    DONE = 130
    ERROR = 131
    EXITED = 132
    ADOPT = 133


class Limit(IntEnum):
    """Limits a START may carry, each a u64."""

    CPU_MILLIS = 1  # thousandths of one core
    MEMORY_BYTES = 2
    MEMORY_HIGH_BYTES = 3
    PIDS = 4
    READ_BPS = 5  # bytes a second, on each disk that backs the job's files
    WRITE_BPS = 6
    READ_IOPS = 7
    WRITE_IOPS = 8
    FILE_BYTES = 9  # RLIMIT_FSIZE
    OPEN_FILES = 10  # RLIMIT_NOFILE


class Stage(IntEnum):
    """Where a request failed; with an errno it is the whole story of an ERROR."""

    REQUEST = 1  # the request was understood and refused
    POLICY = 2
    LIMIT = 3  # a limit over its maximum, or one that cannot be enforced here
    CAPACITY = 4  # too many jobs, or starts too fast
    CGROUP = 5
    CLONE = 6
    MOUNT = 7
    NETWORK = 8
    PRIVILEGE = 9
    CHDIR = 10
    EXEC = 11
    NO_SUCH_JOB = 12


FLAG_STDIN = 1  # START: make a stdin pipe and hand over its write end; else /dev/null


class Header(NamedTuple):
    type: Type
    request_id: int
    fd_count: int


class Start(NamedTuple):
    """A job as the api may ask for it. `tag` is opaque to the helper and comes back in ADOPT."""

    tag: bytes
    argv: tuple[bytes, ...]
    env: tuple[bytes, ...]  # NAME=value
    cwd: bytes  # empty: the policy's default
    profile: bytes  # empty: the policy's default
    limits: tuple[tuple[Limit, int], ...]
    flags: int


class Welcome(NamedTuple):
    live_jobs: int  # as many ADOPT messages follow
    max_jobs: int
    missing_controllers: bytes  # comma-separated
    profiles: bytes  # comma-separated, the default first


class Exited(NamedTuple):
    """Facts attested by the helper, read before the cgroup was removed."""

    handle: int
    exit_code: int  # of the main process; 0 when a signal ended it
    signal: int  # 0 when it exited
    oom_kills: int  # memory.events oom_kill; 0 without the memory controller
    user_usec: int
    system_usec: int
    max_rss_bytes: int
    cgroup_usage_usec: int
    memory_peak_bytes: int  # 0 without the memory controller
    killed: int  # 1 when the helper killed it (KILL, limits, shutdown)


_EXITED = struct.Struct("<QIIQQQQQQI")
_U64 = struct.Struct("<Q")
_U32 = struct.Struct("<I")
_SIGNAL = struct.Struct("<QI")
_STARTED = struct.Struct("<QI")
_WELCOME = struct.Struct("<II")
_ERROR = struct.Struct("<HHi")
_LIMIT = struct.Struct("<IQ")


class Reader:
    """Takes fields off a payload; every read is bounds-checked, `end` refuses trailing bytes."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._at = 0

    def fixed(self, layout: struct.Struct) -> tuple[int, ...]:
        return layout.unpack(self.raw(layout.size))

    def raw(self, size: int) -> bytes:
        if size > len(self._payload) - self._at:
            raise WireError("truncated field")
        piece = self._payload[self._at : self._at + size]
        self._at += size
        return piece

    def u32(self, maximum: int) -> int:
        (value,) = self.fixed(_U32)
        if value > maximum:
            raise WireError(f"count {value} over {maximum}")
        return value

    def string(self, maximum: int = MAX_STRING) -> bytes:
        value = self.raw(self.u32(maximum))
        if b"\0" in value or self.raw(1) != b"\0":
            raise WireError("string is not NUL-terminated once")
        return value

    def strings(self, maximum: int) -> tuple[bytes, ...]:
        return tuple(self.string() for _ in range(self.u32(maximum)))

    def end(self) -> None:
        if self._at != len(self._payload):
            raise WireError("trailing bytes")


def _string(value: bytes, maximum: int = MAX_STRING) -> bytes:
    if b"\0" in value:
        raise WireError("a NUL byte inside a string")
    if len(value) > maximum:
        raise WireError(f"a string of {len(value)} bytes; the bound is {maximum}")
    return _U32.pack(len(value)) + value + b"\0"


def _strings(values: tuple[bytes, ...], maximum: int) -> bytes:
    if len(values) > maximum:
        raise WireError(f"{len(values)} strings; the bound is {maximum}")
    return _U32.pack(len(values)) + b"".join(_string(value) for value in values)


def pack(kind: Type, request_id: int, payload: bytes = b"", fd_count: int = 0) -> bytes:
    """One datagram. Raises WireError when it would be over MAX_MESSAGE."""
    if HEADER.size + len(payload) > MAX_MESSAGE:
        raise WireError(f"a message of {HEADER.size + len(payload)} bytes; the bound is {MAX_MESSAGE}")
    return HEADER.pack(MAGIC, VERSION, kind, fd_count, 0, request_id, len(payload)) + payload


def unpack(datagram: bytes) -> tuple[Header, bytes]:
    """Checks the header against the datagram; the payload is still unparsed."""
    if not HEADER.size <= len(datagram) <= MAX_MESSAGE:
        raise WireError(f"a datagram of {len(datagram)} bytes")
    magic, version, kind, fd_count, zero, request_id, length = HEADER.unpack_from(datagram)
    if magic != MAGIC or version != VERSION or zero:
        raise WireError("bad magic, version or padding")
    if length != len(datagram) - HEADER.size:
        raise WireError("the length field differs from the datagram's")
    try:
        return Header(Type(kind), request_id, fd_count), datagram[HEADER.size :]
    except ValueError:
        raise WireError(f"unknown type {kind}") from None


def pack_start(request_id: int, start: Start) -> bytes:
    if len(start.tag) != TAG_BYTES or len(start.limits) > MAX_LIMITS:
        raise WireError("bad tag or too many limits")
    limits = b"".join(_LIMIT.pack(limit, value) for limit, value in start.limits)
    payload = (
        start.tag
        + _U32.pack(start.flags)
        + _string(start.profile)
        + _string(start.cwd)
        + _strings(start.argv, MAX_ARGS)
        + _strings(start.env, MAX_ENV)
        + _U32.pack(len(start.limits))
        + limits
    )
    return pack(Type.START, request_id, payload)


def unpack_start(payload: bytes) -> Start:
    reader = Reader(payload)
    tag = reader.raw(TAG_BYTES)
    flags = reader.u32(FLAG_STDIN)
    profile, cwd = reader.string(), reader.string()
    argv, env = reader.strings(MAX_ARGS), reader.strings(MAX_ENV)
    limits: dict[Limit, int] = {}
    for _ in range(reader.u32(MAX_LIMITS)):
        number, value = reader.fixed(_LIMIT)
        try:
            limit = Limit(number)
        except ValueError:
            raise WireError(f"unknown limit {number}") from None
        if limit in limits:
            raise WireError(f"limit {number} given twice")
        limits[limit] = value
    reader.end()
    if not argv or not argv[0]:
        raise WireError("argv is empty")
    names = [entry.partition(b"=")[0] for entry in env]
    if not all(names) or len(set(names)) != len(names) or not all(b"=" in entry for entry in env):
        raise WireError("env is not a list of distinct NAME=value")
    return Start(tag, argv, env, cwd, profile, tuple(limits.items()), flags)


def pack_handle(kind: Type, request_id: int, handle: int) -> bytes:
    """KILL or RELEASE."""
    return pack(kind, request_id, _U64.pack(handle))


def unpack_handle(payload: bytes) -> int:
    reader = Reader(payload)
    (handle,) = reader.fixed(_U64)
    reader.end()
    return handle


def pack_signal(request_id: int, handle: int, signal: int) -> bytes:
    return pack(Type.SIGNAL, request_id, _SIGNAL.pack(handle, signal))


def unpack_signal(payload: bytes) -> tuple[int, int]:
    """(handle, signal), the signal from 1 to 64."""
    reader = Reader(payload)
    handle, signal = reader.fixed(_SIGNAL)
    reader.end()
    if not 1 <= signal <= 64:
        raise WireError(f"signal {signal}")
    return handle, signal


def unpack_empty(payload: bytes) -> None:
    Reader(payload).end()


def pack_welcome(request_id: int, welcome: Welcome) -> bytes:
    payload = _WELCOME.pack(welcome.live_jobs, welcome.max_jobs)
    payload += _string(welcome.missing_controllers) + _string(welcome.profiles)
    return pack(Type.WELCOME, request_id, payload)


def unpack_welcome(payload: bytes) -> Welcome:
    reader = Reader(payload)
    live, maximum = reader.fixed(_WELCOME)
    welcome = Welcome(live, maximum, reader.string(), reader.string())
    reader.end()
    return welcome


def pack_started(request_id: int, handle: int, uid: int, fd_count: int) -> bytes:
    return pack(Type.STARTED, request_id, _STARTED.pack(handle, uid), fd_count)


def unpack_started(payload: bytes) -> tuple[int, int]:
    """(handle, uid of the job)."""
    reader = Reader(payload)
    handle, uid = reader.fixed(_STARTED)
    reader.end()
    return handle, uid


def pack_adopt(request_id: int, handle: int, uid: int, tag: bytes, fd_count: int) -> bytes:
    return pack(Type.ADOPT, request_id, _STARTED.pack(handle, uid) + tag, fd_count)


def unpack_adopt(payload: bytes) -> tuple[int, int, bytes]:
    """(handle, uid, tag)."""
    reader = Reader(payload)
    handle, uid = reader.fixed(_STARTED)
    tag = reader.raw(TAG_BYTES)
    reader.end()
    return handle, uid, tag


def pack_error(request_id: int, stage: Stage, errno: int, message: str) -> bytes:
    text = message.encode("utf-8", "replace").replace(b"\0", b"?")[:MAX_TEXT]
    return pack(Type.ERROR, request_id, _ERROR.pack(stage, 0, errno) + _string(text, MAX_TEXT))


def unpack_error(payload: bytes) -> tuple[Stage, int, str]:
    """(stage, errno or 0, message)."""
    reader = Reader(payload)
    number, zero, errno = reader.fixed(_ERROR)
    text = reader.string(MAX_TEXT).decode("utf-8", "replace")
    reader.end()
    try:
        stage = Stage(number)
    except ValueError:
        raise WireError(f"unknown stage {number}") from None
    if zero:
        raise WireError("bad padding")
    return stage, errno, text


def pack_exited(facts: Exited) -> bytes:
    """An event: its request id is 0."""
    return pack(Type.EXITED, 0, _EXITED.pack(*facts))


def unpack_exited(payload: bytes) -> Exited:
    reader = Reader(payload)
    facts = Exited(*reader.fixed(_EXITED))
    reader.end()
    return facts
