"""The channel between the api and one stream worker: both ends.

A SOCK_STREAM socketpair, which the supervisor makes, so that nobody else can be at an end. It carries frames: a header
(bytes of payload, kind, number) and the payload, which is JSON unless it says bytes. The number is the call's, given
by the worker; that of a log, given by the api, for LOG; else 0.

| to the worker | what it means |
|---|---|
| HELLO | where to listen and which methods to serve; the first frame, once |
| READ | the caller is known and it is his turn: the request is to be read and sent |
| DATA | bytes: one message for the client |
| WATCH | the output that the client gets, from which log's files and from where on |
| LOG | bytes: a log that is watched has grown, lost its beginning, or ended: see pack_state |
| END | how the call ends: status code, text, trailing metadata |
| STOP | no more connections; end once the calls have ended, or after so many seconds |

| to the api | what it means |
|---|---|
| CALL | a call has come: its method and what TLS says of its client |
| BODY | bytes: the request that READ asked for; its message, or none when the client sends none |
| DONE | all that WATCH asked for is sent; or why it cannot be, as an errno, REMOVED or UNFORESEEN |
| CANCEL | the client has gone |
"""

import asyncio
import json
import struct
from enum import IntEnum
from typing import Any, NamedTuple

MAX_PAYLOAD_BYTES = 8 << 20  # a list's page is less
REMOVED, UNFORESEEN = -1, -2  # the files are no longer there; an error of the worker's, which is in the log
_HEADER = struct.Struct("<IBQ")
_STATE = struct.Struct("<QQQQBQ?")
_NONE, _MESSAGE = b"\0", b"\1"


class Kind(IntEnum):
    HELLO = 1
    READ = 2
    DATA = 3
    WATCH = 4
    LOG = 5
    END = 6
    STOP = 7
    CALL = 8
    BODY = 9
    DONE = 10
    CANCEL = 11


class Frame(NamedTuple):
    kind: Kind
    number: int
    payload: bytes

    def fields(self) -> dict[str, Any]:
        """Of a payload that is JSON. Raises ValueError."""
        found: dict[str, Any] = json.loads(self.payload)
        return found


def pack(kind: Kind, number: int = 0, fields: dict[str, Any] | None = None, data: bytes = b"") -> bytes:
    """A frame with `fields` as JSON, or `data` as it is."""
    payload = data if fields is None else json.dumps(fields).encode()
    return _HEADER.pack(len(payload), kind, number) + payload


async def receive(reader: asyncio.StreamReader) -> Frame | None:
    """The next frame, None at the end. Raises OSError, and ValueError for what is no frame."""
    try:
        length, kind, number = _HEADER.unpack(await reader.readexactly(_HEADER.size))
        if length > MAX_PAYLOAD_BYTES:
            raise ValueError("a frame is too long")
        return Frame(Kind(kind), number, await reader.readexactly(length))
    except asyncio.IncompleteReadError:
        return None


def pack_state(size: int, records: int, last: tuple[int, int, int], floor: int, ended: bool) -> bytes:
    """A log's state, as output.log.State has it."""
    return _STATE.pack(size, records, *last, floor, ended)


def unpack_state(data: bytes) -> tuple[int, int, tuple[int, int, int], int, bool]:
    """The fields of output.log.State. Raises struct.error."""
    size, records, offset, time_ns, stream, floor, ended = _STATE.unpack(data)
    return size, records, (offset, time_ns, stream), floor, ended


def pack_body(message: bytes | None) -> bytes:
    """A request, or none: an empty message is one."""
    return _NONE if message is None else _MESSAGE + message


def unpack_body(data: bytes) -> bytes | None:
    return data[1:] if data[:1] == _MESSAGE else None
