"""Starting the root helper: directly as root, by the setuid wrapper, or by sudo -n."""

import os
import shutil
import socket
import stat
import subprocess
from pathlib import Path

from helper import wire
from telehandler import prerequisites
from telehandler.errors import HelperUnavailable

INSTALLED = Path("/usr/local/lib/telehandler")
PYTHON = "/usr/bin/python3"
HELLO_TIMEOUT_S = 20.0


def command(cgroup_root: str | None, policy: str | None) -> list[str]:
    """The helper's command line for this user. Raises HelperUnavailable, for all that is missing, with a remedy."""
    prerequisites.require(cgroup_root, policy)
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
    with theirs:
        process = subprocess.Popen(arguments, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=stderr, cwd="/")
    try:
        ours.settimeout(HELLO_TIMEOUT_S)
        ours.send(wire.pack(wire.Type.HELLO, 0))
        greeted = wire.unpack(ours.recv(wire.MAX_MESSAGE)).type is wire.Type.WELCOME
    except (OSError, wire.WireError):
        greeted = False
    if not greeted:
        ours.close()
        status = process.wait()
        if arguments[0] == "sudo" and status == 1:
            raise HelperUnavailable(
                "sudo does not let this user start the root helper: install contrib/telehandler.sudoers as "
                "/etc/sudoers.d/telehandler (`sudo make install` does), or start this as root"
            )
        raise HelperUnavailable(f"the root helper did not start (exit status {status}); its message is above")
    ours.settimeout(None)
    return process, ours
