"""Starts the root helper: `/usr/bin/python3 -I -S helper`, its socket as fd 0.

Its imports are few, because each one runs as root: the standard library, prctl, capng, and nothing
of `telehandler/`. Isolated mode (-I) and no site module (-S): no PYTHON* variable, no .pth file and
no user directory has a say in what is loaded.
"""

import errno
import gc
import os
import select
import signal
import socket
import struct
import sys
from contextlib import suppress

_HERE = os.path.dirname(os.path.realpath(__file__))
sys.path = [path for path in sys.path if os.path.realpath(path or ".") != _HERE]
# Last, so that neither can stand in for the standard library; Debian puts prctl and capng in the first.
sys.path += ["/usr/lib/python3/dist-packages", os.path.dirname(_HERE)]

import prctl  # noqa: E402

from helper import confine, policy  # noqa: E402
from helper.link import Link, refuse_fds  # noqa: E402
from helper.monitor import Monitor  # noqa: E402
from helper.uids import Uids  # noqa: E402
from helper.wire import WireError  # noqa: E402

EXIT_SETUP, EXIT_AGAIN, EXIT_VIOLATION = 125, 75, 3  # EXIT_AGAIN: it could not start now, and another try may do
_PASSING = (errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC)


def log(message: str) -> None:
    """One line on stderr, escaped and bounded. Never argv, env or output (S33)."""
    with suppress(OSError):  # nobody reads: that must not end a job
        os.write(2, f"telehandler-helper: {ascii(message)[1:-1][:500]}\n".encode())


def _options(arguments: list[str]) -> dict[str, str]:
    """The options by name. Anything unknown is an error."""
    options = dict(zip(arguments[::2], arguments[1::2], strict=False))
    absolute = all(map(os.path.isabs, options.values()))
    if len(arguments) % 2 or not absolute or not options.keys() <= {"--cgroup-root", "--policy"}:
        raise policy.SetupError("usage: telehandler-helper [--cgroup-root DIR] [--policy FILE]")
    return options


def _leave_caller() -> int:
    """Nothing of the caller's state stays: fds 0 to 2, signals, timers, limits, umask and directory (S42).

    Returns an fd that becomes readable at SIGTERM; handlers hold no logic (S31).
    """
    os.chdir("/")
    os.umask(0o022)
    while (fd := os.open("/dev/null", os.O_RDWR)) < 3:  # one that is closed would be the next file that is opened
        pass
    os.close(fd)
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        signal.setitimer(timer, 0)
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    # A terminal's signals are for the server; the helper ends when the server's socket does. The other two are errors
    # of a call instead.
    ignored = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP, signal.SIGPIPE, signal.SIGXFSZ)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)  # one that is pending goes
        signal.signal(number, signal.SIG_DFL)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if confine.set_rlimits(confine.RLIMITS["helper_needs"]):  # a container whose root may not raise them
        raise policy.SetupError("a hard limit (ulimit -H) cannot be raised by root here: start it without")
    confine.set_rlimits(confine.RLIMITS["helper"])
    return read_fd


def _socket(allowed_uids: list[int]) -> tuple[socket.socket, int]:
    """fd 0 as a socket whose end shows (S42), its peer checked (S7); a pidfd of the process that made it."""
    try:
        sock = socket.socket(fileno=0)
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        sock.getpeername()  # connected
        ours = sock.family == socket.AF_UNIX and sock.type in (socket.SOCK_SEQPACKET, socket.SOCK_STREAM)
        if not ours or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError
    except OSError:
        text = "stdin is not a connected socket whose end shows: start it by telehandler server or local"
        raise policy.SetupError(text) from None
    # Root, the caller of the setuid wrapper, the user behind sudo: who started us holds the other end.
    callers = {0, os.getuid(), int(os.environ.get("SUDO_UID", "0"))}
    keeper_for_others = sock.type is socket.SOCK_STREAM and callers != {0}
    if uid not in callers or (allowed_uids and uid not in allowed_uids) or keeper_for_others:
        raise policy.SetupError(f"uid {uid} may not use the helper: see allowed_uids in the policy")
    refuse_fds(sock)
    try:
        return sock, os.pidfd_open(pid)
    except OSError:  # in another pid namespace, or gone
        raise policy.SetupError("the process that made stdin's socket is not to be seen from here") from None


def _keep(control: socket.socket) -> int:
    """The keeper, for a server that was root: starts a helper for each byte it reads, one after the other.

    It sends the other end of the helper's socket, and reads on once that helper was killed by a signal, or could not
    start now. Returns the status of one that ended otherwise, which would do so again; 0 when the server is gone.
    """
    known_good = False
    while control.recv(1):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            refuse_fds(theirs)
            socket.send_fds(control, [b"L"], [ours.fileno()])
            # The helper's end takes the place of our control socket; every other fd closes on exec.
            actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0)]
            try:
                pid = os.posix_spawn(sys.executable, sys.orig_argv, {}, file_actions=actions)
            except OSError as error:  # no process to be had: the server, which sees its socket's end, asks again
                log(f"the helper cannot be started now: {error.strerror}")
                continue
        status = _outlive(pid, control)
        if status is None:
            return 0
        known_good |= status < 0
        if status >= 0 and status != EXIT_AGAIN and not (known_good and status == EXIT_SETUP):
            return status
    return 0


def _outlive(pid: int, control: socket.socket) -> int | None:
    """A helper's exit status, a signal as a negative number; None when the server has gone first.

    The helper then ends too, because its peer is our process.
    """
    poll = select.poll()
    with open(os.pidfd_open(pid), "rb") as pidfd:
        poll.register(pidfd, select.POLLIN)
        poll.register(control, select.POLLRDHUP)
        if pidfd.fileno() not in dict(poll.poll()):
            return None
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _set_up(options: dict[str, str]) -> tuple[socket.socket, policy.Policy, int]:
    """fd 0, the policy, and a pidfd of the peer."""
    if os.geteuid() != 0:
        raise policy.SetupError("the helper must run as root: by sudo, the setuid wrapper, or from a root shell")
    if os.uname().machine != "x86_64":
        raise policy.SetupError(f"this machine is {os.uname().machine}; the helper knows x86_64 only")
    prctl.set_dumpable(0)
    seen: set[str] = set()
    policy.trusted_code(seen)
    rules = policy.load(options.get("--policy"), seen)
    sock, peer_fd = _socket(rules.allowed_uids)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.environ.clear()
    return sock, rules, peer_fd


def main() -> int:
    """The exit status: 0 after EOF, 3 after a violation, 125 when it could not start, 75 when another try may do."""
    try:
        signal_fd = _leave_caller()  # must come first
        options = _options(sys.argv[1:])
        sock, rules, peer_fd = _set_up(options)
        if sock.type is socket.SOCK_STREAM:
            return _keep(sock)
        confine.drop_bounding_set()
        monitor = Monitor(Link(sock), rules, Uids(rules), options.get("--cgroup-root", rules.cgroup_root))
    except (policy.SetupError, OSError, MemoryError) as error:
        log(str(error) or "out of memory")
        passing = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _PASSING)
        return EXIT_AGAIN if passing else EXIT_SETUP
    # Nothing of the start-up is garbage: frozen, it is not touched, so not copied, in the children.
    gc.freeze()
    try:
        monitor.run(signal_fd, peer_fd)
    except (WireError, OSError, MemoryError) as error:
        log(f"every job was killed: {type(error).__name__}: {error}")
        return EXIT_VIOLATION
    return 0


if __name__ == "__main__":
    sys.exit(main())
