"""Profiles of the policy: a root of its own, what is hidden, bound and shared. Names are security.md's."""

import errno
import os
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.helper_driver import Helper, read_line
from support.policies import own_uids, policy_text, write_policy

from helper.wire import Stage, Type

pytestmark = pytest.mark.usefixtures("as_root")
NEEDED = ("proc", "sys", "dev", "tmp")  # directories that a root must have


def make_tree(root: Path, *programs: str) -> Path:
    """A root of its own: the programs with the libraries they load, and nothing else."""
    for name in (*NEEDED, "bin", "etc"):
        (root / name).mkdir(parents=True)
    for name in programs:
        program = shutil.which(name, path="/usr/bin:/bin")
        assert program, name
        shutil.copy(program, root / "bin" / name)
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        for library in re.findall(r"(/\S+) \(0x", listed):
            (root / library[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, root / library[1:])
    return root


@pytest.fixture(scope="module")
def tree(place: Path) -> Path:
    root = make_tree(place / "tree", "sh", "cat", "ls", "head", "stat", "printf")
    (root / "etc" / "who").write_text("the tree\n")
    (root / "secret").mkdir()
    (root / "secret" / "key").write_text("private\n")
    (root / "etc" / "key").write_text("private\n")
    (root / "link").symlink_to("etc")
    (root / "data").mkdir()
    (root / "bin" / "printf").rename(root / "bin" / "id")  # not what the host has by this name
    return root


@contextmanager
def helper_with(place: Path, profiles: str) -> Iterator[Helper]:
    with Helper(write_policy(place, "profiles", policy_text(profiles))) as helper:
        yield helper


@pytest.fixture(scope="module")
def rooted(place: Path, tree: Path, as_root: None) -> Iterator[Helper]:
    """Jobs in the tree, a directory and a file of it hidden."""
    hidden = ["/secret", "/etc/key", "/absent"]
    with helper_with(place, f'[profile.host]\nroot = "{tree}"\nhidden = {hidden!r}\ntmp_bytes = 1048576\n') as helper:
        yield helper


def test_a_root_of_its_own_is_all_a_job_sees(rooted: Helper, tree: Path) -> None:
    assert rooted.run("ls", "/").stdout.decode().split() == sorted(path.name for path in tree.iterdir())
    assert rooted.run("cat", "/etc/who").stdout == b"the tree\n"
    assert rooted.start_error("/usr/bin/python3")[:2] == (Stage.EXEC, errno.ENOENT)
    script = "ls -d /../../usr /var /home /run; cd /..; ls; echo x >/etc/who; ls /sys /tmp /dev/shm; ls /dev"
    ended = rooted.run("sh", "-c", script)
    assert b"the tree" in rooted.run("cat", "/../../etc/who", place=[b"", b"/tmp"]).stdout
    assert b"Read-only file system" in ended.stderr
    listed = ended.stdout.decode().split()
    assert {"/var", "/home", "/run"}.isdisjoint(listed)
    devices = "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero".split()
    assert listed[-len(devices) :] == devices


def test_s20_path_is_searched_in_the_jobs_root(rooted: Helper, tree: Path) -> None:
    assert Path("/usr/bin/id").exists()
    assert rooted.run("id", "%s", "the tree's").stdout == b"the tree's"
    assert rooted.start_error("env")[:2] == (Stage.EXEC, errno.ENOENT)  # the host has it, the tree does not
    assert rooted.start_error("cat", env=[b"PATH=/usr/bin"])[:2] == (Stage.EXEC, errno.ENOENT)
    assert rooted.start_error("cat", env=[f"PATH={tree}/bin".encode()])[:2] == (Stage.EXEC, errno.ENOENT)


def test_s24_hidden_is_empty_and_stays_so(rooted: Helper, tree: Path) -> None:
    ways = "/secret /secret/. /../secret /link/../secret /proc/self/root/secret /proc/self/cwd/secret"
    for way in [*ways.split(), "/dev/fd/../root/secret"]:
        ended = rooted.run("ls", "-A", way)
        assert (ended.stdout, ended.facts["exit_code"]) == (b"", 0), way
    for way in ("/etc/key", "/link/key", "/proc/self/root/etc/key"):
        ended = rooted.run("cat", way)
        assert (ended.stdout, ended.facts["exit_code"]) == (b"", 0), way
    ended = rooted.run("sh", "-c", "cat /secret/key; cat /proc/1/root/secret/key; echo x >/secret/x; echo x >/etc/key")
    assert ended.stdout == b""
    assert ended.stderr.count(b"\n") == 3  # a write to what hides a file goes to /dev/null
    assert (tree / "etc" / "key").read_text() == "private\n"


def test_s24_no_handle_and_no_mount_uncovers(rooted: Helper, policy: Path) -> None:
    with Helper(policy) as helper:
        seen = helper.probe("""
root = os.open("/", os.O_RDONLY)
handle = ctypes.create_string_buffer(b"\\x80\\0\\0\\0", 200)
tell({
    "name_to_handle_at": attempt(call, 303, root, b"etc", handle, ctypes.byref(ctypes.c_int()), 0),
    "open_by_handle_at": attempt(call, 304, root, handle, 0),
    "umount": attempt(call, 166, b"/run", 2),
    "chroot": attempt(os.chroot, "/tmp"),
    "pivot_root": attempt(call, 155, b".", b"."),
    "unshare": attempt(call, 272, 0x10020000),
    "setns": attempt(call, 308, os.open("/proc/self/ns/mnt", os.O_RDONLY), 0),
    "above": os.path.samestat(os.stat("/"), os.stat("/../..")),
    "init": attempt(os.stat, "/proc/1/root/"),
    "covered": [os.listdir("/run"), os.listdir("/root")],
})""")
    assert seen.pop("above") is True
    assert seen.pop("covered") == [[], []]
    assert seen.pop("init") == "EACCES"
    assert set(seen.values()) == {"EPERM"}


@pytest.mark.parametrize("key", ["root", "hidden", "source", "source above", "target", "writable"])
def test_s24_a_symbolic_link_in_a_path_of_the_policy_is_refused(place: Path, tree: Path, key: str) -> None:
    """CVE-2021-30465: between check and use, whoever owns a directory makes it a link."""
    link = place / f"link-{key.replace(' ', '-')}"
    link.symlink_to(tree)
    lines = {
        "root": f'root = "{link}"',
        "hidden": f'root = "{tree}"\nhidden = ["/link/who"]',
        "source": f'root = "{tree}"\nread_only = ["{link}:/data"]',
        "source above": f'root = "{tree}"\nread_only = ["{link}/etc:/data"]',
        "target": f'root = "{tree}"\nread_only = ["{tree}/etc:/link"]',
        "writable": f'root = "{tree}"\nwritable = ["{link}/data:/data"]',
    }
    with helper_with(place, f"[profile.host]\n{lines[key]}\n") as helper:
        assert helper.start_error("ls")[:2] == (Stage.MOUNT, errno.ELOOP)


@pytest.mark.parametrize("name", NEEDED)
def test_s25_a_root_with_a_link_in_the_place_of_a_mount_gives_no_job(place: Path, name: str) -> None:
    """A hostile root tree: its /proc is a link to a forged one, or is missing."""
    root = make_tree(place / f"forged-{name}", "ls")
    (root / name).rmdir()
    with helper_with(place, f'[profile.host]\nroot = "{root}"\n') as helper:
        assert helper.start_error("ls")[:2] == (Stage.MOUNT, errno.ENOENT)
        (root / "forged").mkdir()
        (root / name).symlink_to("forged")
        if name == "proc":
            assert helper.start_error("ls")[:2] == (Stage.MOUNT, errno.ELOOP)
        else:
            listed = helper.run("ls", "-ld", "/dev/null", "/proc/kcore").stdout.decode().splitlines()
            assert all(line.startswith("crw") and " 1, 3 " in re.sub(" +", " ", line) for line in listed)


def test_a_root_without_a_home_or_with_a_link_there_gives_jobs_too(place: Path) -> None:
    root = make_tree(place / "homes", "ls", "sh", "stat")
    with helper_with(place, f'[profile.host]\nroot = "{root}"\n') as helper:
        assert b"No such file" in helper.run("ls", "/home/job").stderr
        (root / "home").symlink_to("var-home")
        assert b"No such file" in helper.run("ls", "/home/job").stderr
        (root / "var-home").mkdir()
        (root / "var-home" / "host").touch()
        assert helper.run("sh", "-c", "ls /home; stat -c %a /home/job; echo x >/home/job/x").stdout == b"job\n700\n"


def test_a_bind_may_lie_below_home(place: Path) -> None:
    project = place / "project"
    project.mkdir()
    (project / "file").write_text("bound\n")
    binds = [f"{project}:/home/ci/work", f"{project}:/home/job/work"]
    with helper_with(place, f"[profile.host]\nread_only = {binds!r}\n") as helper:
        ended = helper.run("sh", "-c", "cat /home/*/work/file; cd /home/job && echo own >own && cat own; ls /home")
        assert (ended.stdout, ended.stderr) == (b"bound\nbound\nown\nci\njob\n", b"")


def test_s25_a_forged_dev_is_covered(place: Path) -> None:
    root = make_tree(place / "forged", "ls", "cat", "stat", "head")
    (root / "dev" / "null").symlink_to("/etc/key")
    os.mknod(root / "etc" / "memory", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    (root / "etc" / "memory").chmod(0o666)
    with helper_with(place, f'[profile.host]\nroot = "{root}"\n') as helper:
        assert helper.run("stat", "-c", "%F %t:%T", "/dev/null").stdout == b"character special file 1:3\n"
        assert b"Permission denied" in helper.run("head", "-c", "1", "/etc/memory").stderr  # nodev
        assert helper.run("head", "-c", "1", "/dev/zero").stdout == b"\0"


@pytest.fixture
def submount(place: Path) -> Iterator[Path]:
    """A directory with a tmpfs below it, which has a device and a setuid program."""
    directory = place / "above"
    (directory / "below").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=1777,size=1m", "test", directory / "below"], check=True)
    os.mknod(directory / "below" / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    (directory / "below" / "zero").chmod(0o666)
    shutil.copy("/usr/bin/id", directory / "below" / "id")
    (directory / "below" / "id").chmod(0o4755)
    directory.chmod(0o1777)
    yield directory
    subprocess.run(["umount", directory / "below"], check=True)
    shutil.rmtree(directory)


@pytest.mark.parametrize("kind", ["read_only", "writable"])
def test_s24_binds_hold_for_what_is_mounted_below(place: Path, submount: Path, kind: str) -> None:
    with helper_with(place, f'[profile.host]\n{kind} = ["{submount}:/mnt"]\n') as helper:
        script = "for d in /mnt /mnt/below; do echo data >$d/new; done; grep /mnt /proc/self/mountinfo"
        job = helper.start("sh", "-c", script)
        ended = helper.finish(job)
        options = {line.split()[4]: set(line.split()[5].split(",")) for line in ended.stdout.decode().splitlines()}
        assert all({"nosuid", "nodev"} <= options[point] for point in ("/mnt", "/mnt/below"))
        new = [submount / "new", submount / "below" / "new"]
        if kind == "read_only":
            assert ended.stderr.count(b"Read-only file system") == 2
            assert not any(path.exists() for path in new)
        else:
            assert ended.stderr == b""
            assert [(path.read_text(), path.stat().st_uid, path.stat().st_gid) for path in new] == [
                ("data\n", job.uid, job.uid)
            ] * 2
            assert [stat.S_IMODE(path.stat().st_mode) for path in new] == [0o644] * 2
        assert b"Permission denied" in helper.run("head", "-c", "1", "/mnt/below/zero").stderr
        assert b"euid" not in helper.run("/mnt/below/id").stdout


def test_s24_a_later_mount_of_the_hosts_does_not_reach_a_job(place: Path) -> None:
    """Mounts are private before anything else: nothing travels either way."""
    directory = place / "later"
    (directory / "mount").mkdir(parents=True)
    (directory / "mount" / "file").write_text("from before\n")
    script = "trap 'cat /mnt/mount/file; exit' USR1; echo up; while :; do sleep 0.02; done"
    before = Path("/proc/self/mountinfo").read_text()
    with helper_with(place, f'[profile.host]\nread_only = ["{directory}:/mnt"]\n') as helper:
        job = helper.start("sh", "-c", script)
        assert read_line(job.stdout) == b"up\n"
        assert Path("/proc/self/mountinfo").read_text() == before
        subprocess.run(["mount", "-t", "tmpfs", "test", directory / "mount"], check=True)
        try:
            (directory / "mount" / "file").write_text("from after\n")
            helper.request(Type.SIGNAL, handle=job.handle, signal=signal.SIGUSR1)
            assert helper.finish(job).stdout == b"from before\n"
        finally:
            subprocess.run(["umount", directory / "mount"], check=True)


def test_files_are_gone_with_the_job_and_the_size_of_tmp_holds(place: Path, rooted: Helper) -> None:
    """The next job has the same uid: so nothing but the mounts keeps the files from it."""
    one_uid = f"max_jobs = 1\n{own_uids(1)}"
    with helper_with(place, one_uid) as helper:
        assert helper.run("sh", "-c", "for d in /tmp /var/tmp /dev/shm; do echo x >$d/left-$$; done").stderr == b""
        ended = helper.run("ls", "-A", "/tmp", "/var/tmp", "/dev/shm")
        assert b"left" not in ended.stdout
        assert ended.facts["exit_code"] == 0
    for directory in ("/tmp", "/dev/shm"):
        fits = rooted.run("sh", "-c", f"head -c 1000000 /dev/zero >{directory}/x && ls -l {directory}/x")
        assert b" 1000000 " in fits.stdout
        over = rooted.run("sh", "-c", f"head -c 2000000 /dev/zero >{directory}/x")
        assert b"No space left" in over.stderr


def test_a_file_system_in_memory_has_an_inode_for_each_page_and_a_few_more(place: Path) -> None:
    with helper_with(place, "") as helper:
        sizes = {"tmp_bytes": 1 << 20, "shm_bytes": 409600}
        job = helper.start("stat", "-f", "-c", "%n %c %a", "/tmp", "/dev/shm", **sizes)
        told = helper.finish(job).stdout.split(b"\n")
        assert told[:2] == [b"/tmp 272 256", b"/dev/shm 116 100"]  # in pages of 4 KiB


def test_profiles_are_chosen_by_name_and_the_first_is_the_default(place: Path, tree: Path) -> None:
    text = f'[profile.small]\nroot = "{tree}"\n[profile.open]\nnetwork = "host"\n'
    with helper_with(place, text) as helper:
        assert helper.welcome["profiles"] == [b"host", b"small", b"open"]
        assert helper.run("cat", "/etc/who", place=[b"small", b""]).stdout == b"the tree\n"
        assert b"No such file" in helper.run("cat", "/etc/who").stderr
        ours = os.readlink("/proc/self/ns/net").encode()
        links = [
            helper.run("readlink", "/proc/self/ns/net", place=[name, b""]).stdout.strip() for name in (b"", b"open")
        ]
        assert links[0] != ours == links[1]
        for name in (b"absent", b"Host", b"host ", b"\xff", b"../host"):
            stage, number, said = helper.start_error("true", place=[name, b""])
            assert (stage, number) == (Stage.POLICY, errno.EINVAL)
            assert "host, small, open" in said
