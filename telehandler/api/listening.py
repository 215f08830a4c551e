"""How the api and its stream workers listen: the same address, options and bounds."""

import errno
import socket
from typing import Any, NamedTuple

from telehandler.api import tls  # sets grpc's environment: must come before grpc
from telehandler.common import bounds, control
from telehandler.common.errors import TelehandlerError

import grpc.aio  # isort: skip

_OPTIONS = (
    ("grpc.max_receive_message_length", bounds.MAX_REQUEST_BYTES),
    ("grpc.max_metadata_size", bounds.MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", bounds.MAX_METADATA_BYTES),
    ("grpc.max_concurrent_streams", bounds.MAX_STREAMS),
    ("grpc.server_handshake_timeout_ms", bounds.HANDSHAKE_TIMEOUT_S * 1000),
    *bounds.RECEIVE_WINDOW,
    *bounds.KEEPALIVE,
    ("grpc.http2.min_ping_interval_without_data_ms", bounds.LEAST_PING_INTERVAL_S * 1000),
)


class Opened(NamedTuple):
    """What the supervisor has sent to one of its children: what to serve with, a `note` for the log, a channel's fd."""

    spec: dict[str, Any]
    credentials: grpc.ServerCredentials
    note: str
    link_fd: int


def open_channel(supervisor: socket.socket) -> Opened | None:
    """Spec, then word that we are ready, then the channel: see control.py. None when we were ended before."""
    message = control.receive(supervisor)
    if message is None:
        return None
    spec = message.spec
    files, copies = tls.Files(*spec["tls_files"]), tls.Files(*spec["tls_copies"])
    credentials, note = tls.server_credentials(files, copies, spec["strict"])
    control.send(supervisor, "ready")
    message = control.receive(supervisor)
    return Opened(spec, credentials, note, message.fd) if message and message.kind == "link" else None


def server(max_connections: int, processes: int) -> grpc.aio.Server:
    """A server of one of `processes` that share a port, and the bound on connections: none can count the others'."""
    share = -(-max_connections // processes)
    own = (("grpc.max_allowed_incoming_connections", share), ("grpc.so_reuseport", int(processes > 1)))
    return grpc.aio.server(options=(*_OPTIONS, *own))


def address_of(listen: str) -> tuple[str, int]:
    """Host, empty for every address, and port of --listen. Raises TelehandlerError."""
    host, _, port = listen.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:  # grpc would take 70000 for 4464
        raise TelehandlerError(f"cannot listen on {listen}: --listen is [HOST]:PORT, with a port from 0 to 65535")
    return host, int(port)


def listen(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials) -> int:
    """The port. Raises TelehandlerError."""
    try:
        number = server.add_secure_port(f"{host or '[::]'}:{port}", credentials)
    except (RuntimeError, OSError, ValueError):  # the last: letters that no address has
        number = 0
    if not number:
        raise TelehandlerError(
            f"cannot listen on {host}:{port}: the port is in use, may not be used, or the address is not this "
            "machine's; choose another --listen"
        )
    return number


def is_free(host: str, port: int) -> bool:
    """Whether nobody listens there: a port that may be shared would be given to a second server of the same user."""
    return all(_may_bind(name, port) for name in ([host.strip("[]")] if host else ["::", "0.0.0.0"]))


def _may_bind(name: str, port: int) -> bool:
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except (OSError, UnicodeError) as error:
        return getattr(error, "errno", 0) != errno.EADDRINUSE  # of the rest grpc says what it is
    return True


def shown(host: str, number: int) -> str:
    """Where a server listens, for its log."""
    every = {"": "", "[::]": "", "0.0.0.0": " IPv4"}.get(host)
    if every is None:
        return f"{host}:{number}"
    name = host or ("[::]" if socket.has_dualstack_ipv6() else "0.0.0.0")
    return f"{name}:{number} (every{every} address)"
