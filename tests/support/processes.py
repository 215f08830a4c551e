"""Which processes there are, by /proc."""

import ctypes
import os
import signal
import socket
import stat
from pathlib import Path

from support.wait import wait_until

_SYS_PIDFD_GETFD = 438


def descendants(pid: int) -> list[int]:
    """All processes below `pid`."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue  # it has just ended
        for child in children:
            found += [int(child), *descendants(int(child))]
    return found


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(pid: int) -> None:
    """SIGKILL, and waits until the process has ended."""
    os.kill(pid, signal.SIGKILL)
    wait_until("it has ended", lambda: not alive(pid))


def live_processes_with(text: str) -> list[int]:
    """Those of `processes_with` that are no zombies."""
    return [pid for pid in processes_with(text) if alive(pid)]


def processes_with(text: str) -> list[int]:
    """The pids of processes whose command line contains `text`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            pass  # it has just ended
    return found


def copies_of_unix_sockets(pid: int) -> list[socket.socket]:
    """Copies of another process's AF_UNIX sockets, but for its fd 0: pidfd_getfd(2)."""
    libc, pidfd = ctypes.CDLL(None, use_errno=True), os.pidfd_open(pid)
    copies = []
    for name in sorted(os.listdir(f"/proc/{pid}/fd")):
        fd = libc.syscall(_SYS_PIDFD_GETFD, pidfd, int(name), 0)
        if fd < 0:
            continue  # closed meanwhile
        if name != "0" and stat.S_ISSOCK(os.fstat(fd).st_mode):
            copy = socket.socket(fileno=fd)
            if copy.family == socket.AF_UNIX and copy.type == socket.SOCK_SEQPACKET:
                copies.append(copy)
            else:
                copy.close()
        else:
            os.close(fd)
    os.close(pidfd)
    return copies
