"""The user that a job runs as, and what programs ask the machine: names, a home, its cgroup, the processors."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.helper_driver import ENV, Helper

from helper.wire import Type

pytestmark = pytest.mark.usefixtures("as_root")
HOME = [ENV[0], b"HOME=/home/job", b"USER=job", b"LANG=C.UTF-8"]
HOSTS_USER = "daemon"  # whom the machine knows, and a job does not


@pytest.fixture(scope="module")
def helper(policy: Path, as_root: None) -> Iterator[Helper]:
    with Helper(policy) as helper:
        yield helper


def test_the_jobs_user_has_a_name_a_home_and_a_shell(helper: Helper) -> None:
    script = f"""whoami; id -un; id -gn; cd; pwd; echo ~job; stat -c '%A %U %G' . /home /tmp
python3 -c 'import getpass, os, pwd; print(pwd.getpwuid(os.getuid())[5:], getpass.getuser(), os.path.expanduser("~"))'
bash --norc -ic 'PS1="\\u@\\h:\\w\\$ "; echo "${{PS1@P}}"' 2>/dev/null
ls -ld /usr/bin | cut -d ' ' -f 3,4; getent passwd {HOSTS_USER} || echo nobody of the machine"""
    ended = helper.run("bash", "-c", script, env=HOME, place=[b"", b"/home/job"])
    assert ended.stdout.decode().splitlines() == [
        *("job", "job", "job", "/home/job", "/home/job"),
        *("drwx------ job job", "drwxr-xr-x root root", "drwxrwxrwt root root"),
        "('/home/job', '/bin/sh') job /home/job",
        "job@sandbox:~$ ",
        "root root",
        "nobody of the machine",
    ]
    assert ended.stderr == b""


def test_ssh_and_git_know_the_user(helper: Helper) -> None:
    """ssh ends at once where the uid has no name. What would be the other machine is the same job."""
    script = """set -e; cd; ssh -V 2>&1 | grep -o ^OpenSSH; ssh -T -G somewhere | grep '^user '
git init -q -b main there; cd there; git -c user.name=x -c user.email=x@x commit -q --allow-empty -m one; cd
printf '#!/bin/sh\\nssh -T -G "$1" >/dev/null && shift && exec sh -c "$*"\\n' >connect; chmod +x connect
GIT_SSH=./connect git clone -q somewhere:there here; git -C here log --format=%s; git config --global user.name job"""
    ended = helper.run("bash", "-c", script, env=HOME)
    assert (ended.stdout, ended.stderr) == (b"OpenSSH\nuser job\none\n", b"")


def test_names_of_users_cannot_be_written(helper: Helper) -> None:
    seen = helper.probe("""
files = ["/etc/passwd", "/etc/group"]
tell([[attempt(opened, path), attempt(os.unlink, path), attempt(os.chmod, path, 0o666),
       attempt(os.rename, path, path + "-"), os.statvfs(path).f_flag & os.ST_RDONLY] for path in files])""")
    assert seen == [["EACCES", "EROFS", "EROFS", "EROFS", os.ST_RDONLY]] * 2


def test_home_and_tmp_have_one_size(helper: Helper) -> None:
    script = """head -c 700000 /dev/zero >~/first && head -c 700000 /dev/zero >/tmp/second; rm ~/first
head -c 700000 /dev/zero >/tmp/second && echo fits; : >/home/other; touch /home/job/x && echo own"""
    ended = helper.run("bash", "-c", script, env=HOME, tmp_bytes=1 << 20)
    assert ended.stdout == b"fits\nown\n"
    assert ended.stderr.count(b"No space left") == 1
    assert b"/home/other: Permission denied" in ended.stderr


def test_s26_of_sys_a_job_has_its_own_cgroup_and_the_processors_read_only(helper: Helper) -> None:
    other = helper.start("sleep", "100")
    seen = helper.probe("""
found = {top: [os.path.join(top, name) for top, _, names in os.walk(top) for name in names]
         for top in ("/sys", "/sys/fs/cgroup", "/sys/devices/system/cpu")}
cgroup = "/sys/fs/cgroup"
tell({
    "outside": [path for path in found["/sys"] if not path.startswith((cgroup, "/sys/devices/system/cpu/"))],
    "many": [len(found[top]) > 10 for top in found],
    "writable": [path for path in found["/sys"] if attempt(opened, path) == "DONE"],
    "made": [attempt(os.mkdir, top + "/x") for top in (*found, "/sys/fs")],
    "attribute": attempt(os.setxattr, cgroup, "user.x", b"x"),
    "below": [name for name in os.listdir(cgroup) if os.path.isdir(f"{cgroup}/{name}")],
    "processes": sorted(open(f"{cgroup}/cgroup.procs").read().split()),
    "above": sorted(os.listdir(f"{cgroup}/..")),
    "links": [path for path in ("cpu0/subsystem", "cpu0/node0") if os.path.exists("/sys/devices/system/cpu/" + path)],
    "online": open("/sys/devices/system/cpu/online").read(),
})""")
    assert (seen["outside"], seen["writable"], seen["below"], seen["links"]) == ([], [], [], [])
    assert all(seen["many"])
    assert set(seen["made"]) <= {"EROFS", "EEXIST"}
    assert seen["attribute"] == "EROFS"
    assert seen["processes"] == ["1", "2"]  # the init and itself: what is not of its pid namespace would be 0
    assert seen["above"] == ["cgroup"]
    assert seen["online"] == Path("/sys/devices/system/cpu/online").read_text()
    helper.request(Type.KILL, handle=other.handle)
    helper.finish(other)


def test_programs_learn_of_the_machine_time_zone_and_names(helper: Helper) -> None:
    script = """lscpu | grep -c '^CPU(s):'; TZ=Asia/Tokyo date -d @0 +%H; date -d @0 +%Z >/dev/null; locale charmap
cat /etc/hostname; getent hosts sandbox | cut -d ' ' -f 1; getent hosts localhost | cut -d ' ' -f 1
python3 -c 'import _multiprocessing, multiprocessing as m; m.Semaphore(3).acquire(); print(m.cpu_count() > 0)'"""
    ended = helper.run("bash", "-c", script, env=HOME)
    assert ended.stderr == b""
    assert ended.stdout.decode().split() == ["1", "09", "UTF-8", "sandbox", "127.0.1.1", "::1", "True"]
