"""A client that begins calls and never ends their requests: HTTP/2 by hand, as far as flow control lets it send."""

import select
import socket
import ssl
import struct
from collections import defaultdict
from pathlib import Path

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4
_INITIAL_WINDOW_SIZE = 4
_HEAD = struct.Struct(">HBBBI")  # length (its upper 16 bits, then 8), type, flags, stream
_FRAME_BYTES = 16384


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return _HEAD.pack(len(payload) >> 8, len(payload) & 255, kind, flags, stream) + payload


def _literal(text: str) -> bytes:
    assert len(text) < 127
    return bytes([len(text)]) + text.encode()


class Unfinished:
    """One connection of a user with `count` calls of `path`, each of a message of `size` bytes that lacks its end."""

    def __init__(self, port: int, ssl_directory: Path, user: str, path: str, count: int, size: int) -> None:
        context = ssl.create_default_context(cafile=str(ssl_directory / "root.pem"))
        context.set_alpn_protocols(["h2"])
        context.load_cert_chain(ssl_directory / f"{user}.pem", ssl_directory / f"{user}-key.pem")
        plain = socket.create_connection(("127.0.0.1", port), 30)
        self._sock = context.wrap_socket(plain, server_hostname="localhost")
        self._input = b""
        self._window, self._initial = 65535, 65535
        self._stream_windows: defaultdict[int, int] = defaultdict(int)  # beyond the initial one
        self.refused = 0  # streams that the server has ended
        self.sent = 0
        names = (":method", ":scheme", ":path", ":authority", "te", "content-type")
        values = ("POST", "https", path, "localhost", "trailers", "application/grpc")
        block = b"".join(b"\0" + _literal(name) + _literal(value) for name, value in zip(names, values, strict=True))
        self._left = {2 * number + 1: size for number in range(count)}
        self._spent = dict.fromkeys(self._left, 0)
        self._sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, b""))
        for stream in list(self._left):
            self._sock.sendall(_frame(_HEADERS, _END_HEADERS, stream, block))
            self._send(stream, struct.pack(">BI", 0, size))  # the message's head: all of it is announced
            self._left[stream] -= 5 + 16  # so many bytes never come
            self.pump(0)

    def pump(self, timeout_s: float) -> int:
        """Takes what came and sends what may be sent: so many bytes."""
        before = self.sent
        while self._sock.pending() or select.select([self._sock], [], [], timeout_s)[0]:
            piece = self._sock.recv(1 << 16)
            if not piece:
                raise ConnectionError("the server has closed the connection")
            self._input += piece
            self._take()
            timeout_s = 0
        for stream in [stream for stream, left in self._left.items() if left > 0]:
            while self._window > 0:
                room = min(self._stream_room(stream), self._window, self._left.get(stream, 0), _FRAME_BYTES)
                if room <= 0:
                    break
                self._send(stream, bytes(room))
                self._left[stream] -= room
        return self.sent - before

    def close(self) -> None:
        self._sock.close()

    def _stream_room(self, stream: int) -> int:
        return self._initial + self._stream_windows[stream] - self._spent[stream]

    def _send(self, stream: int, payload: bytes) -> None:
        self._sock.sendall(_frame(_DATA, 0, stream, payload))
        self._window -= len(payload)
        self._spent[stream] += len(payload)
        self.sent += len(payload)

    def _take(self) -> None:
        while len(self._input) >= _HEAD.size:
            high, low, kind, flags, stream = _HEAD.unpack_from(self._input)
            length = high << 8 | low
            if len(self._input) < _HEAD.size + length:
                return
            payload = self._input[_HEAD.size : _HEAD.size + length]
            self._input = self._input[_HEAD.size + length :]
            if kind == _SETTINGS and not flags & _ACK:
                for at in range(0, length, 6):
                    name, value = struct.unpack_from(">HI", payload, at)
                    self._initial = value if name == _INITIAL_WINDOW_SIZE else self._initial
                self._sock.sendall(_frame(_SETTINGS, _ACK, 0, b""))
            elif kind == _PING and not flags & _ACK:
                self._sock.sendall(_frame(_PING, _ACK, 0, payload))
            elif kind == _WINDOW_UPDATE:
                (more,) = struct.unpack(">I", payload)
                if stream:
                    self._stream_windows[stream] += more
                else:
                    self._window += more
            elif kind == _RST_STREAM or (kind == _HEADERS and flags & _END_STREAM):
                self.refused += self._left.pop(stream, None) is not None
            elif kind == _GOAWAY:
                raise ConnectionError("the server has closed the connection")
