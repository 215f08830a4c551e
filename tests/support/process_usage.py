"""What a process holds and uses, by /proc, and limits set on it while it runs."""

import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class ProcessUsage(NamedTuple):
    """Counts; `zombies` and `children` of its own."""

    fds: int
    threads: int
    children: int
    zombies: int

    def within(self, before: "ProcessUsage") -> bool:
        """Whether none of it is more than before; a little that was under way then may have gone since."""
        return all(now <= then for now, then in zip(self, before, strict=True))


def process_usage(pid: int) -> ProcessUsage:
    proc = Path(f"/proc/{pid}")
    tasks = list((proc / "task").iterdir())
    children = [int(word) for task in tasks for word in (task / "children").read_text().split()]
    return ProcessUsage(
        len(os.listdir(proc / "fd")), len(tasks), len(children), sum(_is_zombie(child) for child in children)
    )


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def cpu_ticks(pid: int) -> int:
    """Processor time it has used, in clock ticks of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def memory_bytes(pid: int, key: str) -> int:
    """VmRSS now, or VmHWM, its highest so far."""
    return int(Path(f"/proc/{pid}/status").read_text().split(f"{key}:")[1].split()[0]) * 1024


def rss_bytes(pid: int) -> int:
    return memory_bytes(pid, "VmRSS")


def private_kib(pid: int) -> int:
    """Memory that it shares with nobody: proc(5), smaps_rollup."""
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(row.split()[1]) for row in rows if row.startswith("Private_"))


def highest_fd(pid: int) -> int:
    return max(int(name) for name in os.listdir(f"/proc/{pid}/fd"))


def fds_of_same_file(fd: int) -> int:
    """How many fds of this process are of the file that `fd` is of, itself among them.

    All others say nothing in a process with threads that open and close their own.
    """
    count, wanted = 0, os.fstat(fd)
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            count += os.path.samestat(path.stat(), wanted)
    return count


def limit_fds(pid: int, most: int | None) -> None:
    """Sets the soft limit of a running process, or its hard one's value again. As its user: root may lack the power."""
    if most is None:
        lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
        most = next(int(line.split()[4]) for line in lines if line.startswith("Max open files"))
    status = Path(f"/proc/{pid}/status").read_text()
    uid, gid = (int(status.split(name)[1].split()[0]) for name in ("Uid:", "Gid:"))
    command = ["prlimit", "--pid", str(pid), f"--nofile={most}:"]
    subprocess.run(command, check=True, capture_output=True, user=uid, group=gid, extra_groups=[])
