"""cgroup v2: the helper's own directory, one directory a job below it, limits, facts, removal.

See the kernel's Documentation/admin-guide/cgroup-v2.rst. Names come from job handles alone.
"""

import errno
import fcntl
import os
import select
import stat
import time
from contextlib import suppress

from helper.policy import CONTROLLERS, Refusal, SetupError, data
from helper.wire import Stage

_PREFIX = "telehandler."
_CPU_PERIOD_USEC = 100_000
_READ_BOUND = 64 * 1024
_END_DEADLINE_S = 10.0  # for the kernel to end what was killed
_TRIES = 100  # to make our directory: more than helpers that can start while we do
_MOVES = 10  # of the processes out of a cgroup that is to have controllers
_TABLES = data("cgroup.toml")
_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


def find_root(wanted: str) -> str:
    """`wanted` when it lies on cgroup v2, else the cgroup2 mount below it (a hybrid set-up)."""
    wanted = os.path.realpath(wanted)
    if os.path.exists(f"{wanted}/cgroup.controllers"):
        return wanted
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for row in map(str.split, file):
            if row[row.index("-") + 1] == "cgroup2" and row[4].startswith(wanted.rstrip("/") + "/"):
                return row[4]
    raise SetupError(f"no cgroup v2 at or below {wanted}: mount cgroup2 there, or name another with --cgroup-root")


def write(dir_fd: int | None, name: str, value: str) -> None:
    """Writes a file of a cgroup, or with None one of /proc, in one write, as the kernel wants it."""
    with open(os.open(name, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=dir_fd), "wb", buffering=0) as file:
        file.write(value.encode())


def read(dir_fd: int, name: str) -> str:
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=dir_fd), "rb", buffering=0) as file:
        return (file.read(_READ_BOUND) or b"").decode(errors="replace")


def number(dir_fd: int, name: str, key: str = "") -> int:
    """A figure of a flat-keyed file, or of a single-value file with no `key`; 0 when absent."""
    with suppress(FileNotFoundError):  # its controller is not on
        words = read(dir_fd, name).split()
        return int(words[words.index(key) + 1 if key else 0])
    return 0


def create(path: str) -> int:
    """A new cgroup; its directory's fd."""
    os.mkdir(path, 0o755)
    return os.open(path, _OPEN_DIR)


def kill(dir_fd: int) -> None:
    """SIGKILL to everything in the cgroup and below; nothing can be born into it afterwards."""
    write(dir_fd, "cgroup.kill", "1")


def facts(dir_fd: int) -> dict[str, int]:
    """What EXITED tells of a cgroup."""
    return {fact: number(dir_fd, *where) for fact, where in _TABLES["facts"].items()}


def remove(path: str) -> bool:
    """Removes a cgroup and its descendants, deepest first; False while something lives in it."""
    # `path` itself first: mostly that is all, and it takes no fd, which there may be none of.
    for directories in ([path], (found for found, _, _ in os.walk(path, topdown=False))):
        for directory in directories:
            with suppress(OSError):  # EBUSY
                os.rmdir(directory)
    return not os.path.exists(path)


def end(dir_fd: int, path: str) -> None:
    """Kills everything in a cgroup and below, and removes it once all of that is dead."""
    kill(dir_fd)
    poll, deadline = select.poll(), time.monotonic() + _END_DEADLINE_S
    with open(os.open("cgroup.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd), "rb") as events:
        poll.register(events, select.POLLPRI)
        while b"populated 1" in os.pread(events.fileno(), 256, 0) and time.monotonic() < deadline:
            poll.poll(_END_DEADLINE_S * 1000)
    remove(path)


def disks(paths: list[str]) -> list[str]:
    """MAJ:MIN of the whole disks that back `paths`, or that they are, when they are device nodes."""
    found = set()
    for status in map(os.stat, paths):
        device = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev
        path = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
        name = "../dev" if os.path.exists(f"{path}/partition") else "dev"  # a partition lies in its disk's directory
        with suppress(FileNotFoundError), open(f"{path}/{name}", encoding="ascii") as file:
            found.add(file.read().strip())
    return sorted(found)


class Base:
    """The helper's directory `telehandler.PID`, locked so that no other helper sweeps it.

    Only root may open it, so nobody else can hold its lock.
    """

    def __init__(self, wanted: str) -> None:
        self.root = root = find_root(wanted)
        for name in os.listdir(root):
            if name.startswith(_PREFIX):
                _sweep(f"{root}/{name}")
        self.path, self.fd = _make(f"{root}/{_PREFIX}{os.getpid()}")
        try:
            self.controllers = self._enable()
        except OSError:
            end(self.fd, self.path)
            raise

    def _enable(self) -> set[str]:
        """Turns on every controller of ours that the root has; the ones that ended up on."""
        root_fd = os.open(self.root, _OPEN_DIR)
        # A subtree delegated with us in it: controllers go on only once a leaf has its processes, all that it has.
        if os.path.exists(f"{self.root}/cgroup.type") and str(os.getpid()) in read(root_fd, "cgroup.procs").split():
            os.makedirs(f"{self.root}/main", exist_ok=True)
            # Again and again: what a process bore before it was moved, or who has just come, is found the next time.
            for _ in range(_MOVES):
                for pid in read(root_fd, "cgroup.procs").split():
                    with suppress(OSError):  # it has just ended, or is not ours to see
                        write(root_fd, "main/cgroup.procs", pid)
                if self._switch_on(root_fd):
                    break
        self._switch_on(root_fd)
        os.close(root_fd)
        return set(read(self.fd, "cgroup.subtree_control").split())

    def _switch_on(self, root_fd: int) -> bool:
        """Whether every controller of ours that the root has is on; what stays off refuses the jobs that need it."""
        for controller in CONTROLLERS:
            with suppress(OSError):
                for fd in (root_fd, self.fd):
                    write(fd, "cgroup.subtree_control", f"+{controller}")
        there = set(read(root_fd, "cgroup.controllers").split()) & set(CONTROLLERS)
        return there <= set(read(self.fd, "cgroup.subtree_control").split())

    def job_path(self, handle: int, parent: int) -> str:
        """The cgroup of a job; that of a further command in a job is below the job's."""
        return f"{self.path}/job-{parent}/exec-{handle}" if parent else f"{self.path}/job-{handle}"

    def rows(self, limits: dict[str, int], without: list[str], disk_list: list[str]) -> list[tuple[str, str]]:
        """`limits` as files and values; Refusal when one cannot be enforced and is not in `without`."""
        usable = self.controllers - (set() if disk_list else {"io"})
        missing = [name for name in CONTROLLERS if name not in usable and name not in without]
        if missing:
            cause, remedy = f"is not available in {self.root}", ""
            if missing[0] in self.controllers:
                cause = "finds no disk behind the job's files, as on an overlay, btrfs or zfs"
                remedy = 'name the disk in the policy, such as io_devices = ["/dev/sda"]; or '
            text = f"the cgroup controller {missing[0]} {cause}, so its limits cannot be enforced: {remedy}"
            text += "the policy's allow_missing_controllers can allow jobs without it"
            raise Refusal(Stage.LIMIT, errno.EOPNOTSUPP, text)
        quota = limits["cpu_millis"] * _CPU_PERIOD_USEC // 1000
        values = limits | {"cpu_quota": quota, "cpu_period": _CPU_PERIOD_USEC, "all_pids": limits["pids"] + 1}
        rows = [
            (file, *row, disk)
            for file, row in _TABLES["limits"].items()
            for disk in (disk_list if row[0] == "io" else [""])
        ]
        return [(file, value.format(disk=disk, **values)) for file, name, value, disk in rows if name in usable]


def _make(wanted: str) -> tuple[str, int]:
    """The directory, made and locked: its path and fd.

    Between the two, a helper that starts beside us may sweep it, as one that was left: then it is made again.
    """
    path = wanted
    for number in range(_TRIES):
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:  # of a helper with our pid, in another pid namespace
            path = f"{wanted}-{number}"
            continue
        with suppress(FileNotFoundError):  # swept before it was opened
            fd = os.open(path, _OPEN_DIR)
            fcntl.flock(fd, fcntl.LOCK_EX)  # who has it is sweeping, and that is bounded
            if os.path.exists(path) and os.fstat(fd).st_ino == os.stat(path).st_ino:
                return path, fd
            os.close(fd)
    raise OSError(errno.EAGAIN, "other helpers sweep it again and again", wanted)


def _sweep(path: str) -> None:
    """Ends what a helper that was killed left: its lock is gone, its directory is not."""
    with suppress(OSError):  # another helper swept it, or has it; what else cannot be swept must not keep us from work
        fd = os.open(path, _OPEN_DIR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            end(fd, path)
        finally:
            os.close(fd)
