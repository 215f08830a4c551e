"""A TCP proxy in front of a server, whose connections can be made to go nowhere while they stay open."""

import selectors
import socket
import struct
import threading
from contextlib import suppress

_PIECE_BYTES = 1 << 16


class Proxy:
    """Forwards a port of its own to `port` on loopback; a context manager. One thread, blocking writes."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._lock = threading.Lock()
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._frozen: list[socket.socket] = []
        self._ended = False
        for sock in (self._listener, self._woken):
            self._selector.register(sock, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._wake.send(b"x")
        self._thread.join()
        self._selector.close()
        for sock in (self._listener, self._wake, self._woken, *self._pairs, *self._frozen):
            sock.close()

    def freeze(self) -> set[int]:
        """The connections of now are neither read nor written any more, nor closed; new ones are served.

        The ports from which the server sees them.
        """
        with self._lock:
            frozen = list(self._pairs)
            self._pairs.clear()
            for sock in frozen:
                self._selector.unregister(sock)
            self._frozen += frozen
        return {sock.getsockname()[1] for sock in frozen if sock.getpeername() == self._target}

    def cut(self) -> int:
        """The connections of now are closed, with what is on its way in them: how many. New ones are served."""
        with self._lock:
            for sock in self._pairs:
                self._selector.unregister(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset: socket(7)
                sock.close()
            count = len(self._pairs) // 2
            self._pairs.clear()
        return count

    def connections(self) -> int:
        """Those that are served."""
        return len(self._pairs) // 2

    def _run(self) -> None:
        while not self._ended:
            for key, _ in self._selector.select():
                with self._lock:
                    if key.fileobj is self._listener:
                        self._accept()
                    elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._pairs:
                        self._forward(key.fileobj)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        far = socket.create_connection(self._target)
        for one, other in ((near, far), (far, near)):
            self._pairs[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _forward(self, sock: socket.socket) -> None:
        piece = b""
        with suppress(ConnectionError):
            if piece := sock.recv(_PIECE_BYTES):
                self._pairs[sock].sendall(piece)
        if not piece:
            for end in (sock, self._pairs[sock]):
                del self._pairs[end]
                self._selector.unregister(end)
                end.close()
