"""Datagrams with fds by SCM_RIGHTS: socket.recv_fds would drop the flag that closes them on exec."""

import array
import contextlib
import os
import socket

_SO_PASSRIGHTS = 83


def refuse(sock: socket.socket) -> None:
    """No fd can be sent to `sock`, where the kernel has this: SO_PASSRIGHTS, Linux 6.16."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)


def receive(sock: socket.socket, size: int, most: int) -> tuple[bytes, bool, list[int]]:
    """A datagram of at most `size` bytes, whether it and its fds, at most `most`, came whole, and those fds.

    The fds are the caller's to close. Raises OSError.
    """
    space = socket.CMSG_SPACE(most * array.array("i").itemsize)
    datagram, ancillary, flags, _ = sock.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    # CMSG_SPACE rounds up: there may be room for one more than was meant.
    return datagram, not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC), list(fds)


def close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
