"""The control channel between supervisor and api: both ends. The api's is its fd 0.

A SOCK_SEQPACKET socketpair; one datagram is one JSON object of at most MAX_MESSAGE bytes, whose `kind` says what it is:

| to the api | what it means |
|---|---|
| spec | what to serve, as `spec`; the first message, once |
| link | one fd, the socket to a helper; the first one starts the serving, a later one is of a new helper |
| worker | one fd, the socket to a new stream worker |
| drain | no more starts; end once no job runs |
| hand-over | end now, and leave the jobs to the next api |
| end | kill every job, tell its watchers, end |

| from the api | what it means |
|---|---|
| ready | the spec is good: a link may come |
| serving | it listens |

A stream worker has such a channel too: it gets its spec, and as its link the socket to the api; see worker_wire.py.

The end of the channel is the end of the process at its other end. The supervisor takes nothing else from an api, which
may have been taken over: an api that says anything else is ended.
"""

import json
import socket
import struct
from typing import Any, NamedTuple

from telehandler.common import fds
from telehandler.common.errors import TelehandlerError

MAX_MESSAGE = 64 * 1024  # bytes
_FDS = {"spec": 0, "link": 1, "worker": 1, "drain": 0, "hand-over": 0, "end": 0, "ready": 0, "serving": 0}


class Message(NamedTuple):
    """`fd` is the receiver's to close; -1 for none."""

    kind: str
    spec: dict[str, Any]
    fd: int


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(sock: socket.socket, kind: str, spec: dict[str, Any] | None = None, fd: int = -1) -> None:
    """Raises OSError when the other end is gone, TelehandlerError over the bound."""
    datagram = json.dumps({"kind": kind, "spec": spec or {}}).encode()
    if len(datagram) > MAX_MESSAGE:
        raise TelehandlerError(f"the server's options are too long: over {MAX_MESSAGE // 1024} KiB in all")
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))] if fd >= 0 else []
    sock.sendmsg([datagram], rights)


def receive(sock: socket.socket) -> Message | None:
    """The next message, None at the end. Raises OSError, and TelehandlerError for what is no message."""
    datagram, whole, passed = fds.receive(sock, MAX_MESSAGE + 1, 1)
    if not datagram:
        return None
    try:
        fields = json.loads(datagram)
        kind, spec = fields["kind"], fields["spec"]
        if not whole or len(passed) != _FDS[kind] or not isinstance(spec, dict):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        fds.close_all(passed)
        raise TelehandlerError("the control channel of server and api carries what is no message") from None
    return Message(kind, spec, passed[0] if passed else -1)
