"""Starting the root helper, once or again: directly as root, by the setuid wrapper, or by sudo -n."""

import contextlib
import os
import select
import shutil
import socket
import stat
import subprocess
from pathlib import Path

from helper import wire
from telehandler import fds
from telehandler.errors import HelperUnavailable

INSTALLED = Path("/usr/local/lib/telehandler")
PYTHON = "/usr/bin/python3"
HELLO_TIMEOUT_S = 20.0


def command(cgroup_root: str | None, policy: str | None) -> list[str]:
    """The helper's command line for this user. Raises HelperUnavailable with a remedy."""
    checkout, installed = Path(__file__).resolve().parent.parent / "helper", INSTALLED / "helper"
    options = [*(("--cgroup-root", cgroup_root) if cgroup_root else ()), *(("--policy", policy) if policy else ())]
    if os.geteuid() == 0:
        # A checkout that is another user's is refused by the helper itself: take root's own then.
        own = checkout.stat().st_uid == 0 or not installed.exists()
        return [PYTHON, "-I", "-S", str(checkout if own else installed), *options]
    wrapper = INSTALLED / "telehandler-helper"
    if not options and wrapper.exists() and wrapper.stat().st_mode & stat.S_ISUID and os.access(wrapper, os.X_OK):
        return [str(wrapper)]
    if not installed.exists():
        raise HelperUnavailable("the root helper is not installed: run `sudo make install`, or start this as root")
    if not shutil.which("sudo"):
        raise HelperUnavailable("there is no sudo and no setuid wrapper to start the root helper: start this as root")
    return ["sudo", "-n", PYTHON, "-I", "-S", str(installed), *options]


def start(
    cgroup_root: str | None, policy: str | None, stderr: int | None = None
) -> tuple["subprocess.Popen[bytes]", socket.socket]:
    """The helper, greeted, and our end of its socket. Raises HelperUnavailable."""
    arguments = command(cgroup_root, policy)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = _run(arguments, theirs, stderr)
    _greet(ours, process, arguments)
    return process, ours


class Helpers:
    """The helpers of a server, one after the other. `link` is our end of the last one's socket.

    As root one keeper starts them all, since the server has given up root by the second: see helper/README.md. Else
    the command is run again.
    """

    def __init__(self, cgroup_root: str | None, policy: str | None) -> None:
        self._arguments = command(cgroup_root, policy)
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: socket.socket | None = None
        self.link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # until the first helper's
        if os.geteuid() == 0:
            self._keeper, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            self._keeper.settimeout(HELLO_TIMEOUT_S)
            self._process = _run(self._arguments, theirs)

    def start(self) -> None:
        """The first helper, or, once one was killed by a signal, the next; greeted.

        Raises HelperUnavailable, also when the one before ended by itself: the next would too.
        """
        if self._keeper:
            ours = self._ask_keeper(self._keeper)
        else:
            if self._process and not _by_signal(self._process.wait(HELLO_TIMEOUT_S)):
                raise HelperUnavailable(_ended(self._process.returncode))
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._process = _run(self._arguments, theirs)
        assert self._process is not None
        _greet(ours, self._process, self._arguments)
        self.link.close()
        self.link = ours

    def _ask_keeper(self, keeper: socket.socket) -> socket.socket:
        assert self._process is not None
        passed: list[int] = []
        try:
            keeper.send(b"L")
            _, whole, passed = fds.receive(keeper, 1, 1)
        except OSError:
            whole = False
        if whole and len(passed) == 1:
            return socket.socket(fileno=passed[0])
        fds.close_all(passed)
        keeper.close()  # its end, if it is there at all
        raise HelperUnavailable(_ended(self._process.wait(HELLO_TIMEOUT_S)))

    def end(self, timeout_s: float) -> bool:
        """Has the helper kill every job and end; whether it did so in time."""
        with contextlib.suppress(OSError):  # it has died
            self.link.shutdown(socket.SHUT_WR)  # for the helper that is EOF
        poll = select.poll()
        poll.register(self.link, 0)  # for POLLHUP: its end is closed
        ended = bool(poll.poll(timeout_s * 1000))
        self.link.close()
        if self._keeper:
            self._keeper.close()
        assert self._process is not None
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return ended


def _run(arguments: list[str], stdin: socket.socket, stderr: int | None = None) -> "subprocess.Popen[bytes]":
    """Closes `stdin`. Root's own helper gets no environment: it is nobody's deputy, as by sudo (SUDO_UID)."""
    env: dict[str, str] | None = {} if os.geteuid() == 0 else None
    with stdin:
        return subprocess.Popen(
            arguments, stdin=stdin.fileno(), stdout=subprocess.DEVNULL, stderr=stderr, cwd="/", env=env
        )


def _greet(ours: socket.socket, process: "subprocess.Popen[bytes]", arguments: list[str]) -> None:
    """HELLO and its answer; else raises HelperUnavailable, with the socket closed."""
    try:
        ours.settimeout(HELLO_TIMEOUT_S)
        ours.send(wire.pack(wire.Type.HELLO, 0))
        greeted = wire.unpack(ours.recv(wire.MAX_MESSAGE)).type is wire.Type.WELCOME
    except (OSError, wire.WireError):
        greeted = False
    if greeted:
        return ours.settimeout(None)
    ours.close()
    try:
        status = process.wait(HELLO_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise HelperUnavailable("the root helper does not answer") from None
    if arguments[0] == "sudo" and status == 1:
        raise HelperUnavailable(
            "sudo does not let this user start the root helper: install contrib/telehandler.sudoers as "
            "/etc/sudoers.d/telehandler (`sudo make install` does), or start this as root"
        )
    raise HelperUnavailable(f"the root helper did not start (exit status {status}); its message is above")


def _by_signal(status: int) -> bool:
    """sudo sends itself the signal that ended its command."""
    return status < 0


def _ended(status: int) -> str:
    return f"the root helper has ended by itself (exit status {status}), so it is not started again; see its message"
