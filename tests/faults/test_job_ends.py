"""R9 to R13: the tail of the output, closed outputs, execs that fail, cgroups that are not empty, orphans, pids."""

import errno
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.helper_driver import Helper, Job, read_line
from support.policies import policy_text, write_policy
from support.process_usage import cpu_ticks, process_usage
from support.processes import live_processes_with
from support.servers import Server
from support.slow_to_die import SlowToDie
from support.wait import wait_until

from helper.wire import Stage, Type

pytestmark = pytest.mark.usefixtures("as_root")
IDLE_S = 2.0
_POLL, _EPOLL_WAIT = "7", "232"  # system calls


# R9: when the main process exits, what it left is ended; the output is read to its end first.


@pytest.mark.parametrize("how", ["&", "& disown", "</dev/null & setsid"])
def test_r9_a_grandchild_that_holds_the_pipe_is_ended_and_the_tail_is_kept(server: Server, how: str) -> None:
    mark = f"{time.time_ns() % 10**9}.5"
    # It writes a line each time it looks, and would for ever.
    script = f"trap '' TERM HUP; (while :; do echo grandchild {mark} >&2; sleep 0.01; done) & sleep {mark} {how} echo; "
    script += "seq 1 100000; exit 5"
    done = server.client("run", "--", "bash", "-c", script)
    assert done.returncode == 5
    assert done.stdout.split() == [b"%d" % number for number in range(1, 100_001)]
    assert not live_processes_with(mark)


# R10


def test_r10_a_job_that_closes_its_outputs_runs_on_and_costs_nothing(make_server: Callable[..., Server]) -> None:
    server = make_server()
    assert server.client("run", "--", "true").returncode == 0
    pids = server.children()
    alone = _spent(pids)
    name = server.detach(
        "python3", "-ISc", "import os, time; os.write(1, b'up'); os.close(1); os.close(2); time.sleep(1000)"
    )
    wait_until("both are closed", lambda: _open_pipes(pids["api"]) == 0)
    assert server.job_status(name)["state"] == "running"
    spent = _spent(pids)
    for process, ticks in spent.items():
        assert ticks <= alone[process] + IDLE_S * 10, (process, "a busy loop")  # a tenth of the time
    assert server.client("stop", name).returncode == 0
    assert server.client("watch", name).stdout == b"up"
    assert server.stop() == 0


def _spent(pids: dict[str, int]) -> dict[str, int]:
    """The ticks that each uses in IDLE_S."""
    before = {name: cpu_ticks(pid) for name, pid in pids.items()}
    end = time.monotonic() + IDLE_S
    wait_until("some time passes", lambda: time.monotonic() > end)
    return {name: cpu_ticks(pid) - before[name] for name, pid in pids.items()}


def _open_pipes(pid: int) -> int:
    """The pipes of a process that are polled, apart from its standard ones."""
    links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if int(path.name) > 2]
    return sum(link.startswith("pipe:") for link in links)


def test_r10_the_last_bytes_come_before_the_end(server: Server) -> None:
    """However much is in the pipe when it exits, or is killed."""
    for size, end in ((1, "exit 0"), (65_536, "exit 0"), (1_048_576, "kill -KILL $$"), (3_000_000, "kill -SEGV $$")):
        done = server.client("run", "--", "sh", "-c", f"head -c {size} /dev/zero; echo tail; {end}")
        assert done.stdout == bytes(size) + b"tail\n"


# R11


@pytest.fixture(scope="module")
def programs(place: Path) -> Path:
    """A policy whose jobs see programs that cannot be executed at /mnt."""
    directory = place / "r11"
    directory.mkdir()
    for name, text in {
        "no-interpreter": "#!/no/such/interpreter\n",
        "text": "just text\n",
        "elf": "\x7fELF junk",
    }.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
    (directory / "loop").symlink_to("loop")
    (directory / "plain").write_text("#!/bin/sh\n")
    return write_policy(place, "r11", policy_text(f'[profile.host]\nread_only = ["{directory}:/mnt"]\n'))


FAILURES = [
    (["no-such-command"], errno.ENOENT, 127),
    (["/no/such/command"], errno.ENOENT, 127),
    (["/etc/passwd/command"], errno.ENOTDIR, 127),
    (["/mnt/no-interpreter"], errno.ENOENT, 127),
    (["/etc/passwd"], errno.EACCES, 126),
    (["/"], errno.EACCES, 126),
    (["/mnt/plain"], errno.EACCES, 126),
    (["/mnt/text"], errno.ENOEXEC, 126),
    (["/mnt/elf"], errno.ENOEXEC, 126),
    (["/mnt/loop"], errno.ELOOP, 126),
    (["a" * 300], errno.ENAMETOOLONG, 126),
]


@pytest.mark.parametrize(("argv", "number", "code"), FAILURES, ids=lambda value: str(value)[:24])
def test_r11_an_exec_that_fails_is_an_error_of_its_own(programs: Path, argv: list[str], number: int, code: int) -> None:
    """Never an exit code of the job's; the helper is as before."""
    with Helper(programs) as helper:
        before = process_usage(helper.process.pid)
        for _ in range(3):
            stage, found, text = helper.start_error(*argv)
            assert (stage, found, os.strerror(number) in text) == (Stage.EXEC, number, True)
        assert process_usage(helper.process.pid) == before
        assert not list(helper.cgroup.glob("job-*"))


def test_r11_each_has_its_exit_code_and_no_record(make_server: Callable[..., Server], programs: Path) -> None:
    server = make_server(policy=programs)
    for argv, number, code in FAILURES:
        done = server.client("run", "--", *argv)
        assert (done.returncode, done.stdout) == (code, b""), argv
        assert os.strerror(number).encode() in done.stderr
        assert done.stderr.count(b"\n") == 1
    assert server.client("ls", "-q").stdout == b""
    assert not list((server.state / "jobs").iterdir())
    assert server.stop() == 0


def test_r11_arguments_that_are_too_long_are_told_apart(server: Server) -> None:
    """The wire's bound is below the kernel's, so E2BIG comes from us."""
    done = server.client("run", "--", "echo", *["x" * 15_000] * 14)
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"too long (E2BIG)" in done.stderr


# R12


def test_r12_cgroups_below_a_jobs_go_deepest_first(policy: Path) -> None:
    """A job cannot make any; root does, from outside, with a process in the deepest. At the helper's end too."""
    with Helper(policy) as helper:
        job, other = (helper.start("sleep", "1000") for _ in range(2))
        paths = [helper.cgroup / f"job-{each.handle}" for each in (job, other)]
        for path in paths:
            for name in ("a", "a/b", "a/b/c", "d", "d/e"):
                (path / name).mkdir()
        stranger = subprocess.Popen(["sleep", "1000"])
        try:
            (paths[0] / "a/b/c/cgroup.procs").write_text(str(stranger.pid))
            assert helper.request(Type.SIGNAL, handle=job.handle, signal=signal.SIGTERM).type is Type.DONE
            assert helper.finish(job).facts["signal"] == signal.SIGTERM
            assert stranger.wait(10) == -signal.SIGKILL
        finally:
            stranger.kill()
            stranger.wait()
        assert [path.exists() for path in paths] == [False, True]
        other.close()
    assert not helper.cgroup.exists()  # in one go: nothing is left that would try again


def test_r12_a_cgroup_that_is_not_empty_is_waited_for_by_event(policy: Path, place: Path) -> None:
    """A stranger in it, frozen, is ended and takes its time. The helper never sleeps, at a job's end and at its own."""
    trace = place / "r12.trace"
    with Helper(policy) as helper, SlowToDie() as first, SlowToDie() as second:
        job, other = (_start_with(helper, stranger) for stranger in (first, second))
        (helper.cgroup / f"job-{job.handle}" / "cgroup.freeze").write_text("1")
        command = ["strace", "-qq", "-o", str(trace), "-e", "trace=/nanosleep|poll|select"]
        with subprocess.Popen([*command, "-p", str(helper.process.pid)]) as strace:
            wait_until("it is traced", lambda: "TracerPid:\t0" not in _text(f"/proc/{helper.process.pid}/status"))
            for each in (job, other):
                assert helper.request(Type.KILL, handle=each.handle).type is Type.DONE
            wait_until("the strangers are killed", lambda: first.is_dying() and second.is_dying())
            wait_until("the jobs are reaped", lambda: process_usage(helper.process.pid).children == 0)
            wait_until("it waits", lambda: _call(helper) == _EPOLL_WAIT)
            first.let_go()
            assert helper.finish(job).facts["killed"] == 1
            assert not (helper.cgroup / f"job-{job.handle}").exists()
            helper.sock.close()
            wait_until("it polls for its own end", lambda: _call(helper) == _POLL)
            second.let_go()
            assert helper.end()[0] == 0
            strace.wait(10)
        other.close()
    calls = trace.read_text()
    # Of the loop, whose wait ends at a tick otherwise; of the helper's own end, which polls nothing but that.
    assert re.search(r"epoll_wait\(\d+, \[.*EPOLLPRI", calls), calls
    assert re.search(r"poll\(\[\{fd=\d+, events=POLLPRI\}\].*revents=POLLPRI", calls), calls
    assert "nanosleep" not in calls
    assert calls.count("\n") < 40, "a busy loop"


def _start_with(helper: Helper, stranger: SlowToDie) -> Job:
    """A job whose cgroup has a stranger in it."""
    job = helper.start("sleep", "1000")
    (helper.cgroup / f"job-{job.handle}" / "cgroup.procs").write_text(str(stranger.pid))
    return job


def _call(helper: Helper) -> str:
    """The number of the system call that it sleeps in."""
    return _text(f"/proc/{helper.process.pid}/syscall").split()[0]


def _text(path: str) -> str:
    return Path(path).read_text()


# R13


def test_r13_a_thousand_orphans_are_reaped_by_the_jobs_init(policy: Path) -> None:
    code = """
import os, time
for _ in range(1000):
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)  # its parent may be gone: then it is an orphan
        os._exit(0)
    os.wait()
end = time.monotonic() + 20
while time.monotonic() < end:
    left = [pid for pid in os.listdir("/proc") if pid.isdigit() and int(pid) > 2 and int(pid) != os.getpid()]
    if not left: break
print(len(left), flush=True)
"""
    with Helper(policy) as helper:
        before = process_usage(helper.process.pid)
        ended = helper.run("/usr/bin/python3", "-ISc", code)
        assert (ended.stdout, ended.stderr, ended.facts["exit_code"]) == (b"0\n", b"", 0)
        assert process_usage(helper.process.pid) == before


def test_r13_children_of_the_helper_are_reaped_once_and_at_once(policy: Path) -> None:
    """Twenty that end together, while it is stopped; no zombie is left and none is waited for twice."""
    with Helper(policy) as helper:
        script = "trap 'exit {}' TERM; echo up; while :; do sleep 0.01; done"
        jobs = [helper.start("sh", "-c", script.format(number)) for number in range(20)]
        assert {read_line(job.stdout) for job in jobs} == {b"up\n"}
        mains = [helper.host_pids(job)[1] for job in jobs]
        helper.process.send_signal(signal.SIGSTOP)
        try:
            for pid in mains:
                os.kill(pid, signal.SIGTERM)
            wait_until("all have ended", lambda: process_usage(helper.process.pid).zombies == 20)
        finally:
            helper.process.send_signal(signal.SIGCONT)
        assert [helper.finish(job).facts["exit_code"] for job in jobs] == list(range(20))
        assert process_usage(helper.process.pid).children == 0


def test_r13_a_pid_that_is_used_again_is_not_hit(policy: Path) -> None:
    """The job's init is a zombie while the helper is stopped; its pid can't be another's. After that, no handle is."""
    with Helper(policy) as helper:
        job = helper.start("true")
        facts = helper.exited(job)
        assert facts["exit_code"] == 0
        # Ended, not released: its pid is free for others. Neither verb may reach whoever has it now.
        for kind, fields in ((Type.SIGNAL, {"signal": 9}), (Type.KILL, {})):
            message = helper.request(kind, handle=job.handle, **fields)
            assert (message.type, message.fields["stage"]) == (Type.ERROR, Stage.NO_SUCH_JOB)
        fds = [os.readlink(path) for path in Path(f"/proc/{helper.process.pid}/fd").iterdir()]
        assert fds.count("anon_inode:[pidfd]") == 1  # of the process that made its socket
        helper.finish(job)
