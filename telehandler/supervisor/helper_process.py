"""Starting the root helper, once or again: directly as root, by the setuid wrapper, or by sudo -n."""

import contextlib
import os
import select
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from helper import wire
from telehandler.common import capacity, fds, process_state
from telehandler.common.errors import HelperNotNow, HelperUnavailable
from telehandler.supervisor import prerequisites

T = TypeVar("T")
INSTALLED = Path("/usr/local/lib/telehandler")
PYTHON = "/usr/bin/python3"
HELLO_TIMEOUT_S = 20.0
_PAUSES_S = (0.05, 0.2, 0.5, 1.0, 2.0)  # between the attempts of a first start
_EXIT_AGAIN = 75  # of a helper that could not start now: of helper/__main__.py


def command(cgroup_root: str | None, policy: str | None) -> list[str]:
    """The helper's command line for this user. Raises HelperUnavailable, for all that is missing, with a remedy."""
    prerequisites.require(cgroup_root, policy)
    checkout, installed = Path(__file__).resolve().parents[2] / "helper", INSTALLED / "helper"
    given = {"--cgroup-root": cgroup_root, "--policy": policy}
    # Absolute: the helper runs in /.
    options = [word for flag, path in given.items() if path for word in (flag, process_state.absolute(path))]
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

    def attempt() -> tuple["subprocess.Popen[bytes]", socket.socket]:
        ours, theirs = _pair()
        process = _run_with(ours, arguments, theirs, stderr)
        if _greeted(ours):
            return process, ours
        raise _failure(arguments, _status(process))

    return _with_patience(attempt)


def _with_patience(attempt: Callable[[], T]) -> T:
    """Makes an attempt again, after a pause, as long as what keeps it from success may pass; bounded by _PAUSES_S."""
    for pause_s in (*_PAUSES_S, None):
        try:
            return attempt()
        except OSError as error:  # of ours: no process, memory or fd to be had
            failure = HelperNotNow(f"the root helper cannot be started: {error.strerror}")
            if error.errno not in capacity.ERRORS:
                raise HelperUnavailable(str(failure)) from None
        except HelperNotNow as error:
            failure = error
        if pause_s is not None:
            time.sleep(pause_s)
    raise failure


class Helpers:
    """The helpers of a server, one after the other. `link` is our end of the last one's socket.

    As root one keeper starts them all, since the server has given up root by the second: see helper/README.md. Else
    the command is run again.
    """

    def __init__(self, cgroup_root: str | None, policy: str | None) -> None:
        self._arguments = command(cgroup_root, policy)
        self._process: subprocess.Popen[bytes] | None = None  # the keeper, or the last helper
        self._keeper: socket.socket | None = None
        self._by_keeper = os.geteuid() == 0
        self._running = False  # one has been
        self._served = False  # the last one has: it was greeted
        self.link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # until the first helper's

    def start(self) -> None:
        """The first helper, or, once one was killed by a signal, the next; greeted.

        Raises HelperUnavailable, also when one that had served ended by itself: the next would too. Once one has
        served, what keeps another from starting may pass: HelperNotNow or OSError, and the caller may try again. The
        first is tried again here, while this process still is who it was started as.
        """
        if self._running:
            return self._attempt()
        try:
            _with_patience(self._attempt)
        except HelperUnavailable:
            self.link.close()
            raise

    def _attempt(self) -> None:
        ours = self._next_of_keeper() if self._by_keeper else self._next()
        self._served = _greeted(ours)
        if not self._served:
            raise HelperNotNow("the root helper did not answer; if it said why, its message is above")
        self.link.close()
        self.link, self._running = ours, True

    def _next(self) -> socket.socket:
        if self._process:
            status = _status(self._process)  # sudo sends itself its command's signal
            passing = status < 0 or status == _EXIT_AGAIN or (self._running and not self._served)
            if not passing:
                raise HelperUnavailable(self._ended(status))
        ours, theirs = _pair()
        self._process = _run_with(ours, self._arguments, theirs)
        return ours

    def _next_of_keeper(self) -> socket.socket:
        if not self._keeper:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            self._process, self._keeper = _run_with(ours, self._arguments, theirs), ours
            self._keeper.settimeout(HELLO_TIMEOUT_S)
        passed: list[int] = []
        try:
            self._keeper.send(b"L")
            _, whole, passed = fds.receive(self._keeper, 1, 1)
        except OSError:
            whole = False
        if whole and len(passed) == 1:
            return socket.socket(fileno=passed[0])
        fds.close_all(passed)
        self._keeper.close()  # its end, if it is there at all
        assert self._process is not None
        status = _status(self._process)
        if not self._running and status == _EXIT_AGAIN:
            self._keeper = None  # we are root still, and can start another
            raise _failure(self._arguments, status)
        raise HelperUnavailable(self._ended(status))

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


def _pair() -> tuple[socket.socket, socket.socket]:
    """The two ends of a helper's socket. No fd can be sent to the helper; it would take none anyway."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fds.refuse(theirs)
    return ours, theirs


def _run_with(
    ours: socket.socket, arguments: list[str], theirs: socket.socket, stderr: int | None = None
) -> "subprocess.Popen[bytes]":
    """Closes `ours`, the other end of `theirs`, when nothing can be run."""
    try:
        return _run(arguments, theirs, stderr)
    except OSError:
        ours.close()
        raise


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
        raise HelperNotNow("the root helper neither answers nor ends") from None


def _failure(arguments: list[str], status: int) -> HelperUnavailable:
    """Of a start: HelperNotNow when another try may do, as after a signal."""
    kind = HelperNotNow if status < 0 or status == _EXIT_AGAIN else HelperUnavailable
    return kind(_not_started(arguments, status))


def _not_started(arguments: list[str], status: int) -> str:
    if arguments[0] == "sudo" and status == 1:
        return (
            "sudo does not let this user start the root helper: install contrib/telehandler.sudoers as "
            "/etc/sudoers.d/telehandler (`make install-sudoers` does), or start this as root"
        )
    return f"the root helper did not start (exit status {status}); its message is above"
