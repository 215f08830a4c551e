"""Each state of a job in the helper's table, held there as long as a test needs, and what requests find in it.

A frozen cgroup holds a job: its init is born in it and does not run, so the job is STARTING, until it is killed.
"""

import errno
import fcntl
import os
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.checkout import ROOT
from support.helper_copy import helper_copy
from support.helper_driver import TAG, Helper, Job
from support.helper_startup import helper_command, startup_outcome
from support.policies import own_uids, policy_text, write_policy
from support.process_usage import limit_fds, process_usage
from support.processes import alive
from support.wait import wait_until

from helper import cgroup, jobs, spawn
from helper.link import Events
from helper.policy import Refusal
from helper.wire import Message, Stage, Type

pytestmark = pytest.mark.usefixtures("as_root")


@contextmanager
def _starting(helper: Helper) -> Iterator[int]:
    """A START, with 7 as its request id and 1 as its handle, whose init does not run: the init's pid."""
    (helper.cgroup / "cgroup.freeze").write_text("1")
    helper.send_start("sleep", "100")
    procs = helper.cgroup / "job-1" / "cgroup.procs"
    wait_until("its init is there", lambda: procs.exists() and procs.read_text())
    yield int(procs.read_text())


def _next(helper: Helper) -> tuple[Type, int, dict[str, Any]]:
    message, fds = helper.receive()
    assert not fds
    return message.type, message.request_id, message.fields


def _gone(helper: Helper, text: str, number: int = errno.ECANCELED) -> None:
    """The START is answered, and nothing of it is left."""
    kind, request_id, fields = _next(helper)
    assert (kind, request_id, fields["stage"], fields["errno"]) == (Type.ERROR, 7, Stage.CLONE, number)
    assert text in fields["text"][0].decode()
    assert not (helper.cgroup / "job-1").exists()
    (helper.cgroup / "cgroup.freeze").write_text("0")
    job = helper.start("true")
    assert job.handle == 2
    helper.finish(job)


# STARTING


def test_a_start_is_cancelled_by_its_request_id_and_once(policy: Path) -> None:
    with Helper(policy) as helper, _starting(helper) as init:
        assert helper.request(Type.CANCEL, 8, start_id=9).fields["stage"] == Stage.NO_SUCH_JOB
        assert alive(init)
        os.kill(helper.process.pid, signal.SIGSTOP)  # both are there: requests come first in a turn, then ends
        helper.send(Type.CANCEL, 9, start_id=7)
        helper.send(Type.CANCEL, 10, start_id=7)
        os.kill(helper.process.pid, signal.SIGCONT)
        assert _next(helper)[:2] == (Type.DONE, 9)
        kind, request_id, fields = _next(helper)
        assert (kind, request_id, fields["stage"]) == (Type.ERROR, 10, Stage.NO_SUCH_JOB)
        _gone(helper, "the start was ended before the command ran: it was cancelled")


def test_a_start_is_killed_by_its_handle_and_once(policy: Path) -> None:
    with Helper(policy) as helper, _starting(helper):
        for kind, fields in ((Type.SIGNAL, {"handle": 1, "signal": 15}), (Type.KILL, {"handle": 2})):
            assert helper.request(kind, 8, **fields).fields["stage"] == Stage.NO_SUCH_JOB
        os.kill(helper.process.pid, signal.SIGSTOP)
        helper.send(Type.KILL, 9, handle=1)
        helper.send(Type.KILL, 10, handle=1)
        os.kill(helper.process.pid, signal.SIGCONT)
        assert _next(helper)[:2] == (Type.DONE, 9)
        assert _next(helper)[:2] == (Type.ERROR, 10)
        _gone(helper, "it was killed")


def test_a_start_of_an_api_that_has_gone_is_ended_and_once(policy: Path) -> None:
    with Helper(policy) as helper, _starting(helper):
        os.kill(helper.process.pid, signal.SIGSTOP)
        helper.send(Type.HELLO, 9)
        helper.send(Type.HELLO, 10)
        os.kill(helper.process.pid, signal.SIGCONT)
        for request_id in (9, 10):
            kind, answered, fields = _next(helper)
            assert (kind, answered, fields["live_jobs"]) == (Type.WELCOME, request_id, 0)
        _gone(helper, "the api that asked has gone")


def test_a_start_whose_init_dies_says_so(policy: Path) -> None:
    with Helper(policy) as helper, _starting(helper) as init:
        os.kill(init, signal.SIGKILL)
        _gone(helper, "the start failed at clone: it died before exec, perhaps of too little memory", errno.EIO)


def test_a_start_that_hangs_before_exec_has_a_deadline(policy: Path, place: Path) -> None:
    with Helper(policy, code=helper_copy(place, "hasty clone", START_S=0.5)) as helper, _starting(helper):
        _gone(helper, "0 s were not enough", errno.ETIMEDOUT)


@pytest.mark.parametrize("value", ["{all_pids}", "nonsense"])
def test_a_jobs_limits_are_written_before_it_starts(place: Path, value: str) -> None:
    """In files that each cgroup has, for a machine without controllers."""
    code = helper_copy(place, f"limits {value}")
    path = code / "helper" / "cgroup.toml"
    path.write_text(f'[limits]\n"cgroup.max.depth" = ["pids", "{value}"]\n[facts]\nmemory_peak_bytes = ["none"]\n')
    path = code / "helper" / "cgroup.py"
    text, result = path.read_text(), '        return set(read(self.fd, "cgroup.subtree_control").split())\n'
    assert text.count(result) == 1
    path.write_text(text.replace(result, '        return {"pids"}\n'))
    rules = f'allow_missing_controllers = ["cpu", "memory", "io"]\nmax_jobs = 1\n{own_uids(1)}'
    with Helper(write_policy(place, "written", rules), code=code) as helper:
        if value == "nonsense":
            before = process_usage(helper.process.pid)
            for _ in range(2):  # it has given its uid back
                stage, number, said = helper.start_error("true")
                assert (stage, number, said) == (Stage.CGROUP, errno.EINVAL, "cgroup: Invalid argument")
            assert not list(helper.cgroup.glob("job-*"))
            assert process_usage(helper.process.pid) == before
            return
        verdict, _ = helper.request_start("true", kind=Type.CHECK, pids=41)
        assert b"cgroup.max.depth 42" in verdict.fields["rows"]
        job = helper.start("sleep", "100", pids=41)
        assert (helper.cgroup / "job-1" / "cgroup.max.depth").read_text() == "42\n"
        job.close()


# RUNNING


def _order(**limits: int) -> Any:
    return SimpleNamespace(uid=5, limits={"timeout_ms": 0} | limits)


def test_a_job_of_the_table_has_what_it_was_ordered() -> None:
    before = time.monotonic()
    job = jobs.Job(3, 4, TAG, _order(timeout_ms=7500), None)
    assert (job.handle, job.request_id, job.tag, job.uid, job.timeout_s) == (3, 4, TAG, 5, 7.5)
    assert before + jobs.START_S <= job.deadline <= time.monotonic() + jobs.START_S


@pytest.mark.parametrize(
    ("kind", "fields"), [(Type.SIGNAL, {"signal": 15}), (Type.SIGNAL, {"signal": 19}), (Type.KILL, {})]
)
def test_a_job_that_is_dead_and_not_yet_reaped_is_still_there(policy: Path, kind: Type, fields: dict[str, int]) -> None:
    """The request and the end wait for the helper at one turn, in which the request comes first."""
    with Helper(policy) as helper:
        job = helper.start("sleep", "100")
        init = helper.host_pids(job)[0]
        helper.process.send_signal(signal.SIGSTOP)
        helper.send(kind, 2, handle=job.handle, **fields)
        os.kill(init, signal.SIGKILL)
        wait_until("it is dead", lambda: not alive(init))
        helper.process.send_signal(signal.SIGCONT)
        assert _next(helper)[:2] == (Type.DONE, 2)
        assert helper.finish(job).facts["signal"] == signal.SIGKILL


@pytest.mark.parametrize("number", [1, 64])
def test_the_first_and_the_last_signal(policy: Path, number: int) -> None:
    with Helper(policy) as helper:
        job = helper.start("sleep", "100")
        assert helper.request(Type.SIGNAL, handle=job.handle, signal=number).type is Type.DONE
        assert helper.finish(job).facts["signal"] == number


def test_what_a_job_used_is_told(policy: Path) -> None:
    with Helper(policy) as helper:
        job = helper.start("sh", "-c", "head -c 20M /dev/zero | sha256sum; head -c 200M /dev/zero | tail -c 1")
        message: Message | None = None
        while message is None or message.type is not Type.EXITED:
            message, _ = helper.receive()
        facts = message.fields
        assert message.request_id == 0
        assert (facts["exit_code"], facts["signal"], facts["killed"], facts["timed_out"]) == (0, 0, 0, 0)
        assert facts["max_rss_bytes"] > 1 << 20
        assert facts["max_rss_bytes"] % 1024 == 0
        for name in ("user_usec", "system_usec"):
            assert 1000 < facts[name] < 60_000_000
        job.close()


# DYING


def test_what_comes_into_a_jobs_cgroup_from_outside_ends_with_it_and_soon(policy: Path) -> None:
    """The helper waits for the kernel's event, not for its own tick of a quarter of a second."""
    times = []
    with Helper(policy) as helper:
        for _ in range(5):
            job = helper.start("sleep", "100")
            with subprocess.Popen(["sleep", "100"]) as stranger:
                (helper.cgroup / f"job-{job.handle}" / "cgroup.procs").write_text(str(stranger.pid))
                began = time.monotonic()
                assert helper.request(Type.KILL, handle=job.handle).type is Type.DONE
                helper.exited(job)
                times.append(time.monotonic() - began)
                assert stranger.wait(10) == -signal.SIGKILL
            helper.finish(job)
    assert min(times) < 0.2


def test_a_cgroup_that_cannot_be_removed_yet_is_tried_again(policy: Path) -> None:
    with Helper(policy) as helper:
        job = helper.start("sleep", "100")
        below = helper.cgroup / f"job-{job.handle}" / "below"
        below.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", str(below)], check=True)  # rmdir: EBUSY
        try:
            assert helper.request(Type.KILL, 8, handle=job.handle).type is Type.DONE
            wait_until("it is dead", lambda: not (below.parent / "cgroup.procs").read_text())
            # It has ended only when all is gone; others do not wait for it.
            assert helper.run("sleep", "0.4").facts["exit_code"] == 0
            assert not [event for event in helper.events if event.fields["handle"] == job.handle]
            assert helper.request(Type.KILL, handle=job.handle).fields["stage"] == Stage.NO_SUCH_JOB
        finally:
            subprocess.run(["umount", str(below)], check=True)
        assert helper.finish(job).facts["killed"] == 1
        assert not below.parent.exists()


# ENDED


def test_fds_of_each_state_are_given_back(policy: Path) -> None:
    with Helper(policy) as helper:
        helper.run("true")
        before = process_usage(helper.process.pid).fds
        ended: list[Job] = []
        for number in range(1, 4):
            job = helper.start("true")
            helper.exited(job)
            ended.append(job)
            # Of one that has ended: what is handed over, stdout, stderr and its cgroup.
            assert process_usage(helper.process.pid).fds == before + 3 * number
        live = helper.start("sleep", "100")
        # And its pidfd, its result and its cgroup's events.
        assert process_usage(helper.process.pid).fds == before + 3 * len(ended) + 6
        helper.request(Type.KILL, handle=live.handle)
        for job in (*ended, live):
            helper.finish(job)
        assert helper.start_error("/no/such")[0] is Stage.EXEC
        assert process_usage(helper.process.pid).fds == before


def test_its_end_takes_no_fd_that_it_has_not(policy: Path) -> None:
    """At its limit of fds it closes those of its jobs, and ends all by its cgroup."""
    with Helper(policy) as helper:
        jobs_of = [helper.start("sleep", "100") for _ in range(2)]
        pids = [pid for job in jobs_of for pid in helper.host_pids(job)]
        taken = {int(name) for name in os.listdir(f"/proc/{helper.process.pid}/fd")}
        limit_fds(helper.process.pid, min({*range(len(taken) + 1)} - taken))
        helper.sock.close()
        assert helper.end() == (0, "")
        assert not helper.cgroup.exists()
        wait_until("all have ended", lambda: not [pid for pid in pids if alive(pid)])
        for job in jobs_of:
            job.close()


# The helper itself


def test_a_check_takes_no_uid_and_tells_of_one_pipe(place: Path) -> None:
    with Helper(write_policy(place, "one", policy_text(f"max_jobs = 1\n{own_uids(1)}"))) as helper:
        for merged in (1, 0, 1):
            verdict, _ = helper.request_start("true", "", kind=Type.CHECK, stdio=merged)
            assert (b"merge_stderr 1" in verdict.fields["rows"]) == bool(merged)
        names = [row.partition(b" ")[0] for row in verdict.fields["rows"]]
        assert len(set(names)) == len(names)
        assert helper.run("true").facts["exit_code"] == 0


def test_starts_are_counted_for_a_second(place: Path) -> None:
    with Helper(write_policy(place, "one a second", policy_text("starts_per_second = 1\n"))) as helper:
        for _ in range(5):  # on a busy machine one may take longer
            assert _started(helper)
            began = time.monotonic()
            wait_until("it may start another", lambda: _started(helper))
            took = time.monotonic() - began
            assert took > 0.9
            if took < 1.9:
                return
            wait_until("it may start another", lambda: _started(helper, "/no/such"))
    raise AssertionError("a start is refused for two seconds after another")


def _started(helper: Helper, name: str = "true") -> bool:
    answer, fds = helper.request_start(name)
    for fd in fds:
        os.close(fd)
    return not (answer.type is Type.ERROR and answer.fields["stage"] == Stage.CAPACITY)


def test_sigterm_is_heard_once(policy: Path) -> None:
    """What woke the helper is read, else it would turn for ever while the server drains."""
    with Helper(policy) as helper:
        proc = Path(f"/proc/{helper.process.pid}/fd")
        links = {path: os.readlink(path) for path in proc.iterdir()}
        (both,) = {link for link in links.values() if link.startswith("pipe:") and [*links.values()].count(link) == 2}
        path = min(path for path, link in links.items() if link == both)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        helper.process.send_signal(signal.SIGTERM)
        assert helper.request(Type.KILL, handle=9).type is Type.ERROR
        wait_until("it is read", lambda: not struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0])
        os.close(fd)
        assert helper.run("true").facts["exit_code"] == 0  # and it goes on


def test_a_source_that_is_not_there_is_found_at_the_start(place: Path) -> None:
    """Its disk would be part of a job's limits."""
    rules = write_policy(place, "no source", policy_text('[profile.host]\nwritable = ["/no/such:/mnt"]\n'))
    status, said = startup_outcome(*helper_command(ROOT, rules))
    assert (status, "/no/such" in said) == (125, True)


@pytest.mark.parametrize("cloned", [False, True])
def test_a_start_that_fails_once_something_was_cloned_is_fatal(
    bare_cgroup: Path, monkeypatch: pytest.MonkeyPatch, cloned: bool
) -> None:
    """Else what was cloned would run on, in no table."""
    base = cgroup.Base(str(bare_cgroup))
    given_back: list[int] = []
    living: list[subprocess.Popen[bytes]] = []

    def spawning(_: object, cgroup_fd: int, init: list[int]) -> Any:
        if cloned:
            living.append(subprocess.Popen(["sleep", "100"]))
            cgroup.write(cgroup_fd, "cgroup.procs", str(living[0].pid))
        raise OSError("without a number")

    monkeypatch.setattr(spawn, "spawn", spawning)
    uids, order = SimpleNamespace(give_back=given_back.append), _order()
    order.rows = []
    table = jobs.Jobs(base, uids, Events(), SimpleNamespace())  # type: ignore[arg-type]
    before = process_usage(os.getpid()).fds
    with pytest.raises(OSError if cloned else Refusal) as raised:
        table.start(jobs.Job(1, 7, TAG, order, None))
    assert raised.value.args[:2] == (("without a number",) if cloned else (Stage.CLONE, errno.EIO))
    assert (given_back, table.table, process_usage(os.getpid()).fds) == ([5], {}, before)
    cgroup.end(base.fd, base.path)
    os.close(base.fd)
    for process in living:
        assert process.wait(10) == -signal.SIGKILL
