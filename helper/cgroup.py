"""cgroup v2: the helper's own directory, one directory a job below it, limits, facts, removal.

See the kernel's Documentation/admin-guide/cgroup-v2.rst. Names come from job handles alone.
"""

import errno
import fcntl
import os
import stat
from typing import NamedTuple

from helper.policy import CONTROLLERS
from helper.wire import Limit

_PREFIX = "telehandler."
_CPU_PERIOD_USEC = 100_000
_READ_BOUND = 64 * 1024
_CONTROLLER_OF = {
    Limit.CPU_MILLIS: "cpu",
    Limit.MEMORY_BYTES: "memory",
    Limit.MEMORY_HIGH_BYTES: "memory",
    Limit.PIDS: "pids",
    Limit.READ_BPS: "io",
    Limit.WRITE_BPS: "io",
    Limit.READ_IOPS: "io",
    Limit.WRITE_IOPS: "io",
}
_IO_KEYS = {Limit.READ_BPS: "rbps", Limit.WRITE_BPS: "wbps", Limit.READ_IOPS: "riops", Limit.WRITE_IOPS: "wiops"}


class CgroupError(Exception):
    """No usable cgroup v2, or a limit that cannot be enforced; the message says what to do."""


class Facts(NamedTuple):
    usage_usec: int
    memory_peak: int
    oom_kills: int


def find_root(wanted: str) -> str:
    """`wanted` when it lies on cgroup v2, else the cgroup2 mount below it (a hybrid set-up)."""
    wanted = os.path.realpath(wanted)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        fields = [line.split() for line in file]
    mounts = [row[4] for row in fields if row[row.index("-") + 1] == "cgroup2"]
    if os.path.isdir(wanted) and os.path.exists(f"{wanted}/cgroup.controllers"):
        return wanted
    for point in mounts:
        if point.startswith(wanted.rstrip("/") + "/"):
            return point
    raise CgroupError(f"no cgroup v2 at or below {wanted}: mount cgroup2 there, or name it with --cgroup-root")


def write(dir_fd: int, name: str, value: str) -> None:
    """Writes a cgroup file in one write, as the kernel wants it."""
    fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=dir_fd)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def read(dir_fd: int, name: str) -> str:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=dir_fd)
    try:
        return os.read(fd, _READ_BOUND).decode()
    finally:
        os.close(fd)


def open_dir(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)


def _value(dir_fd: int, name: str, key: str) -> int:
    """A number of a flat-keyed file, or of a single-value file with an empty `key`; 0 when absent."""
    try:
        text = read(dir_fd, name)
    except FileNotFoundError:
        return 0
    if not key:
        return int(text)
    return next((int(line.split()[1]) for line in text.splitlines() if line.split()[0] == key), 0)


def populated(dir_fd: int) -> bool:
    return _value(dir_fd, "cgroup.events", "populated") == 1


def kill(dir_fd: int) -> None:
    """SIGKILL to everything in the cgroup and below; nothing can be born into it afterwards."""
    write(dir_fd, "cgroup.kill", "1")


def facts(dir_fd: int) -> Facts:
    return Facts(
        _value(dir_fd, "cpu.stat", "usage_usec"),
        _value(dir_fd, "memory.peak", ""),
        _value(dir_fd, "memory.events", "oom_kill"),
    )


def remove(path: str) -> None:
    """Removes a cgroup and its descendants, deepest first. EBUSY while something lives in it."""
    for directory, _, _ in os.walk(path, topdown=False):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            pass


def _disk(device: int) -> str | None:
    """MAJ:MIN of the whole disk that `device` is, or is a partition of; None when it is no disk."""
    number = f"{os.major(device)}:{os.minor(device)}"
    path = os.path.realpath(f"/sys/dev/block/{number}")
    if os.path.exists(f"{path}/partition"):
        path = os.path.dirname(path)
    try:
        with open(f"{path}/dev", encoding="ascii") as file:
            return file.read().strip()
    except FileNotFoundError:
        return None


def disks(paths: tuple[str, ...]) -> tuple[str, ...]:
    """The disks that back `paths`, or that they are, when they are device nodes."""
    found = set()
    for path in paths:
        status = os.stat(path)
        found.add(_disk(status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev))
    return tuple(sorted(filter(None, found)))


class Base:
    """The helper's directory `telehandler.PID`, locked so that no other helper sweeps it."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._sweep()
        self.path = f"{root}/{_PREFIX}{os.getpid()}"
        os.mkdir(self.path, 0o755)
        self.fd = open_dir(self.path)
        fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.controllers = self._enable()

    def _sweep(self) -> None:
        """Ends what a helper that was killed left: its lock is gone, its directory is not."""
        for name in os.listdir(self.root):
            if not name.startswith(_PREFIX):
                continue
            path = f"{self.root}/{name}"
            try:
                fd = open_dir(path)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if populated(fd):
                    kill(fd)
                remove(path)
            except BlockingIOError:
                pass  # a live helper's
            except OSError as error:
                if error.errno != errno.EBUSY:  # still dying: the next helper removes it
                    raise
            finally:
                os.close(fd)

    def _enable(self) -> frozenset[str]:
        """Turns on every controller of ours that the root has; the ones that ended up on."""
        root_fd = open_dir(self.root)
        try:
            available = set(read(root_fd, "cgroup.controllers").split())
            for controller in available.intersection(CONTROLLERS):
                for fd in (root_fd, self.fd):
                    try:
                        write(fd, "cgroup.subtree_control", f"+{controller}")
                    except OSError:
                        break  # reported as missing: a job that needs it is refused
        finally:
            os.close(root_fd)
        return frozenset(read(self.fd, "cgroup.subtree_control").split())

    def create(self, handle: int, limits: dict[Limit, int], without: tuple[str, ...], disk_list: tuple[str, ...]) -> int:
        """A new cgroup for a job, its limits set; the directory's fd.

        Raises CgroupError when a limit's controller is missing and not in `without`.
        """
        rows = self._rows(limits, without, disk_list)
        path = self.job_path(handle)
        os.mkdir(path, 0o755)
        try:
            fd = open_dir(path)
            try:
                for name, value in rows:
                    write(fd, name, value)
                return fd
            except OSError:
                os.close(fd)
                raise
        except OSError:
            os.rmdir(path)
            raise

    def job_path(self, handle: int) -> str:
        return f"{self.path}/job-{handle}"

    def _rows(self, limits: dict[Limit, int], without: tuple[str, ...], disk_list: tuple[str, ...]) -> list[tuple[str, str]]:
        enforced: dict[Limit, int] = {}
        for limit, value in limits.items():
            controller = _CONTROLLER_OF.get(limit)
            if controller in self.controllers and not (controller == "io" and not disk_list):
                enforced[limit] = value
            elif controller is not None and controller not in without:
                cause = "no disk backs the job's files" if controller in self.controllers else f"is not available in {self.root}"
                raise CgroupError(
                    f"the cgroup controller {controller} {cause}, so {limit.name.lower()} cannot be enforced; "
                    f"the policy's allow_missing_controllers can allow jobs without it"
                )
        rows = []
        if Limit.CPU_MILLIS in enforced:
            quota = max(1000, enforced[Limit.CPU_MILLIS] * _CPU_PERIOD_USEC // 1000)
            rows.append(("cpu.max", f"{quota} {_CPU_PERIOD_USEC}"))
        if Limit.MEMORY_BYTES in enforced:
            rows.append(("memory.max", str(enforced[Limit.MEMORY_BYTES])))
            rows.append(("memory.high", str(enforced[Limit.MEMORY_HIGH_BYTES])))
            rows.append(("memory.oom.group", "1"))
            if os.path.exists(f"{self.path}/memory.swap.max"):  # absent: the kernel cannot swap
                rows.append(("memory.swap.max", "0"))
        if Limit.PIDS in enforced:
            rows.append(("pids.max", str(enforced[Limit.PIDS])))
        io_limits = " ".join(f"{_IO_KEYS[limit]}={value}" for limit, value in enforced.items() if limit in _IO_KEYS)
        rows += [("io.max", f"{disk} {io_limits}") for disk in disk_list if io_limits]
        return rows

    def remove(self) -> None:
        remove(self.path)
        os.close(self.fd)
