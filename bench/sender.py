"""The limit: a sender of blocks over TLS 1.3 in Python's ssl, with no protocol above it. One thread, epoll.

Spec as JSON on stdin. Prints its port; serves `connections`, each from the byte that it sends to begin, `size` bytes.
"""

import json
import os
import select
import socket
import ssl
import sys
from typing import Any

BLOCK_BYTES = 256 * 1024
SENDS_IN_A_ROW = BLOCK_BYTES // 16384  # one send is one TLS record: a block in all


class Connection:
    def __init__(self, accepted: ssl.SSLSocket, size: int, block: memoryview) -> None:
        self.socket, self._left, self._block = accepted, size, block

    def write(self) -> bool:
        """Sends what there is room for; False at the end."""
        try:
            for _ in range(SENDS_IN_A_ROW):
                self._left -= self.socket.send(self._block[: self._left])
                if not self._left:
                    return False
        except ssl.SSLWantWriteError:
            pass
        return True


def serve(spec: dict[str, Any], listener: socket.socket, context: ssl.SSLContext) -> None:
    block = memoryview(os.urandom(BLOCK_BYTES))
    poll, by_fd = select.epoll(), {}
    for _ in range(spec["connections"]):
        plain, _ = listener.accept()
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        accepted = context.wrap_socket(plain, server_side=True)
        accepted.setblocking(False)
        by_fd[accepted.fileno()] = Connection(accepted, spec["size"], block)
        poll.register(accepted, select.EPOLLIN)
    while by_fd:
        for fd, events in poll.poll():
            connection = by_fd[fd]
            if events & select.EPOLLIN:
                connection.socket.recv(1)
                poll.modify(fd, select.EPOLLOUT)
            elif not connection.write():
                poll.unregister(fd)
                by_fd.pop(fd).socket.close()


def main() -> None:
    spec = json.loads(sys.stdin.readline() or sys.exit(1))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(spec["root"])
    context.load_cert_chain(spec["cert"], spec["key"])
    context.set_alpn_protocols(["h2"])
    context.num_tickets = 0  # it sends nothing that the reader does not count
    with socket.create_server(("127.0.0.1", 0), backlog=spec["connections"]) as listener:
        print(listener.getsockname()[1], flush=True)
        serve(spec, listener, context)
    sys.stdin.readline()  # its cpu time is read before it ends


if __name__ == "__main__":
    main()
