"""Starts the root helper: `/usr/bin/python3 -I -S helper`, its socket as fd 0.

Its imports are few, because each one runs as root: the standard library, prctl, capng, and nothing
of `telehandler/`. Isolated mode (-I) and no site module (-S): no PYTHON* variable, no .pth file and
no user directory has a say in what is loaded.
"""

import gc
import os
import signal
import socket
import struct
import sys

_HERE = os.path.dirname(os.path.realpath(__file__))
sys.path = [path for path in sys.path if os.path.realpath(path or ".") != _HERE]
# Last, so that neither can stand in for the standard library; Debian puts prctl and capng in the first.
sys.path += ["/usr/lib/python3/dist-packages", os.path.dirname(_HERE)]

import prctl  # noqa: E402

from helper import cgroup, confine, policy  # noqa: E402
from helper.log import log  # noqa: E402
from helper.monitor import Monitor  # noqa: E402
from helper.wire import WireError  # noqa: E402

EXIT_SETUP = 125
EXIT_VIOLATION = 3
_USAGE = "usage: telehandler-helper [--cgroup-root DIR] [--policy FILE] [--insecure-development]"


class SetupError(Exception):
    """The helper cannot start; the message says why and what to do."""


def _options(arguments: list[str]) -> tuple[str | None, str | None, bool]:
    """(cgroup root, policy file, development switch). Anything unknown is an error."""
    values: dict[str, str] = {}
    development = False
    rest = list(arguments)
    while rest:
        name = rest.pop(0)
        if name == "--insecure-development":
            development = True
        elif name in ("--cgroup-root", "--policy") and rest and os.path.isabs(rest[0]):
            values[name] = rest.pop(0)
        else:
            raise SetupError(_USAGE)
    return values.get("--cgroup-root"), values.get("--policy"), development


def _callers() -> set[int]:
    """Who may hold the other end: root, the caller of a setuid wrapper, the user behind sudo."""
    sudo_uid = os.environ.get("SUDO_UID", "")
    return {0, os.getuid()} | ({int(sudo_uid)} if sudo_uid.isascii() and sudo_uid.isdigit() else set())


def _socket(allowed: set[int]) -> socket.socket:
    """fd 0 as the connected socket, moved away from 0, its peer checked (S7)."""
    try:
        sock = socket.socket(fileno=os.dup(0))
        kind = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except OSError:
        raise SetupError("stdin is not a socket: telehandler server and telehandler local start the helper") from None
    if sock.family != socket.AF_UNIX or kind != socket.SOCK_SEQPACKET:
        raise SetupError("stdin is not a unix seqpacket socket")
    uid = struct.unpack("3i", credentials)[1]
    if uid not in allowed:
        raise SetupError(f"uid {uid} may not use the helper: see allowed_uids in the policy")
    null_fd = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null_fd, 0)
    os.close(null_fd)
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
    cgroup_root, policy_file, development = _options(arguments)
    if os.geteuid() != 0:
        raise SetupError("the helper must run as root")
    if development and _callers() != {0}:
        raise SetupError("--insecure-development is for root alone")
    callers = _callers()
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.setgroups([])
    os.environ.clear()
    os.chdir("/")
    os.umask(0o077)
    prctl.set_dumpable(0)
    confine.check_machine()
    seen = {"/dev/null"}
    if development:
        log("INSECURE: code and policy are not checked for who can write them")
        seen.add("/")
    else:
        policy.trusted_code(seen)
    rules = policy.load(policy_file, seen)
    allowed = set(rules.allowed_uids) & callers if rules.allowed_uids else callers
    sock = _socket(allowed)
    signal_fd = _catch_signals()
    base = cgroup.Base(cgroup.find_root(cgroup_root or rules.cgroup_root))
    return Monitor(sock, rules, base, signal_fd)


def main() -> int:
    """The exit status: 0 after EOF or SIGTERM, 3 after a violation, 125 when it could not start."""
    try:
        monitor = _set_up(sys.argv[1:])
    except (SetupError, policy.PolicyError, cgroup.CgroupError, RuntimeError, OSError) as error:
        log(str(error))
        return EXIT_SETUP
    # Nothing of the start-up is garbage: frozen, it is not touched, so not copied, in the children.
    gc.collect()
    gc.freeze()
    try:
        monitor.run()
    except WireError as error:
        log(f"protocol violation, every job was killed: {error}")
        return EXIT_VIOLATION
    return 0


if __name__ == "__main__":
    sys.exit(main())
