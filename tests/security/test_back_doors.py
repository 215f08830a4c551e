"""The host's other mounts of kernel file systems, as in chroots: a job sees none of them, wherever they are."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.cgroups import cgroup_root
from support.helper_driver import Helper
from support.policies import policy_text, write_policy

from helper import syscalls as sc

pytestmark = pytest.mark.usefixtures("as_root")
CLONE_NEWNS = 0x00020000
KINDS = "proc sysfs devtmpfs devpts mqueue tmpfs cgroup2 debugfs tracefs securityfs configfs".split()
# Of a job's own: type and place.
OWN = {("proc", "/proc"), ("proc", "/proc/sys"), ("devpts", "/dev/pts"), ("tmpfs", "/dev/shm")}
OWN |= {("cgroup2", "/sys/fs/cgroup"), ("sysfs", "/sys/devices/system/cpu")}
SECRET = "telehandler-secret"


def _mount_all(chroot: Path) -> None:
    """What a chroot has, in a mount namespace of the helper's own: the rest of the machine sees nothing of it."""
    sc.unshare(CLONE_NEWNS)
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
    sc.mount("test", str(chroot.parent), "tmpfs", 0, "mode=755")
    for kind in KINDS:
        target = chroot / ("dev/shm" if kind == "tmpfs" else kind)
        target.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # a kernel without it; a test below has what must be there
            sc.mount("test", str(target), kind, 0)
    (chroot / "dev/shm" / SECRET).write_text(SECRET)
    binds = {"/dev/shm": "a bind of\tshm", "/proc": "deep/below/proc", str(cgroup_root()): "cgroup"}
    binds["/sys"] = "deep/sys"
    for source, name in binds.items():
        (chroot / name).mkdir(parents=True, exist_ok=True)
        sc.mount(source, str(chroot / name), None, sc.MS_BIND)
    # One on the other, and one that a file system of the machine's covers in part.
    for _ in range(2):
        sc.mount("proc", str(chroot / "proc"), "proc", 0)
    (chroot / "covered").mkdir(exist_ok=True)
    sc.mount("test", str(chroot / "covered"), "tmpfs", 0)
    (chroot / "covered" / "unreachable").mkdir()
    sc.mount("proc", str(chroot / "covered" / "unreachable"), "proc", 0)
    sc.mount("proc", str(chroot / "covered"), "proc", 0)
    sc.mount("test", str(chroot / "covered"), "tmpfs", 0)
    (chroot / "covered" / "data").write_text("the machine's, and no back door")
    # Below what every job has hidden or replaced.
    for path in (f"/mnt/{SECRET}", f"/tmp/{SECRET}"):
        Path(path).mkdir(exist_ok=True)
        sc.mount("test", path, "tmpfs", 0)


@pytest.fixture(scope="module")
def chroot() -> Path:
    """In a place that jobs see."""
    return Path("/srv/chroot")


@pytest.fixture(scope="module")
def helper(place: Path, chroot: Path, as_root: None) -> Iterator[Helper]:
    Path("/dev/shm", f"{SECRET}-{os.getpid()}").write_text(SECRET)
    text = policy_text(f'[profile.bind]\nread_only = ["{chroot}:/opt"]\nhidden = ["/mnt", "/srv"]\n')
    try:
        with Helper(write_policy(place, "doors", text), preexec_fn=lambda: _mount_all(chroot)) as helper:
            yield helper
    finally:
        Path("/dev/shm", f"{SECRET}-{os.getpid()}").unlink()
        for path in (f"/mnt/{SECRET}", f"/tmp/{SECRET}"):
            Path(path).rmdir()


def _seen(helper: Helper, below: str, profile: bytes) -> tuple[set[tuple[str, str]], list[str], str]:
    """Types and places of kernel file systems; what the places below a directory show; the table of mounts."""
    found = helper.probe(
        f"""
rows = [line.split() for line in open("/proc/self/mountinfo")]
kinds = [(row[row.index("-") + 1], row[4]) for row in rows]
files = [os.path.join(place, name) for place, _, names in os.walk({below!r}) for name in names]
tell([kinds, files[:20], open("/proc/self/mountinfo").read()])""",
        place=[profile, b""],
    )
    kinds, files, table = found
    return (
        {(kind, point) for kind, point in kinds if kind in KINDS[:5] + KINDS[6:] or point.endswith("shm")},
        files,
        table,
    )


@pytest.mark.parametrize(("profile", "below"), [(b"host", ""), (b"bind", "/opt")], ids=["root", "bind"])
def test_s49_no_kernel_file_system_but_the_jobs_own(helper: Helper, chroot: Path, profile: bytes, below: str) -> None:
    kinds, files, table = _seen(helper, below or str(chroot), profile)
    covered = {(kind, point) for kind, point in kinds if "/covered" in point}
    assert kinds - covered == OWN
    assert files == [f"{below or chroot}/covered/data"]
    assert SECRET not in table


def test_s49_the_machine_has_what_the_job_does_not_see(helper: Helper, chroot: Path) -> None:
    """So the test above looks at something."""
    seen = Path(f"/proc/{helper.process.pid}/mountinfo").read_text()
    rows = [line.split() for line in seen.splitlines()]
    there = {row[row.index("-") + 1] for row in rows if row[4].startswith(str(chroot))}
    assert {"proc", "sysfs", "devpts", "mqueue", "tmpfs", "cgroup2"} <= there
    assert "a\\040bind\\040of\\011shm" in seen
    assert f"/mnt/{SECRET}" in seen


def test_s49_a_mount_that_the_policy_names_stays(place: Path, as_root: None) -> None:
    """What is below it is not named; a file system of the machine's that is no back door stays too."""
    named = place / "named"

    def mount() -> None:
        sc.unshare(CLONE_NEWNS)
        sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
        sc.mount("test", str(named), "tmpfs", 0)
        for name, kind in (("data", "tmpfs"), ("proc", "proc")):
            (named / name).mkdir()
            sc.mount("test", str(named / name), kind, 0)
        (named / "data" / "file").write_text("data\n")

    named.mkdir()
    policy = write_policy(place, "named", policy_text(f'[profile.host]\nread_only = ["{named}:/srv", "/sys:/mnt"]\n'))
    check: Callable[..., None] = mount
    with Helper(policy, preexec_fn=check) as helper:
        ended = helper.run(
            "sh", "-c", "cat /srv/data/file; ls -A /srv/proc; ls -d /mnt/kernel; find /mnt -name cgroup.procs"
        )
    assert ended.stdout == b"data\n/mnt/kernel\n"
