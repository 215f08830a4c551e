"""What the one loop waits for, and the socket to the api: requests in, a bounded queue of replies and events out."""

import errno
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from helper import wire
from helper.policy import Refusal
from helper.wire import Message, Type, WireError

MAX_QUEUE = 64  # messages towards the api beyond which no request is read
STALL_S = 30.0  # without progress of a full queue, after which the api counts as gone
_PASSING = (errno.EAGAIN, errno.EINTR, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS)
_SO_PASSRIGHTS = 83  # socket(7), Linux 6.16: 0 denies the sender of fds


def refuse_fds(sock: socket.socket) -> None:
    """No fd can be sent to `sock`, where the kernel has this; elsewhere none is received (S3)."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)


class Events:
    """A set of fds, each with a callback, which gets the events that came for its fd, as poll(2) names them.

    By epoll(7), whose cost does not grow with the number of jobs.
    """

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}

    def watch(self, fd: int, wanted: int, callback: Callable[[int], None]) -> None:
        """One that is watched already is watched for `wanted` from now on."""
        (self._poll.modify if fd in self._callbacks else self._poll.register)(fd, wanted)
        self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Must come before the fd is closed. One that is not watched is no error."""
        if self._callbacks.pop(fd, None):
            with suppress(OSError):  # its close, which follows, does it too
                self._poll.unregister(fd)

    def wait(self, timeout_ms: int) -> None:
        """Calls back for all that has come, or returns after the timeout."""
        for fd, came in self._poll.poll(timeout_ms / 1000):
            if fd in self._callbacks:  # not unwatched by one before it
                self._callbacks[fd](came)


class Link:
    """Owns the socket; nothing in here waits.

    Once `ended` is set, the api is gone, and all that is left is to end every job.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.ended = sock, False
        self.queue: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._progress = time.monotonic()

    def wanted(self) -> int:
        """The events to poll for. An api that does not read its replies is not read from."""
        if len(self.queue) >= MAX_QUEUE:
            return select.POLLOUT | select.POLLRDHUP  # nothing is read, so EOF must show by itself
        self._progress = time.monotonic()
        return select.POLLIN | (select.POLLOUT if self.queue else 0)

    def check_progress(self) -> None:
        """Ends a link whose queue is full and does not move, while requests lie unread.

        Among these may be the fd of the socket's other end. It would keep the socket open, and every job alive, after
        the last process that could speak for them has gone (S41). With nothing unread, EOF shows when there is one.
        """
        if len(self.queue) < MAX_QUEUE or time.monotonic() - self._progress < STALL_S:  # we may have been stopped
            return
        with suppress(BlockingIOError):
            self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            self.ended = True

    def on_event(self, came: int) -> Message | None:
        """Sends and receives what can be: a request, if one has come.

        It is one datagram. No ancillary space is offered, so the kernel discards any fd that was passed.
        """
        self.ended |= len(self.queue) >= MAX_QUEUE and came != select.POLLOUT
        if not self.ended:
            self.flush()
        # One that went without its replies: nothing that it asked for matters any more.
        if self.ended or came == select.POLLOUT:
            return None
        try:
            datagram = self.sock.recv(wire.MAX_MESSAGE + 1, socket.MSG_DONTWAIT)  # one byte more is too long: unpack
        except BlockingIOError:
            return None
        except ConnectionError:
            datagram = b""
        if not datagram:  # EOF and an empty datagram look alike; neither is a message, both end us
            self.ended = True
            return None
        message = wire.unpack(datagram)
        if message.fd_count:
            raise WireError(f"{message.type.name} announces fds")
        return message

    def send(self, kind: Type, request_id: int, fds: tuple[int, ...] = (), /, **fields: Any) -> None:
        self.queue.append((wire.pack(kind, request_id, len(fds), **fields), fds))
        self.flush()

    def refuse(self, request_id: int, refusal: Refusal) -> None:
        stage, number, text = refusal.args
        short = text.encode(errors="replace")[: wire.MAX_TEXT]
        self.send(Type.ERROR, request_id, stage=stage, errno=number, text=[short])

    def unsent(self, kind: Type, request_id: int, /, **fields: Any) -> bool:
        """Whether this message, without fds, still waits in the queue."""
        return (wire.pack(kind, request_id, **fields), ()) in self.queue

    def flush(self) -> None:
        while self.queue:
            datagram, fds = self.queue[0]
            # Not socket.send_fds: it drops its flags, and a send that waits would stop the reaping (S32).
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
            try:
                self.sock.sendmsg([datagram], rights, socket.MSG_DONTWAIT)
            except OSError as error:
                # The passing ones are tried again at the next turn; else the peer is gone.
                self.ended |= error.errno not in _PASSING
                return
            self.queue.popleft()
            self._progress = time.monotonic()
