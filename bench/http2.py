"""As much of HTTP/2 and gRPC as one call with many answers takes: what arrives is counted, and no more is done to it.

It makes a watcher cost about what a reader of plain TLS costs, so that the server is what differs between the two.
"""

import struct
from collections.abc import Callable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WINDOW = (1 << 31) - 1
REFILL = 1 << 30  # the windows are topped up when so much of them is gone
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 0x1, 0x1, 0x4, 0x8
_INITIAL_WINDOW_SIZE = 4
_DEFAULT_WINDOW = (1 << 16) - 1
_HEAD = struct.Struct(">HBBBI")  # length (its upper 16 bits, then 8), type, flags, stream
STREAM = 1


class Http2Error(Exception):
    """The other side ended the call or the connection, or sent what this reader does not know."""


def opening() -> bytes:
    """What a client says first: the preface, its settings, a large window for the connection."""
    settings = _frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, WINDOW))
    return PREFACE + settings + _window(0, WINDOW - _DEFAULT_WINDOW)


def request(path: str, authority: str, message: bytes) -> bytes:
    """One gRPC call with one message, on the first stream."""
    headers = (
        (":method", "POST"),
        (":scheme", "https"),
        (":path", path),
        (":authority", authority),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    )
    block = b"".join(b"\0" + _literal(name) + _literal(value) for name, value in headers)
    data = struct.pack(">BI", 0, len(message)) + message
    return _frame(_HEADERS, _END_HEADERS, STREAM, block) + _frame(_DATA, _END_STREAM, STREAM, data)


class Http2:
    """The receiving half of one connection. `bytes`: of DATA payloads, which hold gRPC's messages with their heads."""

    def __init__(self, sink: Callable[[bytes], object] | None = None) -> None:
        self.bytes, self.ended = 0, False
        self._sink = sink
        self._head, self._payload = b"", b""
        self._type, self._flags, self._left = 0, 0, 0
        self._unacknowledged = 0

    def feed(self, data: memoryview) -> bytes:
        """Takes what has arrived; what must be sent in answer. Raises Http2Error."""
        answer = b""
        while data:
            if not self._left:
                taken = data[: _HEAD.size - len(self._head)]
                data = data[len(taken) :]
                self._head += bytes(taken)
                if len(self._head) < _HEAD.size:
                    break
                self._begin()
            part = data[: self._left]
            data = data[len(part) :]
            self._left -= len(part)
            if self._type == _DATA:
                self.bytes += len(part)
                self._unacknowledged += len(part)
                if self._sink:
                    self._sink(bytes(part))
            else:
                self._payload += bytes(part)
            if not self._left:
                answer += self._end()
        return answer

    def _begin(self) -> None:
        upper, lower, self._type, self._flags, _ = _HEAD.unpack(self._head)
        self._left = upper << 8 | lower
        self._head = self._payload = b""
        if self._type == _DATA and self._flags & _PADDED:
            raise Http2Error("padded DATA, which gRPC does not send")

    def _end(self) -> bytes:
        """A frame is complete."""
        if self._type in (_RST_STREAM, _GOAWAY) and not self.ended:
            raise Http2Error(f"the server sent frame {self._type}: {self._payload.hex()}")
        if self._type in (_DATA, _HEADERS) and self._flags & _END_STREAM:
            self.ended = True
        if self._type in (_SETTINGS, _PING) and not self._flags & _ACK:
            return _frame(self._type, _ACK, 0, self._payload if self._type == _PING else b"")
        if self._unacknowledged < REFILL:
            return b""
        increment, self._unacknowledged = self._unacknowledged, 0
        return _window(0, increment) + _window(STREAM, increment)


def _window(stream: int, increment: int) -> bytes:
    return _frame(_WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return _HEAD.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


def _literal(text: str) -> bytes:
    """HPACK's string literal, without Huffman, below 127 bytes."""
    if len(text) >= 127:
        raise ValueError(f"{text!r} is too long for this reader")
    return bytes([len(text)]) + text.encode()
