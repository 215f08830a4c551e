"""Commands that join a job while it, or what is in it, works against them: nothing is left, and the helper goes on."""

import errno
import json
import os
import signal
from pathlib import Path

import pytest
from support.helper_driver import PYTHON, Helper, Job, read_both, read_line
from support.wait import wait_until

from helper.wire import Stage, Stdio, Type

pytestmark = pytest.mark.usefixtures("as_root")
ROUNDS = 40
# Opens what it can of every process of the namespace that comes.
HUNTER = """
import json, os
print("up", flush=True)
found, seen, own = set(), set(), {"1", str(os.getpid())}
def before_its_exec(pid):
    with open(f"/proc/{pid}/cmdline") as file:
        words = file.read()
    return "telehandler" in words
def look(pid):
    for name in ("exe", "cwd", "environ", "mem", "fd/0"):
        try:
            os.close(os.open(f"/proc/{pid}/{name}", os.O_PATH if name in ("exe", "cwd", "fd/0") else os.O_RDONLY))
            if before_its_exec(pid):  # still, so it was when that was opened
                found.add(name)
        except OSError:
            pass
    try:
        seen.add(before_its_exec(pid))
    except OSError:
        pass
while not os.path.exists("/tmp/enough"):
    for pid in os.listdir("/proc"):
        if pid.isdigit() and pid not in own:
            look(pid)
print(json.dumps([sorted(found), True in seen]), flush=True)
"""


def _fds(helper: Helper) -> int:
    return len(os.listdir(f"/proc/{helper.process.pid}/fd"))


def _all_end(helper: Helper, before: int) -> None:
    """Whatever was started has gone, at the helper's as well."""
    wait_until("no cgroup is left", lambda: not list(helper.cgroup.glob("job-*")))
    assert _fds(helper) == before
    assert helper.request(Type.HELLO).fields["live_jobs"] == 0


@pytest.mark.parametrize("stdio", [0, Stdio.STDIN, Stdio.TERMINAL])
def test_a_start_in_a_job_that_dies_meanwhile_leaves_nothing(policy: Path, code: Path, stdio: Stdio) -> None:
    with Helper(policy, code=code) as helper:
        before, refused = _fds(helper), 0
        for round_ in range(ROUNDS):
            job = helper.start("sh", "-c", "read x", stdio=Stdio.STDIN)
            (init, *_) = helper.host_pids(job)
            if round_ % 2:
                helper.send_start("true", parent=job.handle, stdio=stdio)
                os.kill(init, signal.SIGKILL)
            else:
                os.kill(init, signal.SIGKILL)
                helper.send_start("true", parent=job.handle, stdio=stdio)
            message, fds = helper._reply()
            if message.type is Type.STARTED:
                further = Job(message.fields["handle"], message.fields["uid"], *fds)
                helper.exited(further)
                ends = [event.fields["handle"] for event in helper.events]
                assert job.handle not in ends or ends.index(further.handle) < ends.index(job.handle)
            else:
                assert message.type is Type.ERROR
                assert not fds
                refused += 1
            helper.exited(job)
            released = [job] if message.type is Type.ERROR else [job, further]  # the job first: its uid goes once
            for one in released:
                assert helper.request(Type.RELEASE, handle=one.handle).type is Type.DONE
                one.close()
        assert refused
        _all_end(helper, before)


def test_the_job_cannot_look_into_what_joins_it(policy: Path, code: Path) -> None:
    """CVE-2016-9962, CVE-2019-5736: a process of the job, of the same uid, opens what it can before the exec."""
    with Helper(policy, code=code) as helper:
        job = helper.start(*PYTHON, HUNTER)
        assert read_line(job.stdout) == b"up\n"
        for _ in range(ROUNDS):
            assert helper.run("true", parent=job.handle).facts["exit_code"] == 0
        helper.run("touch", "/tmp/enough", parent=job.handle)
        (found,) = read_both(job.stdout)
        opened, met_one = json.loads(found)
        assert met_one, "never there in time"
        assert not opened


def test_no_terminal_is_left_for_one_that_joins(policy: Path, code: Path) -> None:
    script = "import os; held = [os.open('/dev/ptmx', os.O_RDWR) for _ in range(32)]; print('up', flush=True); input()"
    with Helper(policy, code=code) as helper:
        job = helper.start(*PYTHON, script, stdio=Stdio.STDIN)
        assert read_line(job.stdout) == b"up\n"
        before = _fds(helper)
        stage, number, text = helper.start_error("true", parent=job.handle, stdio=Stdio.TERMINAL)
        assert (stage, number) == (Stage.CLONE, errno.ENOSPC), text
        assert _fds(helper) == before
        assert helper.run("true", parent=job.handle).facts["exit_code"] == 0


def test_a_job_at_its_limit_of_processes_refuses_one_that_joins(policy: Path, code: Path) -> None:
    script = "while sleep 1000 & do :; done"
    with Helper(policy, code=code) as helper:
        job = helper.start("sh", "-c", f"({script}) 2>/dev/null; echo up; read x", stdio=Stdio.STDIN, pids=10)
        assert read_line(job.stdout) == b"up\n"
        before = _fds(helper)
        stage, number, text = helper.start_error("true", parent=job.handle)
        assert (stage, number) == (Stage.CLONE, errno.EAGAIN), text
        assert _fds(helper) == before
