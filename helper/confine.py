"""What a new job's init does to itself before anything of the user's runs: network, then privileges.

Runs in the child, as root in fresh namespaces, once view.py has changed its root. The order matters; each step says
why. Any failure raises OSError and ends the child before exec.
"""

import errno
import fcntl
import os
import signal
import socket
import struct
from contextlib import suppress

import capng
import prctl

from helper import seccomp
from helper import syscalls as sc

FILTER = seccomp.program()
with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as _file:
    LAST_CAPABILITY = int(_file.read())  # may be more than prctl and capng know by name
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


def set_up_network() -> None:
    """Hostname and the loopback interface, which a new network namespace has, down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP))


def drop_privileges(uid: int) -> None:
    """Gives up every privilege for good, then reads back what the kernel says."""
    # The bounding set first: it takes CAP_SETPCAP, which goes with uid 0.
    for capability in range(LAST_CAPABILITY + 1):
        prctl.capbset_drop(capability)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # After the uid: the new keyring is the job's own. Before the filter, which denies keyctl.
    sc.new_session_keyring()
    # The kernel empties the ambient set with the inheritable one: capabilities(7).
    capng.capng_clear(capng.CAPNG_SELECT_CAPS)
    if capng.capng_apply(capng.CAPNG_SELECT_CAPS) != 0:
        raise PermissionError(errno.EPERM, "capng_apply failed")
    prctl.set_no_new_privs(1)
    prctl.set_dumpable(0)  # the init's memory is a copy of the helper's
    # After the change of uid, which clears it: prctl(2). Had the helper died before, the status pipe would tell.
    prctl.set_pdeathsig(signal.SIGKILL)
    sc.set_seccomp_filter(FILTER)
    _read_back(uid)


def _read_back(uid: int) -> None:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        status = {name: value.split() for name, _, value in (line.partition(":") for line in file)}
    wanted = {"Uid": [str(uid)] * 4, "Gid": [str(uid)] * 4, "Groups": [], "NoNewPrivs": ["1"], "Seccomp": ["2"]}
    wanted |= {f"Cap{name}": ["0" * 16] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
    wrong = [name for name, value in wanted.items() if status.get(name) != value]
    with suppress(PermissionError):
        os.setuid(0)
        wrong.append("uid 0 came back")
    if wrong:
        raise PermissionError(errno.EPERM, f"not as wanted after the drop: {wrong}")
