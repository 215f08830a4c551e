"""The helper's one loop: requests from the api in, jobs' life cycles, replies and events out.

A request is looked up in PERMITTED by the connection's state; anything the table does not know, or
that does not parse, is a violation: every job is killed and the helper exits. See PROTOCOL.md.
"""

import errno
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from helper import cgroup, confine, spawn, syscalls, wire
from helper.log import log
from helper.policy import Policy, Profile
from helper.wire import Limit, Stage, Type, WireError

MAX_QUEUE = 64  # messages towards the api beyond which no request is read
_TICK_MS = 1000  # retries a cgroup removal that met EBUSY
_END_DEADLINE_S = 10.0  # for the kernel to end killed jobs


class State(Enum):
    """Of the connection."""

    NEW = "new"
    READY = "ready"
    ENDING = "ending"


PERMITTED = {
    State.NEW: frozenset({Type.HELLO}),
    # A later HELLO is a restarted api's: it is answered with the live jobs.
    State.READY: frozenset({Type.HELLO, Type.START, Type.SIGNAL, Type.KILL, Type.RELEASE, Type.SHUTDOWN}),
    State.ENDING: frozenset(),
}


class Refusal(Exception):
    """An operational failure: answered with ERROR, the connection lives on."""

    def __init__(self, stage: Stage, error: int, message: str) -> None:
        super().__init__(message)
        self.stage, self.error = stage, error


class JobState(Enum):
    STARTING = "starting"  # cloned, exec not yet seen
    RUNNING = "running"
    DYING = "dying"  # its init is reaped, its cgroup is not yet empty
    ENDED = "ended"  # EXITED was made; waits for RELEASE


class Job:
    """One job of the table. Every fd is owned here and closed once, by `close`."""

    def __init__(self, handle: int, request_id: int, order: spawn.Order, child: spawn.Child, cgroup_fd: int) -> None:
        self.handle, self.request_id, self.order, self.child = handle, request_id, order, child
        self.state = JobState.STARTING
        self.events_fd = -1
        self.cgroup_fd = cgroup_fd
        self.fds = {fd for fd in child[1:] if fd >= 0} | {cgroup_fd}
        self.status = b""  # what the status pipe said
        self.failure: Refusal | None = None  # why it never ran
        self.killed = False
        self.wait_status = signal.SIGKILL.value  # of an init that could not report
        self.usage = (0, 0, 0)  # user µs, system µs, max RSS bytes
        self.exited: bytes = b""  # the EXITED datagram, kept for an api that comes later

    def close(self, fd: int) -> None:
        if fd in self.fds:
            self.fds.remove(fd)
            os.close(fd)


class Outgoing(NamedTuple):
    datagram: bytes
    fds: tuple[int, ...] = ()
    close_after: tuple[Job, int] | None = None  # an fd that only the api is to hold


class Monitor:
    """Owns the socket, the table of jobs and the poll set."""

    def __init__(self, sock: socket.socket, policy: Policy, base: cgroup.Base, signal_fd: int) -> None:
        self.sock, self.policy, self.base, self.signal_fd = sock, policy, base, signal_fd
        self.state = State.NEW
        self.jobs: dict[int, Job] = {}
        self.queue: deque[Outgoing] = deque()
        self.next_handle = 1
        self.next_uid = 0
        self.starts: deque[float] = deque(maxlen=policy.starts_per_second)
        self.poll = select.poll()
        self.callbacks: dict[int, Callable[[], None]] = {}
        with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
            self.last_capability = int(file.read())
        self.disks = {name: self._profile_disks(profile) for name, profile in policy.profiles.items()}
        self.handlers: dict[Type, Callable[[int, bytes], None]] = {
            Type.HELLO: self._hello,
            Type.START: self._start,
            Type.SIGNAL: self._signal,
            Type.KILL: self._kill,
            Type.RELEASE: self._release,
            Type.SHUTDOWN: self._shutdown,
        }

    def _profile_disks(self, profile: Profile) -> tuple[str, ...]:
        writable = [bind.source for bind in profile.binds if bind.writable]
        return cgroup.disks(self.policy.io_devices or (profile.root, *writable))

    # The loop

    def run(self) -> None:
        """Serves until EOF, SIGTERM or SHUTDOWN. Raises WireError at a violation. Ends every job."""
        self._watch(self.signal_fd, select.POLLIN, self._end)
        self._watch(self.sock.fileno(), select.POLLIN, self._receive)
        try:
            while self.state is not State.ENDING:
                self._turn()
        finally:
            self._end_all()

    def _turn(self) -> None:
        busy = len(self.queue) >= MAX_QUEUE
        # A peer that does not read its replies is not read from; jobs are reaped all the same.
        events = (0 if busy else select.POLLIN) | (select.POLLOUT if self.queue else 0)
        self.poll.modify(self.sock.fileno(), events)
        for fd, event in self.poll.poll(_TICK_MS):
            if fd == self.sock.fileno() and event & select.POLLOUT:
                self._flush()
            if callback := self.callbacks.get(fd):
                if fd != self.sock.fileno() or event & (select.POLLIN | select.POLLHUP):
                    callback()
        for job in [job for job in self.jobs.values() if job.state is JobState.DYING]:
            self._try_finish(job)

    def _watch(self, fd: int, events: int, callback: Callable[[], None]) -> None:
        self.poll.register(fd, events)
        self.callbacks[fd] = callback

    def _unwatch(self, fd: int) -> None:
        if self.callbacks.pop(fd, None):
            self.poll.unregister(fd)

    def _end(self) -> None:
        self.state = State.ENDING

    # Messages

    def _receive(self) -> None:
        """One datagram. No ancillary space is offered, so the kernel discards any fd that was passed."""
        try:
            datagram, _, flags, _ = self.sock.recvmsg(wire.MAX_MESSAGE + 1, 0, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        except ConnectionError:
            return self._end()
        if not datagram:
            # EOF and an empty datagram look alike; neither is a message, both end us.
            return self._end()
        if flags & socket.MSG_TRUNC:
            raise WireError("a datagram over the bound")
        header, payload = wire.unpack(datagram)
        if header.fd_count:
            raise WireError("fds announced")
        if header.type not in PERMITTED[self.state]:
            raise WireError(f"{header.type.name} in state {self.state.value}")
        try:
            self.handlers[header.type](header.request_id, payload)
        except Refusal as refusal:
            self._send(Outgoing(wire.pack_error(header.request_id, refusal.stage, refusal.error, str(refusal))))

    def _send(self, message: Outgoing) -> None:
        self.queue.append(message)
        self._flush()

    def _flush(self) -> None:
        while self.queue:
            message = self.queue[0]
            try:
                socket.send_fds(self.sock, [message.datagram], message.fds, socket.MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in (errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS):
                    return  # passing; tried again at the next turn
                return self._end()
            self.queue.popleft()
            if message.close_after:
                job, fd = message.close_after
                job.close(fd)

    # Handlers. Each is safe with a hostile api because it takes only what the comment says.

    # Takes nothing. Tells about jobs that this same socket's holder started.
    def _hello(self, request_id: int, payload: bytes) -> None:
        wire.unpack_empty(payload)
        self.state = State.READY
        # Of an api before: it is gone, and its requests with it.
        self.queue.clear()
        known = [job for job in self.jobs.values() if job.state is not JobState.STARTING and not job.failure]
        missing = ",".join(name for name in cgroup.CONTROLLERS if name not in self.base.controllers)
        profiles = ",".join(self.policy.profiles)
        welcome = wire.Welcome(len(known), self.policy.max_jobs, missing.encode(), profiles.encode())
        self._send(Outgoing(wire.pack_welcome(request_id, welcome)))
        for job in known:
            fds = self._handed(job)
            uid, tag = job.order.uid, job.order.start.tag
            self._send(Outgoing(wire.pack_adopt(request_id, job.handle, uid, tag, len(fds)), fds))
            if job.exited:
                self._send(Outgoing(job.exited))

    # Takes argv, env, directory and a profile's name for a process without privileges; uid, cgroup,
    # mounts and maxima are decided here. Counts and sizes are the wire's.
    def _start(self, request_id: int, payload: bytes) -> None:
        start = wire.unpack_start(payload)
        order = self._decide(start)
        handle = self.next_handle
        self.next_handle += 1
        self.starts.append(time.monotonic())
        try:
            without = self.policy.allow_missing_controllers
            cgroup_fd = self.base.create(handle, order.limits, without, self.disks[order.profile.name])
        except cgroup.CgroupError as error:
            raise Refusal(Stage.LIMIT, errno.EOPNOTSUPP, str(error)) from None
        except OSError as error:
            raise Refusal(Stage.CGROUP, error.errno or errno.EIO, f"the cgroup could not be made: {error.strerror}") from None
        try:
            child = spawn.spawn(order, cgroup_fd)
        except OSError as error:
            os.close(cgroup_fd)
            cgroup.remove(self.base.job_path(handle))
            raise Refusal(Stage.CLONE, error.errno or errno.EIO, f"the job could not be forked: {error.strerror}") from None
        job = Job(handle, request_id, order, child, cgroup_fd)
        self.jobs[handle] = job
        self._watch(child.status_fd, select.POLLIN, lambda: self._status(job))
        self._watch(child.pidfd, select.POLLIN, lambda: self._reap(job))

    # Takes a handle of the table and a signal number; goes through the pidfd of the job's init.
    def _signal(self, request_id: int, payload: bytes) -> None:
        handle, number = wire.unpack_signal(payload)
        job = self._running(handle)
        try:
            # The two that an init cannot pass on.
            if number == signal.SIGKILL:
                self._kill_job(job)
            elif number == signal.SIGSTOP:
                raise Refusal(Stage.REQUEST, errno.EINVAL, "SIGSTOP would stop the job's init: send SIGTSTP")
            else:
                signal.pidfd_send_signal(job.child.pidfd, number)
        except OSError as error:
            raise Refusal(Stage.REQUEST, error.errno or errno.EIO, f"the signal was not sent: {error.strerror}") from None
        self._send(Outgoing(wire.pack(Type.DONE, request_id)))

    # Takes a handle of the table; goes through its cgroup's fd.
    def _kill(self, request_id: int, payload: bytes) -> None:
        self._kill_job(self._running(wire.unpack_handle(payload)))
        self._send(Outgoing(wire.pack(Type.DONE, request_id)))

    # Takes a handle whose EXITED was made: the only thing it frees is memory and fds of a dead job.
    def _release(self, request_id: int, payload: bytes) -> None:
        job = self.jobs.get(wire.unpack_handle(payload))
        if job is None:
            raise Refusal(Stage.NO_SUCH_JOB, errno.ESRCH, "no such job")
        queued = any(message.datagram is job.exited for message in self.queue)
        if job.state is not JobState.ENDED or queued:
            raise WireError("RELEASE before EXITED")
        self._forget(job)
        self._send(Outgoing(wire.pack(Type.DONE, request_id)))

    # Takes nothing.
    def _shutdown(self, request_id: int, payload: bytes) -> None:
        wire.unpack_empty(payload)
        self._send(Outgoing(wire.pack(Type.DONE, request_id)))
        self._end()

    def _running(self, handle: int) -> Job:
        job = self.jobs.get(handle)
        if job is None or job.state is not JobState.RUNNING:
            raise Refusal(Stage.NO_SUCH_JOB, errno.ESRCH, "no such running job")
        return job

    # What a START may have

    def _decide(self, start: wire.Start) -> spawn.Order:
        """The policy's verdict on a START; raises Refusal."""
        policy = self.policy
        if len(self.jobs) >= policy.max_jobs:
            raise Refusal(Stage.CAPACITY, errno.EAGAIN, f"{policy.max_jobs} jobs are live, the most the policy allows")
        if len(self.starts) == self.starts.maxlen and time.monotonic() - self.starts[0] < 1:
            raise Refusal(Stage.CAPACITY, errno.EAGAIN, f"over {policy.starts_per_second} starts in a second")
        name = start.profile.decode("utf-8", "replace") or next(iter(policy.profiles))
        if name not in policy.profiles:
            raise Refusal(Stage.POLICY, errno.EINVAL, f"the policy has no such profile; it has: {', '.join(policy.profiles)}")
        if start.cwd and (not start.cwd.startswith(b"/") or (start.cwd + b"/").startswith(b"/proc/")):
            raise Refusal(Stage.CHDIR, errno.EINVAL, "the working directory must be an absolute path outside /proc")
        return spawn.Order(start, policy.profiles[name], self._fresh_uid(), self._limits(dict(start.limits)), self.last_capability)

    def _limits(self, asked: dict[Limit, int]) -> dict[Limit, int]:
        limits = self.policy.default | asked
        limits.setdefault(Limit.MEMORY_HIGH_BYTES, limits[Limit.MEMORY_BYTES] * 3 // 4)
        for limit, value in limits.items():
            maximum = self.policy.maximum[limit]
            if not 1 <= value <= maximum:
                raise Refusal(Stage.LIMIT, errno.EINVAL, f"{limit.name.lower()} {value} is not from 1 to {maximum}, the policy's maximum")
        return limits

    def _fresh_uid(self) -> int:
        """The next uid of the range that no job of the table has; the range holds max_jobs."""
        used = {job.order.uid for job in self.jobs.values()}
        while True:
            uid = self.policy.uid_first + self.next_uid % self.policy.uid_count
            self.next_uid += 1
            if uid not in used:
                return uid

    # A job's life

    def _handed(self, job: Job) -> tuple[int, ...]:
        return (job.child.stdout_fd, job.child.stderr_fd, job.cgroup_fd)

    def _status(self, job: Job) -> None:
        """The status pipe: EOF after E is a successful exec, the only thing that makes a job run."""
        try:
            piece = os.read(job.child.status_fd, 64)
        except BlockingIOError:
            return
        job.status += piece
        if piece and len(job.status) < 64:
            return
        self._unwatch(job.child.status_fd)
        job.close(job.child.status_fd)
        if job.status == spawn.EXEC_NEXT:
            job.state = JobState.RUNNING
            fds = self._handed(job)
            close_after = None
            if job.child.stdin_fd >= 0:
                fds += (job.child.stdin_fd,)
                close_after = (job, job.child.stdin_fd)
            datagram = wire.pack_started(job.request_id, job.handle, job.order.uid, len(fds))
            return self._send(Outgoing(datagram, fds, close_after))
        job.failure = self._failure(job.status)
        self._kill_job(job)

    def _failure(self, status: bytes) -> Refusal:
        report = status.removeprefix(spawn.EXEC_NEXT)
        if len(report) != spawn.STATUS.size:
            return Refusal(Stage.CLONE, errno.EIO, "the job's init died before exec")
        number, error = spawn.STATUS.unpack(report)
        stage = Stage(number)
        return Refusal(stage, error, f"the start failed at {stage.name.lower()}: {os.strerror(error)}")

    def _kill_job(self, job: Job) -> None:
        job.killed = True
        try:
            cgroup.kill(job.cgroup_fd)
        except OSError as error:  # no cgroup.kill: an old kernel; the namespace dies with its init
            log(f"job {job.handle}: cgroup.kill: {error.strerror}")
            signal.pidfd_send_signal(job.child.pidfd, signal.SIGKILL)

    def _reap(self, job: Job) -> None:
        """The init is dead, and its namespace with it; once."""
        if job.child.status_fd in job.fds:
            self._status(job)  # what it said last comes first
        self._unwatch(job.child.pidfd)
        _, _, usage = os.wait4(job.child.pid, 0)  # dead already: does not block
        job.usage = (int(usage.ru_utime * 1e6), int(usage.ru_stime * 1e6), usage.ru_maxrss * 1024)
        try:
            result = os.read(job.child.result_fd, 64)
        except BlockingIOError:
            result = b""
        if len(result) == spawn.RESULT.size:
            (job.wait_status,) = spawn.RESULT.unpack(result)
        for fd in (job.child.pidfd, job.child.result_fd):
            job.close(fd)
        job.state = JobState.DYING
        self._try_finish(job)

    def _try_finish(self, job: Job) -> None:
        """Ends a job whose cgroup is empty; else waits for its event, which cgroup.events polls."""
        try:
            if cgroup.populated(job.cgroup_fd):
                if job.events_fd < 0:
                    cgroup.kill(job.cgroup_fd)
                    job.events_fd = os.open("cgroup.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=job.cgroup_fd)
                    job.fds.add(job.events_fd)
                    self._watch(job.events_fd, select.POLLPRI, lambda: None)
                # Reading rearms the event.
                os.pread(job.events_fd, 256, 0)
                return
            facts = cgroup.facts(job.cgroup_fd)
            cgroup.remove(self.base.job_path(job.handle))
        except OSError as error:
            return log(f"job {job.handle}: its cgroup is not removed yet: {error.strerror}")
        if job.events_fd >= 0:
            self._unwatch(job.events_fd)
            job.close(job.events_fd)
        job.state = JobState.ENDED
        if job.failure:
            refusal = job.failure
            self._send(Outgoing(wire.pack_error(job.request_id, refusal.stage, refusal.error, str(refusal))))
            return self._forget(job)
        status = job.wait_status
        code, number = (0, os.WTERMSIG(status)) if os.WIFSIGNALED(status) else (os.WEXITSTATUS(status), 0)
        job.exited = wire.pack_exited(
            wire.Exited(job.handle, code, number, facts.oom_kills, *job.usage, facts.usage_usec, facts.memory_peak, job.killed)
        )
        self._send(Outgoing(job.exited))

    def _forget(self, job: Job) -> None:
        for fd in tuple(job.fds):
            self._unwatch(fd)
            job.close(fd)
        del self.jobs[job.handle]

    def _end_all(self) -> None:
        """Kills every job, waits for the kernel to end it, removes every cgroup."""
        self.state = State.ENDING
        self._unwatch(self.sock.fileno())
        self._unwatch(self.signal_fd)
        live = [job for job in self.jobs.values() if job.state is not JobState.ENDED]
        for job in live:
            self._kill_job(job)
        deadline = time.monotonic() + _END_DEADLINE_S
        while any(job.state is not JobState.ENDED for job in live) and time.monotonic() < deadline:
            for fd, _ in self.poll.poll(100):
                if callback := self.callbacks.get(fd):
                    callback()
            for job in live:
                if job.state is JobState.DYING:
                    self._try_finish(job)
        self.base.remove()
