"""The helper's cgroups: where they are, what is written and read, what is swept, and how all ends.

This is for machines without controllers too; tests/vm has the limits in force.
"""

import errno
import fcntl
import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.cgroups import CONTROLLERS, cgroup_root
from support.checkout import ROOT
from support.helper_driver import Helper
from support.helper_startup import helper_command
from support.policies import write_policy

from helper import cgroup
from helper.policy import Refusal, SetupError
from helper.wire import Stage

pytestmark = pytest.mark.usefixtures("as_root")
ALL_MISSING = f"allow_missing_controllers = {list(CONTROLLERS)}\n"
LIMITS = dict.fromkeys("memory_bytes memory_high_bytes read_bps write_bps read_iops write_iops".split(), 9)
LIMITS |= {"cpu_millis": 1500, "pids": 40}


def _fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def _sleepers(directory: Path, count: int) -> list["subprocess.Popen[bytes]"]:
    """Processes in a cgroup."""
    found = [subprocess.Popen(["sleep", "100"]) for _ in range(count)]
    for process in found:
        (directory / "cgroup.procs").write_text(str(process.pid))
    return found


def _end(processes: list["subprocess.Popen[bytes]"]) -> None:
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def base(bare_cgroup: Path) -> Iterator[cgroup.Base]:
    made = cgroup.Base(str(bare_cgroup))
    yield made
    if os.path.exists(made.path):
        cgroup.end(made.fd, made.path)
    os.close(made.fd)


# Where


def test_the_root_is_what_is_named_or_the_mount_below_it() -> None:
    root = str(cgroup_root())
    for wanted in (root, f"{root}/", str(cgroup_root().parent), "/"):
        assert cgroup.find_root(wanted) == root
    for wanted in (root[:-1], "/proc", "/no/such"):
        with pytest.raises(SetupError, match=f"no cgroup v2 at or below {wanted}: mount cgroup2 there"):
            cgroup.find_root(wanted)


def test_links_and_files_are_no_directories_of_ours(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/")
    for path in (tmp_path / "link", Path(__file__)):
        with pytest.raises(NotADirectoryError):
            os.open(path, cgroup._OPEN_DIR)


def test_disks_are_whole_disks(tmp_path: Path) -> None:
    """By a path on it, by its node, or by that of a partition."""
    whole, partition = "", ""
    for path in Path("/sys/class/block").iterdir():
        if not (path / "partition").exists():
            whole = (path / "dev").read_text().strip()
        elif not partition:
            partition = (path / "dev").read_text().strip()
            disk = (path / ".." / "dev").read_text().strip()
    assert whole, "the test needs a block device"
    cases = [(whole, whole)] + ([(partition, disk)] if partition else [])
    for number, (device, wanted) in enumerate(cases):
        node = tmp_path / str(number)
        os.mknod(node, stat.S_IFBLK | 0o600, os.makedev(*map(int, device.split(":"))))
        assert cgroup.disks([str(node)]) == [wanted]
    assert cgroup.disks(["/proc", str(tmp_path / "0"), "/proc"]) == [whole]  # /proc is on no disk
    assert cgroup.disks([]) == []
    with pytest.raises(FileNotFoundError):
        cgroup.disks(["/no/such"])


# Files


def test_figures_are_found_by_their_key(tmp_path: Path) -> None:
    (tmp_path / "flat").write_text("first 1\nsecond 22\nthird 333\n")
    (tmp_path / "single").write_text("7 8\n")
    (tmp_path / "link").symlink_to("single")
    fd = os.open(tmp_path, cgroup._OPEN_DIR)
    assert [cgroup.number(fd, "flat", key) for key in ("first", "second", "third")] == [1, 22, 333]
    assert cgroup.number(fd, "single") == 7
    assert cgroup.number(fd, "none") == cgroup.number(fd, "none", "first") == 0
    for reading in (cgroup.read, cgroup.number):
        with pytest.raises(OSError, match="symbolic"):
            reading(fd, "link")
    with pytest.raises(OSError, match="symbolic"):
        cgroup.write(fd, "link", "9")
    os.close(fd)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[tuple[int, str], str], list[tuple[int, str, str]]]:
    """What is read of the kernel's files, and what was written: no machine has controllers for a test to switch on."""
    contents: dict[tuple[int, str], str] = {}
    written: list[tuple[int, str, str]] = []
    monkeypatch.setattr(cgroup, "read", lambda fd, name: contents[fd, name])
    monkeypatch.setattr(cgroup, "write", lambda *what: written.append(what))
    return contents, written


@pytest.mark.parametrize(
    ("there", "on", "all_on"),
    [
        ("cpuset cpu io memory pids", "cpu io memory pids", True),
        ("cpuset cpu io memory pids", "cpuset cpu io memory", False),
        ("cpu memory", "cpu memory", True),
        ("cpu memory", "memory", False),
        ("hugetlb", "", True),
        ("", "", True),
    ],
)
def test_controllers_are_switched_on_from_the_root_down(
    files: tuple[dict[tuple[int, str], str], list[tuple[int, str, str]]], there: str, on: str, all_on: bool
) -> None:
    contents, written = files
    contents |= {(1, "cgroup.controllers"): there, (2, "cgroup.subtree_control"): on}
    assert cgroup.Base._switch_on(SimpleNamespace(fd=2), 1) == all_on  # type: ignore[arg-type]
    assert written == [(fd, "cgroup.subtree_control", f"+{name}") for name in CONTROLLERS for fd in (1, 2)]


@pytest.mark.parametrize(("inside", "rounds"), [(True, 3), (False, 0)])
def test_processes_are_moved_until_every_controller_is_on(
    bare_cgroup: Path, monkeypatch: pytest.MonkeyPatch, inside: bool, rounds: int
) -> None:
    """Who has just come keeps a controller from going on, until it is moved too."""
    procs, moved, tried = f"{os.getpid() if inside else 16}\n17\n", list[tuple[str, str]](), list[int]()
    monkeypatch.setattr(cgroup, "read", lambda _, name: procs if name == "cgroup.procs" else "cpu io")
    monkeypatch.setattr(cgroup, "write", lambda _, *what: moved.append(what))

    def switch_on(_: int) -> bool:
        tried.append(1)
        return len(tried) == 3

    of: Any = SimpleNamespace(root=str(bare_cgroup), fd=2, _switch_on=switch_on)
    assert cgroup.Base._enable(of) == {"cpu", "io"}
    assert moved == [("main/cgroup.procs", pid) for pid in procs.split()] * rounds
    assert len(tried) == rounds + 1
    if inside:
        (bare_cgroup / "main").rmdir()


# Limits as rows


def _rows(controllers: set[str], without: list[str], disks: list[str]) -> list[tuple[str, str]]:
    of = SimpleNamespace(controllers=controllers, root="/the/root")
    return cgroup.Base.rows(of, LIMITS, without, disks)  # type: ignore[arg-type]


def test_limits_are_rows_of_the_controllers_that_there_are() -> None:
    rows = _rows(set(CONTROLLERS), [], ["8:0", "8:16"])
    assert rows == [
        ("cpu.max", "150000 100000"),
        ("memory.max", "9"),
        ("memory.high", "9"),
        ("memory.swap.max", "0"),
        ("memory.oom.group", "1"),
        ("pids.max", "41"),
        ("io.max", "8:0 rbps=9 wbps=9 riops=9 wiops=9"),
        ("io.max", "8:16 rbps=9 wbps=9 riops=9 wiops=9"),
    ]
    assert _rows({"cpu", "pids"}, ["memory", "io"], ["8:0"]) == [rows[0], rows[5]]
    assert _rows(set(CONTROLLERS), ["io"], []) == rows[:6]
    assert _rows(set(), list(CONTROLLERS), []) == []


@pytest.mark.parametrize(
    ("controllers", "without", "disks", "said"),
    [
        ({"io"}, ["cpu", "pids"], ["8:0"], "the cgroup controller memory is not available in /the/root, so its limits "
         "cannot be enforced: the policy's allow_missing_controllers can allow jobs without it"),
        ({"cpu", "memory"}, [], ["8:0"], "the cgroup controller io is not available in /the/root, "),
        (set(), ["cpu"], [], "the cgroup controller memory is not available in /the/root, "),
        (set(CONTROLLERS), [], [], "the cgroup controller io finds no disk behind the job's files, as on an overlay, "
         "btrfs or zfs, so its limits cannot be enforced: name the disk in the policy, such as io_devices = "),
        ({"cpu", "memory", "io"}, [], [], "the cgroup controller io finds no disk"),
    ],
)  # fmt: skip
def test_a_limit_that_cannot_be_enforced_is_a_refusal(
    controllers: set[str], without: list[str], disks: list[str], said: str
) -> None:
    with pytest.raises(Refusal) as raised:
        _rows(controllers, without, disks)
    assert raised.value.args[:2] == (Stage.LIMIT, errno.EOPNOTSUPP)
    assert raised.value.args[2].startswith(said)


# The directories


def test_directories_are_roots_to_enter_and_a_jobs_for_all_to_read(base: cgroup.Base) -> None:
    assert base.path == f"{base.root}/telehandler.{os.getpid()}"
    assert stat.S_IMODE(os.stat(base.path).st_mode) == 0o700
    with pytest.raises(FileExistsError):
        [cgroup.create(base.job_path(7, 0)) for _ in range(2)]
    assert stat.S_IMODE(os.stat(base.job_path(7, 0)).st_mode) == 0o755
    other = os.open(base.path, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
    os.close(other)


def test_a_directory_is_removed_with_what_is_below_unless_something_lives_there(base: cgroup.Base) -> None:
    path = Path(base.path) / "job-1"
    (path / "below" / "deeper").mkdir(parents=True)
    (path / "beside").mkdir()
    living = _sleepers(path / "below" / "deeper", 1)
    assert not cgroup.remove(str(path))
    assert (path / "below" / "deeper").exists()
    _end(living)
    (path / "beside").mkdir(exist_ok=True)
    assert cgroup.remove(str(path))
    assert not path.exists()
    assert cgroup.remove(str(path))


def test_all_ends_and_the_kernel_says_when(base: cgroup.Base, monkeypatch: pytest.MonkeyPatch) -> None:
    (Path(base.path) / "job-1" / "below").mkdir(parents=True)
    living = _sleepers(Path(base.path) / "job-1", 30) + _sleepers(Path(base.path) / "job-1" / "below", 1)
    reads: list[int] = []
    real: Callable[..., bytes] = os.pread
    monkeypatch.setattr(os, "pread", lambda *what: reads.append(1) or real(*what))  # type: ignore[func-returns-value]
    began = time.monotonic()
    cgroup.end(base.fd, base.path)
    assert time.monotonic() - began < cgroup._END_DEADLINE_S / 2
    assert not os.path.exists(base.path)
    assert len(reads) < 10  # it does not ask for ever
    _end(living)


def test_what_a_dead_helper_left_is_swept_and_what_others_have_is_not(bare_cgroup: Path) -> None:
    left, live, other = (bare_cgroup / name for name in ("telehandler.1", "telehandler.2", "another.1"))
    for path in (left / "job-1", live, other):
        path.mkdir(parents=True)
    living = _sleepers(left / "job-1", 1)
    lock = os.open(live, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    before = _fds()
    base = cgroup.Base(str(bare_cgroup))
    assert _fds() == before + 1
    assert [path.exists() for path in (left, live, other, Path(base.path))] == [False, True, True, True]
    cgroup.end(base.fd, base.path)
    os.close(base.fd)
    os.close(lock)
    live.rmdir()
    other.rmdir()
    _end(living)


def test_a_directory_of_another_with_our_pid_is_left_alone(bare_cgroup: Path) -> None:
    """Of a helper in another pid namespace."""
    others = [bare_cgroup / f"telehandler.{os.getpid()}{end}" for end in ("", "-0")]
    with ExitStack() as stack:
        for path in others:
            path.mkdir()
            lock = os.open(path, os.O_RDONLY)
            stack.callback(os.close, lock)
            stack.callback(path.rmdir)
            fcntl.flock(lock, fcntl.LOCK_EX)
        base = cgroup.Base(str(bare_cgroup))
        assert base.path == f"{others[0]}-1"
        cgroup.end(base.fd, base.path)
        os.close(base.fd)


@pytest.mark.parametrize("again", [False, True])
def test_a_directory_that_is_swept_before_it_is_locked_is_made_again(
    bare_cgroup: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """And with `again`, another has made one of that name meanwhile, and does not keep it."""
    swept: list[str] = []
    real: Callable[..., None] = fcntl.flock

    def flock(fd: int, kind: int) -> None:
        if not swept:
            (path,) = bare_cgroup.glob("telehandler.*")
            path.rmdir()
            swept.append(path.name)
            if again:
                path.mkdir()
        real(fd, kind)

    monkeypatch.setattr(fcntl, "flock", flock)
    before = _fds()
    base = cgroup.Base(str(bare_cgroup))
    assert _fds() == before + 1
    assert os.path.samestat(os.fstat(base.fd), os.stat(base.path))
    cgroup.end(base.fd, base.path)
    os.close(base.fd)
    for path in bare_cgroup.glob("telehandler.*"):
        path.rmdir()


def test_a_directory_that_is_always_swept_is_given_up(bare_cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(fd: int, kind: int) -> None:
        for path in bare_cgroup.glob("telehandler.*"):
            path.rmdir()

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="again and again") as raised:
        cgroup.Base(str(bare_cgroup))
    assert raised.value.errno == errno.EAGAIN


def test_a_start_that_fails_at_its_controllers_leaves_nothing(
    bare_cgroup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: cgroup.Base) -> Any:
        raise OSError(errno.EMFILE, "none left")

    monkeypatch.setattr(cgroup.Base, "_enable", failing)
    with pytest.raises(OSError, match="none left"):
        cgroup.Base(str(bare_cgroup))
    assert not [*bare_cgroup.glob("telehandler.*")]


def test_in_a_subtree_of_its_own_it_moves_all_processes_to_a_leaf(place: Path, bare_cgroup: Path) -> None:
    """A cgroup that hands controllers down must have no process itself."""
    policy = write_policy(place, "own subtree", ALL_MISSING)
    command = helper_command(ROOT, policy, "--cgroup-root", str(bare_cgroup))
    inside = ["sh", "-c", 'echo 0 >"$0/cgroup.procs"; exec "$@"', str(bare_cgroup), *command]
    main = bare_cgroup / "main"
    for number in range(2):  # the leaf is there the second time
        other = _sleepers(bare_cgroup, 1)
        with Helper(policy, command=inside) as helper:
            assert (bare_cgroup / "cgroup.procs").read_text() == ""
            assert {helper.process.pid, other[0].pid} <= {*map(int, (main / "cgroup.procs").read_text().split())}
            assert helper.run("true").facts["exit_code"] == 0
        _end(other)
        assert main.exists(), number
    other = _sleepers(bare_cgroup, 1)
    main.rmdir()
    with Helper(policy, command=command) as helper:  # not in it: what others have there is theirs
        assert (bare_cgroup / "cgroup.procs").read_text() == f"{other[0].pid}\n"
        assert not main.exists()
        fds = [os.readlink(path) for path in Path(f"/proc/{helper.process.pid}/fd").iterdir()]
        assert len([link for link in fds if link.startswith(str(bare_cgroup))]) == 1  # its own, and not the root's
    _end(other)
