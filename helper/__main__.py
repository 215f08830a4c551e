"""Starts the root helper: `/usr/bin/python3 -I -S helper`, its socket as fd 0.

Its imports are few, because each one runs as root: the standard library, prctl, capng, and nothing
of `telehandler/`. Isolated mode (-I) and no site module (-S): no PYTHON* variable, no .pth file and
no user directory has a say in what is loaded.
"""

import gc
import os
import resource
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

from helper import cgroup, policy  # noqa: E402
from helper.monitor import Monitor  # noqa: E402
from helper.uids import Uids  # noqa: E402
from helper.wire import WireError  # noqa: E402

EXIT_SETUP, EXIT_VIOLATION = 125, 3


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


def _socket(allowed_uids: list[int]) -> socket.socket:
    """fd 0 as the connected socket, its peer checked (S7)."""
    try:
        sock = socket.socket(fileno=0)
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    except OSError:
        raise policy.SetupError("stdin is not a socket: start it by telehandler server or local") from None
    # Root, the caller of the setuid wrapper, the user behind sudo: who started us holds the other end.
    callers = {0, os.getuid(), int(os.environ.get("SUDO_UID", "0"))}
    keeper_for_others = sock.type is socket.SOCK_STREAM and callers != {0}
    if uid not in callers or (allowed_uids and uid not in allowed_uids) or keeper_for_others:
        raise policy.SetupError(f"uid {uid} may not use the helper: see allowed_uids in the policy")
    return sock


def _catch_signals() -> int:
    """An fd that becomes readable at SIGTERM; handlers hold no logic (S31)."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    # A terminal's signals are for the server; the helper ends when the server's socket does.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    return read_fd


def _keep(control: socket.socket) -> int:
    """The keeper, for a server that was root: starts a helper for each byte it reads, one after the other.

    It sends the other end of the helper's socket, and reads on once that helper was killed by a signal. Returns the
    status of one that ended otherwise, which would do so again; 0 when the server is gone.
    """
    while control.recv(1):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            socket.send_fds(control, [b"L"], [ours.fileno()])
            # The helper's end takes the place of our control socket; every other fd closes on exec.
            actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0)]
            pid = os.posix_spawn(sys.executable, sys.orig_argv, {}, file_actions=actions)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])  # a signal as a negative number
        if status >= 0:
            return status
    return 0


def _set_up(options: dict[str, str]) -> tuple[socket.socket, policy.Policy, int]:
    """fd 0, the policy, and the fd that tells of SIGTERM."""
    if os.geteuid() != 0:
        raise policy.SetupError("the helper must run as root: by sudo, the setuid wrapper, or from a root shell")
    if os.uname().machine != "x86_64":
        raise policy.SetupError(f"this machine is {os.uname().machine}; the helper knows x86_64 only")
    prctl.set_dumpable(0)
    seen: set[str] = set()
    policy.trusted_code(seen)
    rules = policy.load(options.get("--policy"), seen)
    sock = _socket(rules.allowed_uids)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.environ.clear()
    os.chdir("/")
    # Each job holds up to eight fds.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return sock, rules, _catch_signals()


def main() -> int:
    """The exit status: 0 after EOF or SIGTERM, 3 after a violation, 125 when it could not start."""
    try:
        options = _options(sys.argv[1:])
        sock, rules, signal_fd = _set_up(options)
        if sock.type is socket.SOCK_STREAM:
            return _keep(sock)
        uids = Uids(rules)
        monitor = Monitor(sock, rules, uids, cgroup.Base(options.get("--cgroup-root", rules.cgroup_root)), signal_fd)
    except (policy.SetupError, OSError) as error:
        log(str(error))
        return EXIT_SETUP
    # Nothing of the start-up is garbage: frozen, it is not touched, so not copied, in the children.
    gc.freeze()
    try:
        monitor.run()
    except (WireError, OSError, MemoryError) as error:
        log(f"every job was killed: {type(error).__name__}: {error}")
        return EXIT_VIOLATION
    return 0


if __name__ == "__main__":
    sys.exit(main())
