"""The helper's one loop: requests from the api in, jobs' life cycles, replies and events out.

A request is looked up in PERMITTED by the connection's state; anything the table does not know, or
that does not parse, is a violation: every job is killed and the helper exits. See PROTOCOL.md.
"""

import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from signal import SIGKILL, pidfd_send_signal
from typing import Any

from helper import cgroup, spawn, wire
from helper.log import log
from helper.policy import Policy, Profile
from helper.wire import Limit, Stage, Type, WireError

MAX_QUEUE = 64  # messages towards the api beyond which no request is read
_HANDED = ("stdout", "stderr", "cgroup")  # the fds that the api gets of a job
_TICK_MS = 1000  # retries a cgroup removal that met EBUSY
_END_DEADLINE_S = 10.0  # for the kernel to end killed jobs
_PASSING = (errno.EAGAIN, errno.EINTR, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS)


class State(Enum):
    """Of the connection."""

    NEW, READY, ENDING = range(3)


# A later HELLO is a restarted api's: it is answered with the live jobs.
PERMITTED: dict[State, tuple[Type, ...]] = {
    State.NEW: (Type.HELLO,),
    State.READY: (Type.HELLO, Type.START, Type.SIGNAL, Type.KILL, Type.RELEASE, Type.SHUTDOWN),
    State.ENDING: (),
}


class Refusal(Exception):
    """An operational failure: answered with ERROR, the connection lives on."""

    def __init__(self, stage: Stage, error: int, text: str) -> None:
        super().__init__(text)
        self.stage, self.error = stage, error


class JobState(Enum):
    """STARTING: cloned, exec not yet seen. DYING: its init is reaped, its cgroup is not yet empty.

    ENDED: EXITED was made; waits for RELEASE.
    """

    STARTING, RUNNING, DYING, ENDED = range(4)


class Job:
    """One job of the table. It owns `fds`, by name: cgroup, events and those of spawn."""

    def __init__(self, handle: int, request_id: int, tag: bytes, uid: int) -> None:
        self.handle, self.request_id, self.tag, self.uid = handle, request_id, tag, uid
        self.state, self.pid = JobState.STARTING, -1
        self.fds: dict[str, int] = {}
        self.status = b""  # what the status pipe said
        self.failure: Refusal | None = None  # why it never ran
        self.killed = False
        self.facts: dict[str, int] = {}  # of EXITED
        self.exited = b""  # the EXITED datagram, kept for an api that comes later


class Monitor:
    """Owns the socket, the table of jobs and the poll set."""

    def __init__(self, sock: socket.socket, policy: Policy, base: cgroup.Base, signal_fd: int) -> None:
        self.sock, self.policy, self.base = sock, policy, base
        self.state = State.NEW
        self.jobs: dict[int, Job] = {}
        # Datagram, its fds, and the job when it is a STARTED.
        self.queue: deque[tuple[bytes, Sequence[int], Job | None]] = deque()
        self.next_handle, self.next_uid = 1, 0
        self.starts: deque[float] = deque([-1.0] * policy.starts_per_second, policy.starts_per_second)
        self.disks = {name: self._disks(profile) for name, profile in policy.profiles.items()}
        with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
            self.last_capability = int(file.read())
        self.poll, self.callbacks = select.poll(), dict[int, Callable[[], None]]()
        self._watch(signal_fd, select.POLLIN, self._end)
        self._watch(sock.fileno(), select.POLLIN, self._receive)

    def _disks(self, profile: Profile) -> list[str]:
        writable = [bind.partition(":")[0] for bind in profile.writable]
        return cgroup.disks(self.policy.io_devices or [profile.root, *writable])

    # The loop

    def run(self) -> None:
        """Serves until EOF, SIGTERM or SHUTDOWN. Raises WireError at a violation. Ends every job."""
        try:
            while self.state is not State.ENDING:
                # A peer that does not read its replies is not read from; jobs are reaped all the same.
                read = 0 if len(self.queue) >= MAX_QUEUE else select.POLLIN
                self.poll.modify(self.sock.fileno(), read | (select.POLLOUT if self.queue else 0))
                self._turn(_TICK_MS)
        finally:
            self._end_all()

    def _turn(self, timeout_ms: int) -> None:
        for fd, event in self.poll.poll(timeout_ms):
            if event == select.POLLOUT:
                self._flush()
            elif fd in self.callbacks:  # not unwatched by one before it
                self.callbacks[fd]()
        for job in [job for job in self.jobs.values() if job.state is JobState.DYING]:
            self._finish(job)

    def _watch(self, fd: int, events: int, callback: Callable[[], None]) -> None:
        self.poll.register(fd, events)
        self.callbacks[fd] = callback

    def _unwatch(self, fd: int) -> None:
        if self.callbacks.pop(fd, None):
            self.poll.unregister(fd)

    def _close(self, job: Job, *names: str) -> None:
        for name in job.fds.keys() & names:
            self._unwatch(job.fds[name])
            os.close(job.fds.pop(name))

    def _end(self) -> None:
        self.state = State.ENDING

    def _end_all(self) -> None:
        """Kills every job, waits for the kernel to end it, removes every cgroup."""
        self._end()
        self._unwatch(self.sock.fileno())
        for job in self.jobs.values():
            if job.state is not JobState.ENDED:
                self._kill_job(job)
        deadline = time.monotonic() + _END_DEADLINE_S
        while any(job.state is not JobState.ENDED for job in self.jobs.values()) and time.monotonic() < deadline:
            self._turn(100)
        self.base.remove()

    # Messages

    def _receive(self) -> None:
        """One datagram. No ancillary space is offered, so the kernel discards any fd that was passed."""
        self._flush()
        try:
            datagram, _, flags, _ = self.sock.recvmsg(wire.MAX_MESSAGE + 1, 0, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        except ConnectionError:
            datagram, flags = b"", 0
        if not datagram:  # EOF and an empty datagram look alike; neither is a message, both end us
            return self._end()
        message = wire.unpack(datagram)
        if flags & socket.MSG_TRUNC or message.fd_count or message.type not in PERMITTED[self.state]:
            raise WireError(f"{message.type.name} in state {self.state.name}, too long or with fds")
        handler: Callable[..., None] = getattr(self, f"_on_{message.type.name.lower()}")
        try:
            handler(message.request_id, **message.fields)
        except Refusal as refusal:
            self._refuse(message.request_id, refusal)

    def _send(self, kind: Type, request_id: int, **fields: Any) -> None:
        self._queue(wire.pack(kind, request_id, **fields))

    def _refuse(self, request_id: int, refusal: Refusal) -> None:
        text = str(refusal).encode("utf-8", "replace")[: wire.MAX_TEXT]
        self._send(Type.ERROR, request_id, stage=refusal.stage, errno=refusal.error, text=text)

    def _queue(self, datagram: bytes, fds: Sequence[int] = (), started: Job | None = None) -> None:
        self.queue.append((datagram, fds, started))
        self._flush()

    def _flush(self) -> None:
        while self.queue:
            datagram, fds, started = self.queue[0]
            try:
                socket.send_fds(self.sock, [datagram], fds, socket.MSG_DONTWAIT)
            except OSError as error:
                # The passing ones are tried again at the next turn; else the peer is gone.
                return None if error.errno in _PASSING else self._end()
            self.queue.popleft()
            if started:  # only the api holds a job's stdin, or the job would never see its end
                self._close(started, "stdin")

    # Handlers, one for each request. Each is safe with a hostile api because of what it takes:

    # Nothing. It tells about jobs that this same socket's holder started.
    def _on_hello(self, request_id: int) -> None:
        self.state = State.READY
        self.queue.clear()  # of an api before: it is gone, and its requests with it
        known = [job for job in self.jobs.values() if job.state is not JobState.STARTING and not job.failure]
        missing = ",".join(name for name in cgroup.CONTROLLERS if name not in self.base.controllers).encode()
        counts = {"live_jobs": len(known), "max_jobs": self.policy.max_jobs}
        profiles = ",".join(self.policy.profiles).encode()
        self._send(Type.WELCOME, request_id, missing_controllers=missing, profiles=profiles, **counts)
        for job in known:
            fds = [job.fds[name] for name in _HANDED]
            self._queue(wire.pack(Type.ADOPT, request_id, len(fds), handle=job.handle, uid=job.uid, tag=job.tag), fds)
        for job in known:
            if job.exited:
                self._queue(job.exited)

    # argv, env, a directory and a profile's name, for a process without privileges; uid, cgroup,
    # mounts and maxima are decided here. Counts and sizes are the wire's.
    def _on_start(self, request_id: int, **fields: Any) -> None:
        start = wire.Start(**fields)
        profile, limits = self._decide(start)
        job = Job(self.next_handle, request_id, start.tag, self._fresh_uid())
        self.next_handle += 1
        self.starts.append(time.monotonic())
        stage = Stage.LIMIT
        try:
            rows = self.base.rows(limits, self.policy.allow_missing_controllers, self.disks[profile.name])
            stage = Stage.CGROUP
            job.fds["cgroup"] = self.base.create(job.handle)
            for file, value in rows:
                cgroup.write(job.fds["cgroup"], file, value)
            stage = Stage.CLONE
            job.pid, fds = spawn.spawn(start, profile, job.uid, limits, job.fds["cgroup"])
        except OSError as error:
            self._close(job, *job.fds)
            cgroup.remove(self.base.job_path(job.handle))
            raise Refusal(stage, error.errno or errno.EIO, f"{stage.name.lower()}: {error.strerror}") from None
        job.fds |= fds
        self.jobs[job.handle] = job
        self._watch(fds["status"], select.POLLIN, lambda: self._read_status(job))
        self._watch(fds["pidfd"], select.POLLIN, lambda: self._reap(job))

    # A handle of the table and a signal number; it goes through the pidfd of the job's init.
    def _on_signal(self, request_id: int, handle: int, signal: int) -> None:
        if not 1 <= signal <= wire.MAX_SIGNAL:
            raise WireError(f"signal {signal}")
        with suppress(ProcessLookupError):  # just dead: EXITED is on its way
            pidfd_send_signal(self._running(handle).fds["pidfd"], signal)
        self._send(Type.DONE, request_id)

    # A handle of the table; it goes through its cgroup's fd.
    def _on_kill(self, request_id: int, handle: int) -> None:
        self._kill_job(self._running(handle))
        self._send(Type.DONE, request_id)

    # A handle whose EXITED was sent: it frees nothing but memory and fds of a dead job.
    def _on_release(self, request_id: int, handle: int) -> None:
        job = self.jobs.get(handle)
        if job is None:
            raise Refusal(Stage.NO_SUCH_JOB, errno.ESRCH, "no such job")
        if job.state is not JobState.ENDED or any(row[0] is job.exited for row in self.queue):
            raise WireError("RELEASE before EXITED")
        self._forget(job)
        self._send(Type.DONE, request_id)

    # Nothing.
    def _on_shutdown(self, request_id: int) -> None:
        self._send(Type.DONE, request_id)
        self._end()

    def _running(self, handle: int) -> Job:
        job = self.jobs.get(handle)
        if job is None or job.state is not JobState.RUNNING:
            raise Refusal(Stage.NO_SUCH_JOB, errno.ESRCH, "no such running job")
        return job

    # What a START may have

    def _decide(self, start: wire.Start) -> tuple[Profile, dict[Limit, int]]:
        """The policy's verdict on a START. Raises Refusal, or WireError where no api of ours would ask."""
        policy = self.policy
        names = [entry.partition(b"=")[0] for entry in start.env if b"=" in entry]
        if not start.argv or not start.argv[0] or not all(names) or len(set(names)) != len(start.env):
            raise WireError("argv is empty, or env is not a list of distinct NAME=value")
        if start.flags & ~wire.FLAG_STDIN:
            raise WireError("unknown flags")
        if len(self.jobs) >= policy.max_jobs or time.monotonic() - self.starts[0] < 1:
            bounds = f"{policy.max_jobs} jobs, {policy.starts_per_second} starts a second"
            raise Refusal(Stage.CAPACITY, errno.EAGAIN, f"the policy's bounds are reached: {bounds}")
        profile = policy.profiles.get(start.profile.decode("utf-8", "replace") or next(iter(policy.profiles)))
        if profile is None:
            raise Refusal(Stage.POLICY, errno.EINVAL, f"the policy's profiles are: {', '.join(policy.profiles)}")
        if start.cwd and (not start.cwd.startswith(b"/") or (start.cwd + b"/").startswith(b"/proc/")):
            raise Refusal(Stage.CHDIR, errno.EINVAL, "the working directory must be absolute and outside /proc")
        asked = start.limits
        if Limit.MEMORY_BYTES in asked:
            asked.setdefault(Limit.MEMORY_HIGH_BYTES, asked[Limit.MEMORY_BYTES] * 3 // 4)
        for limit, value in asked.items():
            if not 1 <= value <= policy.maximum[limit]:
                text = f"{limit.name.lower()} {value} is not from 1 to {policy.maximum[limit]}, the policy's maximum"
                raise Refusal(Stage.LIMIT, errno.EINVAL, text)
        return profile, policy.default | asked

    def _fresh_uid(self) -> int:
        """The next uid of the range that no job of the table has; the range holds max_jobs."""
        used = {job.uid for job in self.jobs.values()}
        while True:
            uid = self.policy.uid_first + self.next_uid % self.policy.uid_count
            self.next_uid += 1
            if uid not in used:
                return int(uid)

    # A job's life

    def _read_status(self, job: Job) -> None:
        """The status pipe: EOF after E is a successful exec, the only thing that makes a job run."""
        with suppress(BlockingIOError):
            piece = os.read(job.fds["status"], 64)
            job.status += piece
            if piece and len(job.status) < 64:
                return
        self._close(job, "status")
        if job.status == spawn.EXEC_NEXT:
            job.state = JobState.RUNNING
            fds = [job.fds[name] for name in (*_HANDED, "stdin") if name in job.fds]
            datagram = wire.pack(Type.STARTED, job.request_id, len(fds), handle=job.handle, uid=job.uid)
            return self._queue(datagram, fds, job)
        job.failure = Refusal(Stage.CLONE, errno.EIO, "the job's init died before exec")
        report = job.status.removeprefix(spawn.EXEC_NEXT)
        if len(report) == spawn.STATUS.size:
            number, error = spawn.STATUS.unpack(report)
            text = f"the start failed at {Stage(number).name.lower()}: {os.strerror(error)}"
            job.failure = Refusal(Stage(number), error, text)
        self._kill_job(job)

    def _kill_job(self, job: Job) -> None:
        job.killed = True
        cgroup.kill(job.fds["cgroup"])

    def _reap(self, job: Job) -> None:
        """The init is dead, and its namespace with it; once."""
        if "status" in job.fds:
            self._read_status(job)  # what it said last comes first
        _, _, usage = os.wait4(job.pid, 0)  # dead already: does not block
        status = int(SIGKILL)  # of an init that could not report
        with suppress(BlockingIOError):
            result = os.read(job.fds["result"], 64)
            if len(result) == spawn.RESULT.size:
                (status,) = spawn.RESULT.unpack(result)
        self._close(job, "pidfd", "result")
        signaled = os.WIFSIGNALED(status)
        job.facts = {
            "exit_code": 0 if signaled else os.WEXITSTATUS(status),
            "signal": os.WTERMSIG(status) if signaled else 0,
            "user_usec": int(usage.ru_utime * 1e6),
            "system_usec": int(usage.ru_stime * 1e6),
            "max_rss_bytes": usage.ru_maxrss * 1024,
        }
        job.state = JobState.DYING  # finished at the end of this turn

    def _finish(self, job: Job) -> None:
        """Ends a job whose cgroup is empty; else waits for the event that cgroup.events polls."""
        try:
            cgroup_fd = job.fds["cgroup"]
            if "events" in job.fds:
                os.pread(job.fds["events"], 256, 0)  # rearms the event
            if cgroup.populated(cgroup_fd):
                if "events" not in job.fds:
                    cgroup.kill(cgroup_fd)
                    job.fds["events"] = os.open("cgroup.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=cgroup_fd)
                    self._watch(job.fds["events"], select.POLLPRI, lambda: None)
                return
            job.facts["cgroup_usec"] = cgroup.number(cgroup_fd, "cpu.stat", "usage_usec")
            job.facts["memory_peak_bytes"] = cgroup.number(cgroup_fd, "memory.peak")
            job.facts["oom_kills"] = cgroup.number(cgroup_fd, "memory.events", "oom_kill")
            cgroup.remove(self.base.job_path(job.handle))
        except OSError as error:
            return log(f"job {job.handle}: its cgroup is not removed yet: {error.strerror}")
        self._close(job, "events")
        job.state = JobState.ENDED
        if job.failure:
            self._refuse(job.request_id, job.failure)
            return self._forget(job)
        job.exited = wire.pack(Type.EXITED, 0, handle=job.handle, killed=job.killed, **job.facts)
        self._queue(job.exited)

    def _forget(self, job: Job) -> None:
        self._close(job, *job.fds)
        del self.jobs[job.handle]
