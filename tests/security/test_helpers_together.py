"""Helpers that start together all start; nobody else reaches what they have, from the moment it is made (S51)."""

import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from support.cgroups import our_cgroups
from support.checkout import ROOT
from support.helper_driver import Helper
from support.helper_startup import helper_command, startup_outcome
from support.policies import policy_text, write_policy
from support.processes import kill
from support.servers import Server, free_address
from support.start_together import start_together
from support.wait import wait_until

from helper.wire import Type

pytestmark = pytest.mark.usefixtures("as_root")
NOBODY = 65534
ALL_MISSING = 'allow_missing_controllers = ["cpu", "memory", "io", "pids"]\n'
# Run as another user: tries to lock what it is given.
LOCK = """
import fcntl, os, sys
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
try:
    fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB)
except OSError as error:
    print(error.errno)
"""


def test_s51_no_other_user_can_open_or_lock_a_helpers_directory(policy: Path) -> None:
    with Helper(policy) as helper:
        status = helper.cgroup.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o700, 0)
        done = subprocess.run([sys.executable, "-c", LOCK, str(helper.cgroup)], capture_output=True, check=True)
        assert done.stdout == b"13\n"  # EACCES
        job = helper.start("sleep", "100")
        assert os.read(os.open("cgroup.procs", os.O_RDONLY, dir_fd=job.cgroup), 100)  # for the api, by its fd
        job.close()


def test_s51_twelve_helpers_at_once_all_start(policy: Path) -> None:
    for _ in range(3):
        with ExitStack() as stack:
            helpers = [stack.enter_context(Helper(policy, hello=False)) for _ in range(12)]
            for helper in helpers:
                helper.send(Type.HELLO)
            for helper in helpers:
                assert helper.receive()[0].type is Type.WELCOME
                assert helper.cgroup.is_dir()


@pytest.fixture
def swept(bare_cgroup: Path) -> Iterator[Path]:
    """A cgroup in which the first helper directory that is not locked is removed, once."""
    ended = threading.Event()
    removed: list[str] = []

    def sweep() -> None:
        while not ended.is_set() and not removed:
            for path in bare_cgroup.glob("telehandler.*"):
                with suppress(OSError):
                    fd = os.open(path, os.O_RDONLY)
                    try:
                        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        path.rmdir()
                        removed.append(path.name)
                    finally:
                        os.close(fd)

    thread = threading.Thread(target=sweep)
    thread.start()
    yield bare_cgroup
    ended.set()
    thread.join()
    assert removed, "it was never there without a lock"


@pytest.mark.parametrize("before", ["flock", "openat"])
def test_s51_a_directory_that_is_swept_before_it_is_locked_is_made_again(place: Path, swept: Path, before: str) -> None:
    """The system call after mkdir is held back until it has been swept, once."""
    policy = write_policy(place, "bare", ALL_MISSING)
    delay = ["strace", "-D", "-qq", "-o", "/dev/null"]
    if before == "flock":
        delay += ["-e", "trace=flock", "-e", "inject=flock:delay_enter=300000:when=1"]
    else:
        delay += ["-e", "trace=mkdir", "-e", "inject=mkdir:delay_exit=300000:when=1"]
    command = [*delay, *helper_command(ROOT, policy, "--cgroup-root", str(swept))]
    with Helper(policy, hello=False, command=command) as helper:
        assert helper.request(Type.HELLO).type is Type.WELCOME
        assert (swept / f"telehandler.{helper.process.pid}").is_dir()
        assert helper.run("true").facts["exit_code"] == 0


def test_s51_a_start_that_fails_leaves_nothing(place: Path) -> None:
    broken = write_policy(place, "broken", policy_text('[profile.host]\nwritable = ["/no/such:/mnt"]\n'))
    ours, theirs = _pids_before_and_after(helper_command(ROOT, broken))
    assert not theirs - ours


def _pids_before_and_after(command: list[str]) -> tuple[set[str], set[str]]:
    """The directories of helpers whose process is gone, before and after a start that is refused."""

    def orphans() -> set[str]:
        return {name for name in our_cgroups() if not os.path.exists(f"/proc/{name.split('.')[1].split('-')[0]}")}

    before = orphans()
    status, said = startup_outcome(*command)
    assert (status, "/no/such" in said) == (125, True)
    return before, orphans()


def test_s51_a_helper_that_cannot_start_now_does_not_end_the_server(
    make_server: Callable[..., Server], place: Path, bare_cgroup: Path
) -> None:
    """The cgroup takes no more directories for a while, as a machine may have no process or memory to give."""
    policy = write_policy(place, "bare server", ALL_MISSING)
    server = make_server(policy=policy, listen=free_address(), options=("--cgroup-root", str(bare_cgroup)))
    assert server.process is not None
    (bare_cgroup / "cgroup.max.descendants").write_text("0")
    kill(server.children()["helper"])
    wait_until("it was tried twice", lambda: server.log_text().count("cannot be started now") >= 2)
    assert server.process.poll() is None
    assert server.client("ls").returncode == 0
    (bare_cgroup / "cgroup.max.descendants").write_text("max")
    wait_until("a job runs", lambda: server.client("run", "--", "true").returncode == 0)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    for path in bare_cgroup.glob("telehandler.*"):
        path.rmdir()


def test_s51_three_servers_and_ten_locals_at_once_all_start(place: Path, ssl: Path) -> None:
    """And no uid is used twice. Once here; `python -m support.start_together` in tests/ does it a hundred times."""
    assert start_together(place, ssl) == []
