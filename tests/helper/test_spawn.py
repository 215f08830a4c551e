"""What a start leaves in the helper, in the job's init, and in a child that is not ready yet."""

import errno
import os
import resource
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.helper_driver import Helper, read_line
from support.helper_startup import helper_command
from support.wait import wait_until

from helper.wire import Type

pytestmark = pytest.mark.usefixtures("as_root")
PIVOT_ROOT = 155


def _fds(pid: int) -> dict[int, str]:
    """Numbers, and what each is."""
    return {int(path.name): os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}


def _session(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[3])


def test_s14_an_init_has_one_fd_a_session_of_its_own_and_the_helper_its_signals(policy: Path) -> None:
    with Helper(policy) as helper:
        job = helper.start("sleep", "100")
        init, main = helper.host_pids(job)
        wait_until("it waits for signals", lambda: [*_fds(init)] == [4])
        assert _fds(init)[4].startswith("pipe:")
        assert (_session(init), _session(main)) == (init, main)
        for pid in (helper.process.pid, main):
            assert "SigBlk:\t0000000000000000\n" in Path(f"/proc/{pid}/status").read_text()
        job.close()


def test_r13_an_orphan_of_another_session_is_reaped(policy: Path) -> None:
    with Helper(policy) as helper:
        job = helper.start("sh", "-c", "(setsid true &); echo up; sleep 100; exit")
        assert read_line(job.stdout) == b"up\n"  # it has lost its parent by now
        init, main, *_ = helper.host_pids(job)
        children = Path(f"/proc/{init}/task/{init}/children")
        wait_until("only the main process is left", lambda: children.read_text().split() == [str(main)])
        job.close()


def test_r9_a_job_ends_with_its_main_process_whatever_it_left_running(policy: Path, code: Path) -> None:
    with Helper(policy, code=code) as helper:
        facts = helper.run("sh", "-c", "(setsid sleep 1000 &); exit 3").facts
        assert (facts["exit_code"], facts["killed"]) == (3, 0)


def test_s34_a_start_without_fds_says_so_and_keeps_none(policy: Path) -> None:
    """One more fd than before is free at each try, until a start has all that it takes."""
    with Helper(policy) as helper:
        helper.run("true")  # what it opens once, it has opened
        pid = helper.process.pid
        before = _fds(pid)
        limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        for failed in range(100):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(before) + failed, limit[1]))
            reply, fds = helper.request_start("true")
            if reply.type is Type.STARTED:
                break
            assert reply.fields["errno"] == errno.EMFILE
            assert _fds(pid) == before
        assert failed >= 11  # four pipes, stdin, the directory of the cgroup, the pidfd
        for fd in fds:
            os.close(fd)
        helper.request(Type.KILL, handle=reply.fields["handle"])


def test_s14_a_child_that_is_not_ready_has_no_fd_of_the_helpers(policy: Path) -> None:
    """It may take its time over the mounts of a slow machine: another job's pipe must end meanwhile."""
    slow = ["strace", "-f", "-D", "-qq", "-o", "/dev/null", "-e", "trace=pivot_root"]
    slow += ["-e", "inject=pivot_root:delay_enter=1000000"]
    with Helper(policy, command=[*slow, *helper_command(ROOT, policy)]) as helper:
        children = Path(f"/proc/{helper.process.pid}/task/{helper.process.pid}/children")
        helper.send_start("true")
        (child,) = map(int, wait_until("it is there", children.read_text).split())
        call = Path(f"/proc/{child}/syscall")
        wait_until("it is at its mounts", lambda: call.read_text().startswith(f"{PIVOT_ROOT} "))
        theirs, ours = _fds(helper.process.pid), _fds(child)
        assert call.read_text().startswith(f"{PIVOT_ROOT} ")
        assert any(link.startswith("socket:") for link in theirs.values())
        given = {link for number, link in ours.items() if number <= 5}  # 5: the file of the init, where there is one
        assert {*ours.values()} & {*theirs.values()} <= given
        message, fds = helper.receive()
        assert message.type is Type.STARTED
        for fd in fds:
            os.close(fd)
