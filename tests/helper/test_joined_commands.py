"""A further command in a running job: in its namespaces, cgroup and limits, confined like the first."""

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest
from support.helper_driver import PYTHON, TAG, VIOLATION, Helper, Job, read_line
from support.process_usage import private_kib
from support.processes import alive
from support.wait import wait_until

from helper.wire import Stage, Stdio, Type

pytestmark = pytest.mark.usefixtures("as_root")
FACTS = """
import json, os
rows = dict(line.split(":", 1) for line in open("/proc/self/status"))
names = "Uid Gid Groups CapEff CapBnd NoNewPrivs Seccomp SigBlk SigIgn".split()
print(json.dumps({
    "namespaces": {name: os.readlink(f"/proc/self/ns/{name}") for name in sorted(os.listdir("/proc/self/ns"))},
    "status": {name: rows[name].split() for name in names},
    "limits": open("/proc/self/limits").read(),
    "fds": sorted(os.listdir("/proc/self/fd"))[:-1],
    "cgroup": open("/proc/self/cgroup").read().rpartition("::")[2],
    "hostname": os.uname().nodename,
    "oom": open("/proc/self/oom_score_adj").read(),
}))
"""

# Takes all that a uid may have of pending signals.
FILL = """
import os, resource, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [40])
for _ in range(resource.getrlimit(resource.RLIMIT_SIGPENDING)[0] + 9):
    os.kill(os.getpid(), 40)
print("full", flush=True)
signal.pause()
"""


def _job(helper: Helper, script: str = "echo up; exec sleep 1000") -> Job:
    job = helper.start("sh", "-c", script)
    assert read_line(job.stdout) == b"up\n"
    return job


def test_it_is_where_the_first_is_and_confined_alike(policy: Path, code: Path) -> None:
    with Helper(policy, code=code) as helper:
        first = json.loads(helper.run(*PYTHON, FACTS).stdout)
        job = _job(helper)
        further = json.loads(helper.run(*PYTHON, FACTS, parent=job.handle).stdout)
        host = [os.readlink(f"/proc/{helper.host_pids(job)[0]}/ns/{name}") for name in ("mnt", "pid", "net", "ipc")]
        assert [further["namespaces"][name] for name in ("mnt", "pid", "net", "ipc")] == host
        assert further["cgroup"].startswith("/exec-")
        assert further["status"]["Uid"] == [str(job.uid)] * 4
        for uid in ("Uid", "Gid"):
            del first["status"][uid], further["status"][uid]
        for name in ("status", "limits", "fds", "hostname", "oom"):
            assert further[name] == first[name], name


def test_it_sees_the_jobs_processes_and_files_and_the_job_cannot_see_its_init(policy: Path, code: Path) -> None:
    with Helper(policy, code=code) as helper:
        job = _job(helper, "echo of the first >/tmp/file; echo up; exec sleep 1000")
        seen = helper.run("sh", "-c", "cat /tmp/file; ls /proc | grep -c '^[0-9]'", parent=job.handle).stdout
        # pid 1, sleep, this shell, ls and grep.
        assert seen == b"of the first\n5\n"


def test_its_code_and_its_end_are_its_own(policy: Path, code: Path) -> None:
    with Helper(policy, code=code) as helper:
        job = _job(helper)
        assert helper.run("sh", "-c", "echo a; echo b >&2; exit 3", parent=job.handle)[:2] == (b"a\n", b"b\n")
        assert helper.run("sh", "-c", "kill -9 $$", parent=job.handle).facts["signal"] == signal.SIGKILL
        assert helper.start_error("no-such", parent=job.handle)[0] is Stage.EXEC
        assert helper.run("cat", parent=job.handle, stdio=0).stdout == b""
        assert not list((helper.cgroup / f"job-{job.handle}").glob("exec-*"))
        assert alive(helper.host_pids(job)[-1])


def test_what_it_leaves_ends_with_it_and_the_job_goes_on(policy: Path, code: Path) -> None:
    with Helper(policy, code=code) as helper:
        job = _job(helper)
        helper.run("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo up", parent=job.handle)
        assert len(helper.host_pids(job)) == 2


def test_signals_and_kill_reach_it_alone(policy: Path, code: Path) -> None:
    with Helper(policy, code=code) as helper:
        job = _job(helper)
        script = "trap 'echo term; exit 5' TERM; echo up; while :; do sleep 0.05; done"
        further = helper.start("sh", "-c", script, parent=job.handle)
        assert read_line(further.stdout) == b"up\n"
        assert helper.request(Type.SIGNAL, handle=further.handle, signal=signal.SIGTERM).type is Type.DONE
        assert helper.finish(further).facts["exit_code"] == 5
        further = helper.start("sh", "-c", "echo up; exec sleep 1000", parent=job.handle)
        assert read_line(further.stdout) == b"up\n"
        assert helper.request(Type.KILL, handle=further.handle).type is Type.DONE
        assert helper.finish(further).facts["signal"] == signal.SIGKILL
        assert len(helper.host_pids(job)) == 2


@pytest.mark.parametrize("kill", [True, False])
def test_it_ends_with_the_job(policy: Path, code: Path, kill: bool) -> None:
    with Helper(policy, code=code) as helper:
        job = _job(helper)
        further = helper.start("sh", "-c", "echo up; exec sleep 1000", parent=job.handle)
        assert read_line(further.stdout) == b"up\n"
        pids = helper.pids_in(f"job-{job.handle}/exec-{further.handle}")
        if kill:
            helper.request(Type.KILL, handle=job.handle)
        else:
            helper.request(Type.SIGNAL, handle=job.handle, signal=signal.SIGTERM)
        assert helper.finish(further).facts["signal"] == signal.SIGKILL
        helper.finish(job)
        assert not any(map(alive, pids))
        wait_until("its cgroups are gone", lambda: not list(helper.cgroup.glob("job-*")))


def test_it_dies_with_the_helper(policy: Path, code: Path) -> None:
    with Helper(policy, code=code) as helper:
        job = _job(helper)
        further = helper.start("sh", "-c", "echo up; exec sleep 1000", parent=job.handle)
        assert read_line(further.stdout) == b"up\n"
        pids = helper.pids_in(f"job-{job.handle}/exec-{further.handle}")
        helper.process.kill()
        wait_until("its processes are gone", lambda: not any(map(alive, pids)))


def test_a_terminal_is_of_the_jobs_devpts(policy: Path, code: Path) -> None:
    with Helper(policy, code=code) as helper:
        job = _job(helper)
        further = helper.start("tty", parent=job.handle, stdio=Stdio.TERMINAL)
        assert os.read(further.stdout, 100) == b"/dev/pts/0\r\n"


def test_it_may_take_stdin(policy: Path, code: Path) -> None:
    with Helper(policy, code=code) as helper:
        job = _job(helper)
        further = helper.start("cat", parent=job.handle, stdio=Stdio.STDIN)
        os.write(further.stdin, b"text")
        assert helper.request(Type.CLOSE_STDIN, handle=further.handle).type is Type.DONE
        os.close(further.stdin)
        assert os.read(further.stdout, 100) == b"text"
        assert helper.exited(further)["exit_code"] == 0


def test_an_api_that_comes_anew_gets_both(policy: Path) -> None:
    with Helper(policy) as helper:
        job = _job(helper)
        further = helper.start("sleep", "1000", parent=job.handle)
        helper.send(Type.HELLO)
        assert helper.receive()[0].fields["live_jobs"] == 2
        adopted = [helper.receive()[0].fields for _ in range(2)]
        assert [(fields["handle"], fields["tag"]) for fields in adopted] == [(job.handle, TAG), (further.handle, TAG)]


def test_no_job_that_runs_no_command_in_it(policy: Path) -> None:
    with Helper(policy) as helper:
        assert helper.start_error("true", parent=99)[0] is Stage.NO_SUCH_JOB
        job = helper.start("true")
        helper.exited(job)
        assert helper.start_error("true", parent=job.handle)[0] is Stage.NO_SUCH_JOB


@pytest.mark.parametrize("change", [{"memory_bytes": 1 << 20}, {"place": [b"host", b""]}])
def test_one_with_limits_or_a_profile_of_its_own_is_a_violation(policy: Path, change: dict[str, object]) -> None:
    with Helper(policy) as helper:
        job = _job(helper)
        helper.send_start("true", parent=job.handle, **change)  # type: ignore[arg-type]
        assert helper.end()[0] == VIOLATION


def test_a_check_says_what_it_would_get_and_takes_nothing(policy: Path) -> None:
    with Helper(policy) as helper:
        job = _job(helper)
        for _ in range(3):
            verdict, _ = helper.request_start("true", parent=job.handle, kind=Type.CHECK)
            assert b"uid %d" % job.uid in verdict.fields["rows"]
        assert helper.start("true").uid != job.uid


def test_one_in_one_is_a_violation(policy: Path) -> None:
    with Helper(policy) as helper:
        further = helper.start("sleep", "1000", parent=_job(helper).handle)
        helper.send_start("true", parent=further.handle)
        assert helper.end()[0] == VIOLATION


def _zombies(uid: int) -> list[str]:
    """Dead processes of a uid that nobody has reaped."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            text = status.read_text()
            if f"Uid:\t{uid}\t" in text and "State:\tZ" in text:
                found.append(text)
    return found


def test_none_is_left_unreaped_however_it_ends(policy: Path, code: Path) -> None:
    """Its parent is outside of the job's pid namespace, which cannot end before all in it are reaped."""
    with Helper(policy, code=code) as helper:
        job = _job(helper)
        for _ in range(20):
            assert helper.start_error("true", parent=job.handle, place=[b"", b"/no/such"])[0] is Stage.CHDIR
            assert helper.start_error("no-such", parent=job.handle)[0] is Stage.EXEC
            further = helper.start("sleep", "1000", parent=job.handle)
            assert helper.request(Type.KILL, handle=further.handle).type is Type.DONE
            assert helper.finish(further).facts["signal"] == signal.SIGKILL
        assert _zombies(job.uid) == []


def test_one_whose_init_cannot_be_told_is_ended_all_the_same(policy: Path, code: Path) -> None:
    with Helper(policy, code=code) as helper:
        job = helper.start(*PYTHON, FILL)
        assert read_line(job.stdout) == b"full\n"
        further = helper.start("sleep", "1000", parent=job.handle)
        assert helper.request(Type.KILL, handle=further.handle).type is Type.DONE
        assert helper.finish(further).facts["killed"] == 1


def test_the_helper_keeps_nothing_of_what_a_user_sent(policy: Path) -> None:
    """Kept for those who join is the rest of a start: its memory is copied at each, and root's holds no secrets."""
    with Helper(policy) as helper:
        for _ in range(3):
            helper.start("sleep", "1000")
        before = private_kib(helper.process.pid)
        for _ in range(20):
            helper.start("sleep", "1000", env=[b"PATH=/bin", b"A=" + b"x" * 100_000])
        assert private_kib(helper.process.pid) - before < 1000
