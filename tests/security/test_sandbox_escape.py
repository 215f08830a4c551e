"""A malicious job looks for a way out: what it can reach, read, write and open. Names are security.md's."""

import fcntl
import os
import stat
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.helper_driver import PYTHON, Helper

from helper.wire import Type

pytestmark = pytest.mark.usefixtures("as_root")


@pytest.fixture(scope="module")
def helper(policy: Path, as_root: None) -> Iterator[Helper]:
    with Helper(policy) as helper:
        yield helper


def test_s22_no_way_to_the_helpers_terminal(policy: Path) -> None:
    """CVE-2017-5226: a job that shares the terminal could type into it."""
    ours, theirs = os.openpty()
    name = os.ttyname(theirs)

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    with Helper(policy, preexec_fn=take_terminal) as helper:
        number = Path(f"/proc/{helper.process.pid}/stat").read_text().rpartition(")")[2].split()[4]
        assert int(number) != 0, "the test is to give the helper a terminal"
        seen = helper.probe(f"""
import fcntl
tell({{
    "tty": attempt(opened, "/dev/tty", os.O_RDWR),
    "name": attempt(opened, {name!r}, os.O_RDWR),
    "take": [attempt(fcntl.ioctl, fd, {termios.TIOCSCTTY}, 1) for fd in (0, 1, 2)],
    "type": [attempt(fcntl.ioctl, fd, {termios.TIOCSTI}, b"x") for fd in (0, 1, 2)],
    "number": open("/proc/self/stat").read().rpartition(")")[2].split()[4],
    "terminals": sorted(os.listdir("/dev/pts")),
}})""")
    os.close(ours)
    os.close(theirs)
    assert seen == {
        "tty": "ENXIO",
        "name": "ENOENT",
        "take": ["ENOTTY"] * 3,
        "type": ["EPERM"] * 3,
        "number": "0",
        "terminals": ["ptmx"],
    }


def test_s23_no_code_of_ours_can_be_written(helper: Helper) -> None:
    """CVE-2019-5736: /proc/PID/exe as the way to the file that runs as root."""
    files = [str(path) for folder in ("helper", "telehandler") for path in (ROOT / folder).rglob("*.py")]
    seen = helper.probe(f"""
code = {files!r} + ["/usr/bin/python3", "/usr/bin", {str(ROOT / "helper")!r}]
links = [f"/proc/{{pid}}/{{name}}" for pid in ("self", "thread-self", "1") for name in ("exe", "root/usr/bin/python3")]
links += ["/proc/1/mem", "/proc/1/task/1/mem", "/proc/1/fd/0", "/proc/1/cwd/x", "/proc/1/environ", "/proc/1/maps"]
links += [f"/proc/self/fd/{{os.open('/proc/self/exe', os.O_PATH)}}"]
tell({{
    "written": [path for path in code + links if attempt(opened, path, os.O_RDWR) == "DONE"],
    "changed": [path for path in code if attempt(os.chmod, path, 0o777) == "DONE" or attempt(os.utime, path) == "DONE"],
    "removed": [path for path in code if attempt(os.rename, path, "/tmp/x") == "DONE"],
    "read": [path for path in links if "/1/" in path and attempt(opened, path, os.O_RDONLY) == "DONE"],
    "target": attempt(os.readlink, "/proc/1/exe"),
}})""")
    assert seen == {"written": [], "changed": [], "removed": [], "read": [], "target": "EACCES"}


def test_s23_the_init_is_closed_even_to_its_own_uid(helper: Helper) -> None:
    """Its memory is a copy of the helper's: not dumpable, so its files in /proc are root's."""
    job = helper.start("sleep", "100")
    init, main = helper.host_pids(job)
    assert (os.stat(f"/proc/{init}/environ").st_uid, os.stat(f"/proc/{main}/environ").st_uid) == (0, job.uid)
    spy = "import sys; open(sys.argv[1], 'rb').read(1)"
    for pid, wanted in ((init, 1), (main, 0), (helper.process.pid, 1)):
        for name in ("environ", "maps"):
            command = [*PYTHON, spy, f"/proc/{pid}/{name}"]
            done = subprocess.run(
                command, user=job.uid, group=job.uid, extra_groups=[], capture_output=True, check=False, cwd="/"
            )
            assert done.returncode == wanted, (pid, name, done.stderr)
    helper.request(Type.KILL, handle=job.handle)
    helper.finish(job)


def test_s25_dev_null_stays_what_it_is(helper: Helper) -> None:
    """CVE-2025-31133: whoever replaces /dev/null decides what is mounted over what is masked."""
    tries = helper.probe("""
tell([attempt(os.unlink, "/dev/null"), attempt(os.rename, "/dev/null", "/dev/x"), attempt(os.chmod, "/dev/null", 0),
      attempt(os.symlink, "/proc/kcore", "/dev/x"), attempt(os.mknod, "/tmp/null", 0o20666, 0x103),
      attempt(os.rmdir, "/dev/shm"), attempt(os.chown, "/dev/null", os.getuid(), -1),
      attempt(os.symlink, "/etc", "/proc/x")])""")
    assert "DONE" not in tries
    seen = helper.probe("""
opened("/dev/null", os.O_RDWR)
status = os.stat("/dev/null")
masked = {}
for name in "kcore keys key-users kallsyms kmsg timer_list sysrq-trigger config.gz vmallocinfo".split():
    try:
        with open(f"/proc/{name}", "rb") as file:
            masked[name] = len(file.read(1))
    except FileNotFoundError:
        pass
there = [path for path in map("/proc/".__add__, "acpi asound scsi fs bus irq".split()) if os.path.exists(path)]
listed = {path: os.listdir(path) for path in there}
tell([status.st_mode, status.st_rdev, masked, listed])""")
    mode, device, masked, listed = seen
    assert (mode, device) == (stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert masked
    assert not any(masked.values())
    assert listed
    assert not any(listed.values())
    assert os.stat("/dev/null").st_rdev == os.makedev(1, 3)


def test_s25_writes_to_proc_reach_procfs(helper: Helper) -> None:
    """CVE-2025-52881: something else in the place of /proc/self/attr or sys would swallow or misdirect them."""
    job = helper.start(
        "sh",
        "-c",
        "echo 567 >/proc/self/oom_score_adj; printf odd-name >/proc/self/comm; echo up; sleep 100; exit",
    )
    assert os.read(job.stdout, 10) == b"up\n"
    _, main, *_ = helper.host_pids(job)
    assert Path(f"/proc/{main}/oom_score_adj").read_text() == "567\n"
    assert Path(f"/proc/{main}/comm").read_text() == "odd-name\n"
    helper.request(Type.KILL, handle=job.handle)
    helper.finish(job)
    seen = helper.probe("""
proc = os.stat("/proc").st_dev
paths = "self/attr/current self/oom_score_adj sys/kernel/hostname sys/kernel/core_pattern self/status 1/status".split()
tell([[path for path in paths if os.path.exists(f"/proc/{path}") and os.stat(f"/proc/{path}").st_dev != proc],
      attempt(opened, "/proc/sys/kernel/core_pattern"), os.statvfs("/proc/sys").f_flag & os.ST_RDONLY])""")
    assert seen == [[], "EACCES", os.ST_RDONLY]


def test_s26_no_cgroup_and_no_limit_is_the_jobs_to_change(helper: Helper) -> None:
    """CVE-2022-0492: a cgroup file system that can be mounted or written is a way to root."""
    seen = helper.probe("""
import resource
def up(pid, name, value):
    resource.prlimit(pid, getattr(resource, name), (value, value))
mounts = [line.split() for line in open("/proc/self/mountinfo")]
names = ("RLIMIT_NOFILE", "RLIMIT_FSIZE", "RLIMIT_CORE")
hard = {name: resource.getrlimit(getattr(resource, name))[1] for name in names}
def raised(pid, name):
    try:
        up(pid, name, hard[name] + 1)
    except (ValueError, PermissionError):  # ValueError is what resource makes of EPERM
        return False
    return True
kinds = [fields[fields.index("-") + 1] for fields in mounts]
tell({
    "kinds": [kind for kind in kinds if kind in ("cgroup", "cgroup2", "sysfs", "debugfs", "tracefs", "securityfs")],
    "cgroup": open("/proc/self/cgroup").read().splitlines()[-1],
    "files": [os.listdir(path) for path in ("/sys/fs", "/sys/devices", "/sys/devices/system")],
    "mount": [attempt(call, 165, b"none", b"/tmp", b"cgroup2", 0, 0), attempt(call, 430, b"cgroup2", 0)],
    "raised": [(pid, name) for pid in (0, 1, 2) for name in hard if raised(pid, name)],
    "lowered": attempt(up, 0, "RLIMIT_NOFILE", 50),
    "nice": attempt(os.setpriority, os.PRIO_PROCESS, 0, -1),
    "realtime": attempt(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1)),
})""")
    assert seen == {
        "kinds": ["sysfs", "cgroup2"],  # of the processors, and of its own cgroup
        "cgroup": "0::/",
        "files": [["cgroup"], ["system"], ["cpu"]],
        "mount": ["EPERM", "EPERM"],
        "raised": [],
        "lowered": "DONE",
        "nice": "EACCES",
        "realtime": "EPERM",
    }
