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
from telehandler.common import fds
from telehandler.common.errors import HelperUnavailable
from telehandler.supervisor import prerequisites

INSTALLED = Path("/usr/local/lib/telehandler")
PYTHON = "/usr/bin/python3"
HELLO_TIMEOUT_S = 20.0
_TRIES = 3  # a helper may be killed before it answers


def command(cgroup_root: str | None, policy: str | None) -> list[str]:
    """The helper's command line for this user. Raises HelperUnavailable, for all that is missing, with a remedy."""
    prerequisites.require(cgroup_root, policy)
    checkout, installed = Path(__file__).resolve().parents[2] / "helper", INSTALLED / "helper"
    given = {"--cgroup-root": cgroup_root, "--policy": policy}
    # Absolute: the helper runs in /.
    options = [word for flag, path in given.items() if path for word in (flag, os.path.abspath(path))]
    if os.geteuid() == 0:
        # A checkout that is another user's is refused by the helper itself: take root's own then.
        own = checkout.stat().st_uid == 0 or not installed.exists()
        return [PYTHON, "-I", "-S", str(checkout if own else installed), *options]
    wrapper = INSTALLED / "telehandler-helper"
    if not options and wrapper.exists() and wrapper.stat().st_mode & stat.S_ISUID and os.access(wrapper, os.X_OK):
        return [str(wrapper)]
    if not installed.exists():
        raise HelperUnavailable(
            "the root helper is not installed: `make install-helper` does it for those who may use sudo, "
            "`make install` for a group; or start this as root"
        )
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
    if not _greeted(ours):
        raise HelperUnavailable(_not_started(arguments, _status(process)))
    return process, ours


class Helpers:
    """The helpers of a server, one after the other. `link` is our end of the last one's socket.

    As root one keeper starts them all, since the server has given up root by the second: see helper/README.md. Else
    the command is run again.
    """

    def __init__(self, cgroup_root: str | None, policy: str | None) -> None:
        self._arguments = command(cgroup_root, policy)
        self._process: subprocess.Popen[bytes] | None = None  # the keeper, or the last helper
        self._keeper: socket.socket | None = None
        self._running = False  # one has been
        self.link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # until the first helper's
        if os.geteuid() == 0:
            self._keeper, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            self._keeper.settimeout(HELLO_TIMEOUT_S)
            self._process = _run(self._arguments, theirs)

    def start(self) -> None:
        """The first helper, or, once one was killed by a signal, the next; greeted.

        Raises HelperUnavailable, also when the one before ended by itself: the next would too.
        """
        for _ in range(_TRIES):
            ours = self._next_of_keeper(self._keeper) if self._keeper else self._next()
            if _greeted(ours):
                self.link.close()
                self.link, self._running = ours, True
                return
        raise HelperUnavailable(f"the root helper was killed {_TRIES} times before it answered")

    def _next(self) -> socket.socket:
        if self._process and (status := _status(self._process)) >= 0:  # sudo sends itself its command's signal
            raise HelperUnavailable(self._ended(status))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = _run(self._arguments, theirs)
        return ours

    def _next_of_keeper(self, keeper: socket.socket) -> socket.socket:
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
        assert self._process is not None
        raise HelperUnavailable(self._ended(_status(self._process)))

    def _ended(self, status: int) -> str:
        if not self._running:
            return _not_started(self._arguments, status)
        return f"the root helper has ended by itself (exit status {status}), so it is not started again"

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
    """Closes `stdin`. Root's own helper gets no environment: it is nobody's deputy, as by sudo (SUDO_UID).

    Python writes bytecode of the helper before any line of it can set a umask: with root's own umask of 0 others could
    write there, and so run code as root.
    """
    env: dict[str, str] | None = {} if os.geteuid() == 0 else None
    with stdin:
        return subprocess.Popen(
            arguments, stdin=stdin.fileno(), stdout=subprocess.DEVNULL, stderr=stderr, cwd="/", env=env, umask=0o022
        )


def _greeted(ours: socket.socket) -> bool:
    """HELLO and its answer; without one, the socket is closed, which ends the helper if it lives."""
    try:
        ours.settimeout(HELLO_TIMEOUT_S)
        ours.send(wire.pack(wire.Type.HELLO, 0))
        greeted = wire.unpack(ours.recv(wire.MAX_MESSAGE)).type is wire.Type.WELCOME
        ours.settimeout(None)
    except (OSError, wire.WireError):
        greeted = False
    if not greeted:
        ours.close()
    return greeted


def _status(process: "subprocess.Popen[bytes]") -> int:
    """The exit status of what has closed its socket. Raises HelperUnavailable when it does not end."""
    try:
        return process.wait(HELLO_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise HelperUnavailable("the root helper neither answers nor ends") from None


def _not_started(arguments: list[str], status: int) -> str:
    if arguments[0] == "sudo" and status == 1:
        return (
            "sudo does not let this user start the root helper: install contrib/telehandler.sudoers as "
            "/etc/sudoers.d/telehandler (`make install-sudoers` does), or start this as root"
        )
    return f"the root helper did not start (exit status {status}); its message is above"
