"""Which processes there are, by /proc."""

import os
import signal
from pathlib import Path

from support.wait import wait_until


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
