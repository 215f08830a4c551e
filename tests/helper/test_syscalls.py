"""The numbers of helper/syscalls.py are those of the machine's headers; its wrappers raise what errno says."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkout import ROOT

from helper import syscalls as sc

HEADERS = (
    *("stdio.h", "signal.h", "fcntl.h", "sys/mount.h", "sys/personality.h", "sys/prctl.h", "sys/syscall.h"),
    *("linux/sched.h", "linux/ioprio.h", "linux/openat2.h", "linux/seccomp.h", "linux/keyctl.h"),
)
# What the headers call by another name.
NAMES = {
    "_MOVE_MOUNT_EMPTY_PATHS": "MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH",
    "_PERSONALITY_OF_X86_64": "PER_LINUX",
}
NOT_IN_HEADERS = {"_DEFAULT_SLACK_NS"}  # test_job_attributes.py has it


def test_every_number_is_the_headers(tmp_path: Path) -> None:
    numbers = {name: value for name, value in vars(sc).items() if name.isupper() and isinstance(value, int)}
    numbers = {name: value for name, value in numbers.items() if name not in NOT_IN_HEADERS}
    assert len(numbers) > 40
    lines = [f"#include <{name}>" for name in HEADERS] + ["int main(void) {"]
    for name in numbers:
        in_c = NAMES.get(name) or re.sub("^SYS_(.*)", lambda match: f"SYS_{match[1].lower()}", name.removeprefix("_"))
        lines += [f'printf("{name} %lld\\n", (long long)({in_c}));']
    source = tmp_path / "numbers.c"
    source.write_text("\n".join(["#define _GNU_SOURCE", *lines, "}"]))
    subprocess.run(["gcc", "-o", tmp_path / "numbers", source], check=True)
    told = subprocess.run([tmp_path / "numbers"], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert {name: int(value) for name, value in map(str.split, told.splitlines())} == numbers


def test_an_error_has_errno_and_path(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(FileNotFoundError) as raised:
        sc.open_nofollow(missing)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOENT, missing)


def test_an_fd_without_links_closes_on_exec_and_reads_nothing(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("text")
    link.symlink_to(file)
    fd = sc.open_nofollow(str(file))
    assert not os.get_inheritable(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):  # O_PATH
        os.read(fd, 1)
    os.close(fd)
    with pytest.raises(OSError, match="symbolic links"):
        sc.open_nofollow(str(link))
    fd = sc.open_nofollow(str(link), last_may_be_link=True)
    assert os.readlink("", dir_fd=fd) == str(file)
    os.close(fd)


# Prints what its clone says, in the child and in the parent, with what each was told of a fork.
CLONE = """
import json, os, sys
from helper import syscalls as sc
said = []
os.register_at_fork(
    before=lambda: said.append("before"),
    after_in_child=lambda: said.append("child"),
    after_in_parent=lambda: said.append("parent"),
)
pid, pidfd = sc.clone3(0, os.open(sys.argv[1], os.O_RDONLY))
if pid == 0:
    print(json.dumps([pid, pidfd, said, open("/proc/self/cgroup").read().splitlines()[-1]]), flush=True)
    os._exit(7)
status = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
print(json.dumps([status.si_pid == pid, os.get_inheritable(pidfd), status.si_status, said]))
"""


@pytest.mark.usefixtures("as_root")
def test_a_clone_is_born_in_its_cgroup_and_the_interpreter_is_told_as_of_a_fork(bare_cgroup: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-c", CLONE, bare_cgroup], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    child, parent = map(json.loads, told.stdout.splitlines())
    assert child[:3] == [0, -1, ["before", "child"]]
    assert child[3].endswith(f"/{bare_cgroup.name}")
    assert parent == [True, False, 7, ["before", "parent"]]


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("call", ["ioprio_set", "set_mempolicy", "personality"])
@pytest.mark.parametrize("error", ["ENOSYS", "EPERM"])
def test_s46_scheduling_that_cannot_be_set_is_an_error_unless_the_kernel_has_no_numa(call: str, error: str) -> None:
    """The call is refused by strace(1) in the kernel's place."""
    inject = ["strace", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:error={error}:when=1"]
    code = "from helper import syscalls; syscalls.default_scheduling()"
    done = subprocess.run([*inject, sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    if (call, error) == ("set_mempolicy", "ENOSYS"):
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode == 1
        assert f"OSError: [Errno {getattr(errno, error)}]" in done.stderr.replace("PermissionError", "OSError")
