"""The table of jobs, and the life of each: started, running, dying, ended, forgotten."""

import errno
import os
import select
import time
from contextlib import suppress
from enum import Enum
from signal import SIGKILL, SIGTERM, pidfd_send_signal

from helper import cgroup, init, spawn, syscalls
from helper.link import Events, Link
from helper.policy import Refusal
from helper.uids import Uids
from helper.wire import Stage, Type

START_S = 20.0  # from clone to exec; shorter than the api waits for an answer
GRACE_S = 10.0  # from a timeout's SIGTERM to its SIGKILL


class JobState(Enum):
    """STARTING: cloned, exec not yet seen. DYING: its init is reaped, its cgroup is not yet empty.

    ENDED: EXITED was made; waits for RELEASE.
    """

    STARTING, RUNNING, DYING, ENDED = range(4)


class Job:
    """One job of the table, or a further command in one. It owns `fds`, by name: cgroup, events and those of spawn."""

    def __init__(self, handle: int, request_id: int, tag: bytes, order: spawn.Order, parent: "Job | None") -> None:
        """`parent`: the job in whose sandbox this is a further command."""
        self.handle, self.request_id, self.tag, self.uid = handle, request_id, tag, order.uid
        self.order, self.parent, self.path = order, parent, ""
        self.timeout_s = order.limits["timeout_ms"] / 1000
        self.deadline = time.monotonic() + START_S  # of its state
        self.state, self.pid = JobState.STARTING, -1
        self.fds: dict[str, int] = {}
        self.failure: Refusal | None = None  # why it never ran
        self.facts = {"handle": handle, "killed": 0, "timed_out": 0}  # EXITED's fields

    def handed(self) -> tuple[int, ...]:
        """The fds that the api gets."""
        return tuple(self.fds[name] for name in ("stdout", "stderr", "cgroup", "stdin") if name in self.fds)


class Jobs:
    """Owns the table. What happens to a job is sent over `link`."""

    def __init__(self, base: cgroup.Base, uids: Uids, events: Events, link: Link) -> None:
        self._base, self._uids, self._events, self._link = base, uids, events, link
        self._init = spawn.open_init()
        self.table: dict[int, Job] = {}
        self._dying: list[Job] = []
        self._look_at = 0.0  # when deadlines are to be looked at

    def live(self, handle: int, *states: JobState) -> Job:
        """The job of a handle that is in one of these states; raises Refusal."""
        job = self.table.get(handle)
        if job is None or job.state not in states or job.failure:
            raise Refusal(Stage.NO_SUCH_JOB, errno.ESRCH, "no such running job")
        return job

    def start(self, job: Job) -> None:
        """Its cgroup with all limits, then its init in it. Raises Refusal, with nothing left; OSError is fatal."""
        stage = Stage.CGROUP
        job.path = self._base.job_path(job.handle, job.parent.handle if job.parent else 0)
        try:
            job.fds["cgroup"] = cgroup.create(job.path)
            job.fds["events"] = os.open("cgroup.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=job.fds["cgroup"])
            for file, value in job.order.rows:
                cgroup.write(job.fds["cgroup"], file, value)
            stage = Stage.CLONE
            job.pid, fds = spawn.spawn(job.order, job.fds["cgroup"], self._init)
        except OSError as error:
            self.forget(job)
            if not cgroup.remove(job.path):  # something was cloned into it: fatal
                raise
            raise Refusal(stage, error.errno or errno.EIO, f"{stage.name.lower()}: {error.strerror}") from None
        job.fds |= fds
        job.order = job.order._replace(argv=[], env=[])  # a user's, and long: the rest is for commands that join
        self.table[job.handle] = job
        self._events.watch(fds["status"], 0, lambda _: self._read_status(job))
        self._events.watch(fds["pidfd"], select.POLLIN, lambda _: self._reap(job))

    def turn(self) -> None:
        """What is due: removals of cgroups that were not empty, deadlines."""
        for job in sorted(self._dying, key=lambda job: not job.parent):  # a job waits for its further commands' end
            with suppress(OSError):  # such as no fd free: tried again at the next turn
                self._finish(job)
        if (now := time.monotonic()) >= self._look_at:
            self._look_at = now + 0.25
            for job in [job for job in self.table.values() if now >= job.deadline]:
                self._expire(job)

    def kill_job(self, job: Job) -> None:
        """Ends all of it: _finish sees to what else is in its cgroup."""
        job.facts["killed"] = 1
        self._kill_init(job)

    def _kill_init(self, job: Job) -> None:
        """SIGKILL to the init, with which its namespace ends. Dead or not: it is ours to reap, so this finds it.

        That of a further command has no namespace: it kills the command, which it alone can reap, and then ends. A
        command that nobody reaps would keep the job's namespace from its end.
        """
        with suppress(BlockingIOError):  # the job's uid has too many signals pending
            if job.parent:
                return syscalls.pidfd_queue_signal(job.fds["pidfd"], init.CARRIER, SIGKILL)
        pidfd_send_signal(job.fds["pidfd"], SIGKILL)

    def give_up(self, job: Job, number: int, cause: str) -> None:
        """Ends a job that is STARTING; its START is answered with ERROR once it is gone."""
        stage = Stage.EXEC if _said(job) == init.EXEC_NEXT else Stage.CLONE
        job.failure = Refusal(stage, number, f"the start was ended before the command ran: {cause}")
        self.kill_job(job)

    def forget(self, job: Job) -> None:
        self.close_fds(job, *job.fds)
        if not job.parent:  # else the uid is the parent's
            self._uids.give_back(job.uid)
        self.table.pop(job.handle, None)

    def close_fds(self, job: Job, *names: str) -> None:
        """Those of these names that are open."""
        for name in job.fds.keys() & names:
            fd = job.fds.pop(name)
            self._events.unwatch(fd)
            os.closerange(fd, fd + 1)  # whatever close(2) says, it is closed

    def _read_status(self, job: Job) -> None:
        """The status pipe has ended: after E alone by a successful exec, the only thing that makes a job run."""
        status = _said(job)
        self.close_fds(job, "status")
        if job.failure:
            return
        if status == init.EXEC_NEXT:
            if "terminal" in job.fds:
                try:
                    self.close_fds(job, "stdout")
                    job.fds["stdout"] = spawn.receive_terminal(job.fds.pop("terminal"))
                    job.fds["stdin"] = os.dup(job.fds["stdout"])
                except (OSError, IndexError):
                    job.failure = Refusal(Stage.CLONE, errno.EMFILE, "no fd was free for the job's terminal")
                    return self.kill_job(job)
            job.state, job.deadline = JobState.RUNNING, time.monotonic() + job.timeout_s
            self._link.send(Type.STARTED, job.request_id, job.handed(), handle=job.handle, uid=job.uid)
            return
        report = status.removeprefix(init.EXEC_NEXT)
        whole = len(report) == init.STATUS.size  # else the init died without a word
        number, error = init.STATUS.unpack(report) if whole else (Stage.CLONE, errno.EIO)
        cause = os.strerror(error) if whole else "it died before exec, perhaps of too little memory"
        job.failure = Refusal(Stage(number), error, f"the start failed at {Stage(number).name.lower()}: {cause}")
        self.kill_job(job)

    def _expire(self, job: Job) -> None:
        """A job beyond its deadline. One that runs gets SIGTERM, and after a grace, as another deadline, SIGKILL."""
        if job.state is JobState.STARTING and not job.failure:
            return self.give_up(job, errno.ETIMEDOUT, f"{START_S:.0f} s were not enough, as if a disk did not answer")
        if job.state is JobState.RUNNING:
            self._kill_init(job) if job.facts["timed_out"] else pidfd_send_signal(job.fds["pidfd"], SIGTERM)
            job.facts["timed_out"], job.deadline = 1, job.deadline + GRACE_S

    def _reap(self, job: Job) -> None:
        """The init is dead, and its namespace with it; once."""
        if "status" in job.fds:
            self._read_status(job)  # what it said last comes first
        _, _, usage = os.wait4(job.pid, 0)  # dead already: does not block
        status = int(SIGKILL)  # of an init that could not report
        with suppress(BlockingIOError):
            result = os.read(job.fds["result"], 64)
            if len(result) == init.RESULT.size:
                (status,) = init.RESULT.unpack(result)
        self.close_fds(job, "pidfd", "result")
        code = os.waitstatus_to_exitcode(status)  # a signal as a negative number
        job.facts |= {"exit_code": max(code, 0), "signal": max(-code, 0), "max_rss_bytes": usage.ru_maxrss * 1024}
        job.facts |= {"user_usec": int(usage.ru_utime * 1e6), "system_usec": int(usage.ru_stime * 1e6)}
        self._events.watch(job.fds["events"], select.POLLPRI, lambda _: None)
        job.state = JobState.DYING
        self._dying.append(job)  # finished at the end of this turn

    def _finish(self, job: Job) -> None:
        """Ends a job whose cgroup is empty; else waits for the event that cgroup.events polls."""
        if b"populated 1" in os.pread(job.fds["events"], 256, 0):  # reading rearms the event
            return cgroup.kill(job.fds["cgroup"])
        if any(other.parent is job and other.state is not JobState.ENDED for other in self.table.values()):
            return  # its cgroup goes first
        job.facts |= cgroup.facts(job.fds["cgroup"])
        if not cgroup.remove(job.path):  # passing: tried again at the next turn
            return
        self.close_fds(job, "events")
        self._dying.remove(job)
        job.state = JobState.ENDED
        if job.failure:
            self.forget(job)
            return self._link.refuse(job.request_id, job.failure)
        self._link.send(Type.EXITED, 0, **job.facts)


def _said(job: Job) -> bytes:
    """What is in the status pipe: all that it will ever say, once it has ended, whose POLLHUP is what we wait for."""
    with suppress(BlockingIOError):
        return os.read(job.fds["status"], 64)
    return b""
