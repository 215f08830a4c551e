"""The reader that both servers get: one process, many TLS 1.3 connections, what arrives is counted.

Spec as JSON on stdin; an empty line on stdout when every connection is made; an empty line on stdin begins; then one
line of JSON. A connection to the raw sender sends one byte to begin, one to a telehandler server a WatchJobOutput.
"""

import json
import select
import socket
import ssl
import sys
import time
from typing import Any

from bench.http2 import Http2, opening, request

BUFFER_BYTES = 1 << 16
READS_IN_A_ROW = 8
WATCH = "/telehandler.v1.TelehandlerService/WatchJobOutput"


class Connection:
    """One TLS connection; `http2` when it watches a job, else bytes are bytes."""

    def __init__(self, spec: dict[str, Any], context: ssl.SSLContext) -> None:
        plain = socket.create_connection(("127.0.0.1", spec["port"]))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = context.wrap_socket(plain, server_hostname="localhost")
        self.http2 = Http2() if spec["message"] is not None else None
        self._begin = b"\n"
        if spec["message"] is not None:
            self.socket.sendall(opening())
            self._begin = request(WATCH, "localhost", bytes.fromhex(spec["message"]))
        self._raw_bytes = 0

    @property
    def bytes(self) -> int:
        return self.http2.bytes if self.http2 else self._raw_bytes

    def begin(self) -> None:
        self.socket.sendall(self._begin)
        self.socket.setblocking(False)

    def read(self, buffer: bytearray) -> bool:
        """Takes some of what is there; False at the end."""
        view = memoryview(buffer)
        try:
            for _ in range(READS_IN_A_ROW):
                count = self.socket.recv_into(buffer)
                if not count:
                    return False
                if not self.http2:
                    self._raw_bytes += count
                    continue
                # An answer is a few bytes, once in a second at most: there is room for it.
                if answer := self.http2.feed(view[:count]):
                    self.socket.sendall(answer)
                if self.http2.ended:
                    return False
        except ssl.SSLWantReadError:
            pass
        return True


def read_all(spec: dict[str, Any], connections: list[Connection]) -> dict[str, Any]:
    """Reads each to its end: how much each got, and the time from the first request to the last end."""
    poll, buffer = select.epoll(), bytearray(BUFFER_BYTES)
    by_fd = {connection.socket.fileno(): connection for connection in connections}
    began, cpu_before = time.monotonic(), time.process_time()
    for connection in connections:
        connection.begin()
        poll.register(connection.socket, select.EPOLLIN)
    while by_fd:
        for fd, _ in poll.poll():
            if not by_fd[fd].read(buffer):
                poll.unregister(fd)
                del by_fd[fd]
    seconds, cpu_s = time.monotonic() - began, time.process_time() - cpu_before
    return {"seconds": seconds, "cpu_s": cpu_s, "bytes": [connection.bytes for connection in connections]}


def main() -> None:
    spec = json.loads(sys.stdin.readline() or sys.exit(1))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(spec["root"])
    context.load_cert_chain(spec["cert"], spec["key"])
    context.set_alpn_protocols(["h2"])
    connections = [Connection(spec, context) for _ in range(spec["connections"])]
    print(flush=True)
    sys.stdin.readline()
    print(json.dumps(read_all(spec, connections)), flush=True)


if __name__ == "__main__":
    main()
