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
from helper.wire import WireError  # noqa: E402

EXIT_SETUP, EXIT_VIOLATION = 125, 3
_USAGE = "usage: telehandler-helper [--cgroup-root DIR] [--policy FILE]"


def log(message: str) -> None:
    """One line on stderr, escaped and bounded. Never argv, env or output (S33)."""
    with suppress(OSError):  # nobody reads: that must not end a job
        os.write(2, f"telehandler-helper: {ascii(message)[1:-1][:500]}\n".encode())


def _options(arguments: list[str]) -> dict[str, str]:
    """The options by name. Anything unknown is an error."""
    options = dict(zip(arguments[::2], arguments[1::2], strict=False))
    absolute = all(map(os.path.isabs, options.values()))
    if len(arguments) % 2 or not absolute or not options.keys() <= {"--cgroup-root", "--policy"}:
        raise policy.SetupError(_USAGE)
    return options


def _socket(allowed_uids: list[int]) -> socket.socket:
    """fd 0 as the connected socket, its peer checked (S7)."""
    try:
        sock = socket.socket(fileno=0)
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except OSError:
        raise policy.SetupError("stdin is not a socket: start it by telehandler server or local") from None
    # Root, the caller of the setuid wrapper, the user behind sudo: who started us holds the other end.
    callers = {0, os.getuid(), int(os.environ.get("SUDO_UID", "0"))}
    uid = struct.unpack("3i", credentials)[1]
    if uid not in callers or (allowed_uids and uid not in allowed_uids):
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


def _set_up(arguments: list[str]) -> Monitor:
    options = _options(arguments)
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
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # each job holds up to eight fds
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal_fd = _catch_signals()
    base = cgroup.Base(cgroup.find_root(options.get("--cgroup-root", rules.cgroup_root)))
    return Monitor(sock, rules, base, signal_fd)


def main() -> int:
    """The exit status: 0 after EOF or SIGTERM, 3 after a violation, 125 when it could not start."""
    try:
        monitor = _set_up(sys.argv[1:])
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
