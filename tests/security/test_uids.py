"""Uids of jobs: one for each live job on the machine, whichever helper started it; usable ones."""

import errno
import os
import resource
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.checkout import ROOT
from support.command_line import local_command
from support.helper_driver import Helper, read_line
from support.policies import own_uids, policy_text, write_policy
from support.processes import kill
from support.wait import wait_until

from helper import syscalls as sc
from helper import uids
from helper.policy import Refusal, SetupError, parse
from helper.wire import Stage, Type

pytestmark = pytest.mark.usefixtures("as_root")
CLONE_NEWNS = 0x00020000
ZERO = os.makedev(1, 5)
HELPERS, JOBS = 13, 5  # as three servers and ten `local`s


@pytest.fixture
def lock_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Not there yet."""
    path = tmp_path / "locks"
    monkeypatch.setattr(uids, "PATH", str(path))
    return path


@pytest.mark.parametrize("mode", [0o600 | 1 << bit for bit in range(6)], ids=oct)
def test_s45_a_lock_file_with_any_right_of_others_is_refused(lock_file: Path, mode: int) -> None:
    lock_file.touch()
    lock_file.chmod(mode)
    with pytest.raises(SetupError, match="only root can open: remove it"):
        uids.Uids(parse("", ""))


def test_s45_a_lock_file_that_is_no_file_of_roots_is_refused(lock_file: Path) -> None:
    for kind in (stat.S_IFIFO, stat.S_IFCHR):
        os.mknod(lock_file, kind | 0o600, ZERO)
        with pytest.raises(SetupError, match="only root can open: remove it"):
            uids.Uids(parse("", ""))
        lock_file.unlink()
    lock_file.touch(0o600)
    for uid in (1, 65534):
        os.chown(lock_file, uid, 0)
        with pytest.raises(SetupError, match="only root can open: remove it"):
            uids.Uids(parse("", ""))
    lock_file.rename(lock_file.with_name("elsewhere"))
    lock_file.symlink_to("elsewhere")
    with pytest.raises(SetupError, match=r"where helpers lock the uids of jobs: Too many .* symbolic links"):
        uids.Uids(parse("", ""))


def test_s45_a_uid_comes_again_as_late_as_can_be_and_to_any_helper(lock_file: Path) -> None:
    rules = parse("", f"max_jobs = 1\n{own_uids(10)}")
    one, other = uids.Uids(rules), uids.Uids(rules)
    wanted = set(range(rules.uid_first, rules.uid_first + 10))
    for each in (one, other):
        seen = []
        for _ in range(20):
            seen.append(each.take())
            each.give_back(seen[-1])
        assert {*seen[:10]} == wanted
        assert seen[10:] == seen[:10]
    assert {each.take() for each in (one, other) for _ in range(5)} == wanted
    for each in (one, other):
        text = f"all uids from {min(wanted)} to {max(wanted)}: the policy's job_uids can name more"
        with pytest.raises(Refusal, match=text) as refused:
            each.take()
        assert refused.value.args[:2] == (Stage.CAPACITY, errno.EAGAIN)
    for each in (one, other):
        os.close(each.fd)


def test_s45_a_uid_that_cannot_be_locked_is_not_taken(lock_file: Path) -> None:
    each = uids.Uids(parse("", ""))
    uid = each.take()
    os.close(each.fd)
    with pytest.raises(Refusal, match=r"no uid can be locked in .*/locks: Bad file descriptor") as refused:
        each.take()
    assert refused.value.args[:2] == (Stage.CAPACITY, errno.EBADF)
    each.give_back(uid)  # nobody else can take it: no harm
    assert not each.taken


def test_s45_a_uid_that_a_process_has_is_passed_over(lock_file: Path) -> None:
    rules = parse("", f"max_jobs = 1\n{own_uids(2)}")
    options: dict[str, Any] = {"user": rules.uid_first, "group": rules.uid_first, "extra_groups": [], "cwd": "/"}
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, **options) as process:
        for _ in range(2):  # wherever it begins
            each, other = uids.Uids(rules), uids.Uids(rules)
            assert each.take() == rules.uid_first + 1
            each.next = 0
            with pytest.raises(Refusal):
                each.take()
            each.give_back(rules.uid_first + 1)
            assert not each.taken
            assert other.take() == rules.uid_first + 1  # and no lock is left
            for fd in (each.fd, other.fd):
                os.close(fd)
        process.communicate()


def test_s45_jobs_that_many_helpers_start_at_once_share_no_uid(place: Path) -> None:
    """In a range that has hardly more uids than there are jobs."""
    text = policy_text(f"max_jobs = {JOBS}\n{own_uids(HELPERS * JOBS + 3)}")
    policy = write_policy(place, "crowded", text)
    with ExitStack() as stack, ThreadPoolExecutor(HELPERS) as pool:
        helpers = [stack.enter_context(Helper(policy)) for _ in range(HELPERS)]
        started = pool.map(lambda helper: [helper.start("sleep", "100") for _ in range(JOBS)], helpers)
        used = [job.uid for jobs in started for job in jobs]
    assert len(used) == HELPERS * JOBS
    assert len(set(used)) == len(used)


def test_s45_a_uid_that_any_process_has_is_not_taken(place: Path) -> None:
    policy = write_policy(place, "taken", policy_text(f"max_jobs = 1\n{own_uids(1)}"))
    with Helper(policy) as helper:
        uid = helper.start("true").uid
    wait_until("its process is reaped", lambda: not uids._in_use(uid))
    options: dict[str, Any] = {"user": uid, "group": uid, "extra_groups": [], "stdin": subprocess.PIPE, "cwd": "/"}
    with Helper(policy) as helper:
        with subprocess.Popen(["cat"], **options) as process:
            stage, number, text = helper.start_error("true")
            assert (stage, number) == (Stage.CAPACITY, errno.EAGAIN)
            assert f"all uids from {uid} to {uid}" in text
            assert "job_uids" in text
            process.communicate()
        assert helper.start("true").uid == uid


def test_s45_a_uid_of_a_killed_helper_can_be_had_again(place: Path) -> None:
    policy = write_policy(place, "again", policy_text(f"max_jobs = 1\n{own_uids(1)}"))
    with Helper(policy) as first, Helper(policy) as second:
        job = first.start("sleep", "100")
        assert second.start_error("true")[0] is Stage.CAPACITY
        pids = first.host_pids(job)
        kill(first.process.pid)
        wait_until("its job has ended", lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
        assert second.start("true").uid == job.uid


def test_s45_a_dry_run_and_a_start_that_fails_keep_no_uid(place: Path) -> None:
    policy = write_policy(place, "dry", policy_text(f"max_jobs = 1\n{own_uids(1)}"))
    with Helper(policy) as first, Helper(policy) as second:
        for helper in (first, second, first):
            assert helper.request_start("true", kind=Type.CHECK)[0].type is Type.VERDICT
            assert helper.start_error("/no/such/program")[0] is Stage.EXEC
            assert helper.start_error("true", memory_bytes=1 << 61)[0] is Stage.LIMIT
        limit = resource.prlimit(first.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(first.process.pid, resource.RLIMIT_NOFILE, (8, limit[1]))
        assert first.start_error("true")[1] == errno.EMFILE
        resource.prlimit(first.process.pid, resource.RLIMIT_NOFILE, limit)
        first.finish(first.start("true"))


def test_s45_a_lock_file_that_others_can_open_is_refused(policy: Path, place: Path) -> None:
    """Who can open it can lock it."""

    def forge() -> None:
        sc.unshare(CLONE_NEWNS)
        sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
        sc.mount("test", "/run", "tmpfs", 0, "mode=755")
        os.close(os.open(uids.PATH, os.O_CREAT | os.O_WRONLY, 0o644))

    helper = Helper(policy, hello=False, preexec_fn=forge)
    helper.sock.close()
    status, text = helper.end()
    assert status == 125
    assert "only root can open" in text


def test_s45_the_lock_file_is_roots_alone_from_its_beginning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "uids"
    monkeypatch.setattr(uids, "PATH", str(path))
    mask = os.umask(0)
    rules = parse("", own_uids(1000))
    try:
        one, other = uids.Uids(rules), uids.Uids(rules)
    finally:
        os.umask(mask)
    assert path.stat().st_mode == 0o100600
    taken = {each.take() for each in (one, other) for _ in range(500)}
    assert len(taken) == 1000
    with pytest.raises(Refusal):
        one.take()
    for each in (one, other):
        os.close(each.fd)


def test_the_range_is_one_that_nobody_hands_out_and_old_formats_hold(policy: Path) -> None:
    """ustar ends at 2,097,151; login.defs' SUB_UID_MIN is 100000; distributions and systemd have what is to 65535."""
    rules = parse("", "")
    assert rules.uid_first > 65536  # whose low 16 bits are root's
    assert rules.uid_first + rules.uid_count <= 100_000
    with Helper(policy) as helper:
        script = "cd /tmp && echo x >file && tar --format=ustar -cf file.tar file && tar --numeric-owner -tvf file.tar"
        job = helper.start("sh", "-c", script)
        ended = helper.finish(job)
    assert (ended.facts["exit_code"], ended.stderr) == (0, b"")
    assert f" {job.uid}/{job.uid} " in ended.stdout.decode()


def test_s45_locals_and_a_server_share_no_uid(policy: Path) -> None:
    """Each prints its uid and lives on, so all live at once."""
    script = "id -u; sleep 100"
    with Helper(policy) as helper, ExitStack() as stack:
        jobs = [helper.start("sh", "-c", script) for _ in range(3)]
        command = local_command(policy, "--", "sh", "-c", script)
        used = [int(read_line(job.stdout)) for job in jobs]
        for _ in range(4):
            options: dict[str, Any] = {
                "stdout": subprocess.PIPE,
                "stdin": subprocess.DEVNULL,
                "stderr": subprocess.DEVNULL,
            }
            process = stack.enter_context(subprocess.Popen(command, cwd=ROOT, **options))
            stack.callback(process.terminate)
            assert process.stdout
            used.append(int(process.stdout.readline()))
    assert len(set(used)) == len(used) == 7
