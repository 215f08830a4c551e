"""The helper's one loop: requests from the api in, jobs' life cycles, replies and events out.

A request is looked up in PERMITTED by the connection's state; anything the table does not know, or
that does not parse, is a violation: every job is killed and the helper exits. See PROTOCOL.md.
"""

import errno
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from signal import SIGKILL, SIGTERM, pidfd_send_signal
from typing import Any

from helper import cgroup, spawn, wire
from helper.policy import CONTROLLERS, Policy, Refusal, limits_of
from helper.uids import Uids
from helper.wire import Stage, Type, WireError

MAX_QUEUE = 64  # messages towards the api beyond which no request is read
_TICK_MS = 250  # the pace of timeouts, and of a cgroup removal that met EBUSY
_GRACE_S = 10.0  # from a timeout's SIGTERM to its SIGKILL
_PASSING = (errno.EAGAIN, errno.EINTR, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS)


class State(Enum):
    """Of the connection."""

    NEW, READY, ENDING = range(3)


# A later HELLO is a restarted api's: it is answered with the live jobs.
PERMITTED: dict[State, tuple[Type, ...]] = {
    State.NEW: (Type.HELLO,),
    State.READY: (Type.HELLO, Type.CHECK, Type.START, Type.SIGNAL, Type.KILL, Type.RELEASE, Type.SHUTDOWN),
    State.ENDING: (),
}


class JobState(Enum):
    """STARTING: cloned, exec not yet seen. DYING: its init is reaped, its cgroup is not yet empty.

    ENDED: EXITED was made; waits for RELEASE.
    """

    STARTING, RUNNING, DYING, ENDED = range(4)


class Job:
    """One job of the table. It owns `fds`, by name: cgroup, events and those of spawn."""

    def __init__(self, handle: int, request_id: int, tag: bytes, order: spawn.Order) -> None:
        self.handle, self.request_id, self.tag, self.uid = handle, request_id, tag, order.uid
        self.deadline = time.monotonic() + order.limits["timeout_ms"] / 1000
        self.state, self.pid = JobState.STARTING, -1
        self.fds: dict[str, int] = {}
        self.status = b""  # what the status pipe said
        self.failure: Refusal | None = None  # why it never ran
        self.facts = {"handle": handle, "killed": 0, "timed_out": 0}  # EXITED's fields

    def handed(self) -> tuple[int, ...]:
        """The fds that the api gets."""
        return self.fds["stdout"], self.fds["stderr"], self.fds["cgroup"]


class Monitor:
    """Owns the socket, the table of jobs and the poll set."""

    def __init__(self, sock: socket.socket, policy: Policy, uids: Uids, base: cgroup.Base, signal_fd: int) -> None:
        self.sock, self.policy, self.uids, self.base = sock, policy, uids, base
        self.state, self.next_handle = State.NEW, 1
        self.jobs: dict[int, Job] = {}
        self.queue: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self.starts: deque[float] = deque(maxlen=policy.starts_per_second)
        written = {name: [bind.split(":")[0] for bind in view.writable] for name, view in policy.profiles.items()}
        roots = {name: policy.io_devices or [view.root, *written[name]] for name, view in policy.profiles.items()}
        self.disks = {name: cgroup.disks(paths) for name, paths in roots.items()}
        self.poll, self.callbacks = select.poll(), dict[int, Callable[[], None]]()
        self._watch(signal_fd, select.POLLIN, self._end)
        self._watch(sock.fileno(), select.POLLIN, self._receive)

    # The loop

    def run(self) -> None:
        """Serves until EOF, SIGTERM or SHUTDOWN, then ends every job. Raises WireError at a violation."""
        try:
            while self.state is not State.ENDING:
                # A peer that does not read its replies is not read from; jobs are reaped all the same.
                read = 0 if len(self.queue) >= MAX_QUEUE else select.POLLIN
                self.poll.modify(self.sock.fileno(), read | (select.POLLOUT if self.queue else 0))
                self._turn(_TICK_MS)
        finally:
            for job in self.jobs.values():
                self._close(job, *job.fds)  # an fd for what follows, should there be no other
            # The whole tree at once, by nothing of the table: a fault may be what ended us.
            cgroup.end(self.base.fd, self.base.path)

    def _turn(self, timeout_ms: int) -> None:
        for fd, event in self.poll.poll(timeout_ms):
            if event == select.POLLOUT:
                self._flush()
            elif fd in self.callbacks:  # not unwatched by one before it
                self.callbacks[fd]()
        for job in list(self.jobs.values()):
            if job.state is JobState.DYING:
                with suppress(OSError):  # such as no fd free: tried again at the next turn
                    self._finish(job)
            elif time.monotonic() >= job.deadline and job.state is JobState.RUNNING:
                self._expire(job)

    def _watch(self, fd: int, events: int, callback: Callable[[], None]) -> None:
        self.poll.register(fd, events)
        self.callbacks[fd] = callback

    def _close(self, job: Job, *names: str) -> None:
        for name in job.fds.keys() & names:
            fd = job.fds.pop(name)
            if self.callbacks.pop(fd, None):
                self.poll.unregister(fd)
            os.closerange(fd, fd + 1)  # whatever close(2) says, it is closed

    def _end(self) -> None:
        self.state = State.ENDING

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

    def _send(self, kind: Type, request_id: int, fds: tuple[int, ...] = (), /, **fields: Any) -> None:
        self.queue.append((wire.pack(kind, request_id, len(fds), **fields), fds))
        self._flush()

    def _refuse(self, request_id: int, refusal: Refusal) -> None:
        stage, number, text = refusal.args
        short = text.encode(errors="replace")[: wire.MAX_TEXT]
        self._send(Type.ERROR, request_id, stage=stage, errno=number, text=[short])

    def _flush(self) -> None:
        while self.queue:
            datagram, fds = self.queue[0]
            # Not socket.send_fds: it drops its flags, and a send that waits would stop the reaping (S32).
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
            try:
                self.sock.sendmsg([datagram], rights, socket.MSG_DONTWAIT)
            except OSError as error:
                # The passing ones are tried again at the next turn; else the peer is gone.
                return None if error.errno in _PASSING else self._end()
            self.queue.popleft()

    # Handlers, one for each request. Each is safe with a hostile api because of what it takes:

    # Nothing. It tells about jobs that this same socket's holder started.
    def _on_hello(self, request_id: int) -> None:
        self.state = State.READY
        self.queue.clear()  # of an api before: it is gone, and its requests with it
        for job in self.jobs.values():
            if job.state is JobState.STARTING and not job.failure:
                job.failure = Refusal(Stage.CLONE, errno.ECANCELED, "the api that asked has gone")
                self._kill_job(job)
        known = [job for job in self.jobs.values() if not job.failure]
        missing = [name.encode() for name in CONTROLLERS if name not in self.base.controllers]
        lists = {"missing_controllers": missing, "profiles": [name.encode() for name in self.policy.profiles]}
        self._send(Type.WELCOME, request_id, live_jobs=len(known), max_jobs=self.policy.max_jobs, **lists)
        for job in known:
            self._send(Type.ADOPT, request_id, job.handed(), handle=job.handle, uid=job.uid, tag=job.tag)
        for job in known:
            if job.state is JobState.ENDED:
                self._send(Type.EXITED, 0, **job.facts)

    # What START takes. Nothing is made: it tells what START would do now.
    def _on_check(self, request_id: int, tag: bytes, **fields: Any) -> None:
        order = self._decide(**fields)
        self.uids.give_back(order.uid)
        sandbox = {"uid": order.uid, "cwd": os.fsdecode(order.cwd)} | vars(order.profile) | order.limits
        shown = [(name, ", ".join(value) if isinstance(value, list) else value) for name, value in sandbox.items()]
        rows = [os.fsencode(f"{name} {value}") for name, value in [*shown, *order.rows]]
        self._send(Type.VERDICT, request_id, rows=rows)

    # argv, env, a directory and a profile's name, for a process without privileges; uid, cgroup,
    # mounts and maxima are decided here. Counts and sizes are the wire's.
    def _on_start(self, request_id: int, tag: bytes, **fields: Any) -> None:
        order = self._decide(**fields)
        job = Job(self.next_handle, request_id, tag, order)
        self.next_handle += 1
        self.starts.append(time.monotonic())
        stage = Stage.CGROUP
        try:
            job.fds["cgroup"] = self.base.create(job.handle)
            job.fds["events"] = os.open("cgroup.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=job.fds["cgroup"])
            for file, value in order.rows:
                cgroup.write(job.fds["cgroup"], file, value)
            stage = Stage.CLONE
            job.pid, fds = spawn.spawn(order, job.fds["cgroup"])
        except OSError as error:
            self._close(job, *job.fds)
            self.uids.give_back(job.uid)
            if not cgroup.remove(self.base.job_path(job.handle)):  # something was cloned into it: fatal
                raise
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
        if job.state is not JobState.ENDED or (wire.pack(Type.EXITED, 0, **job.facts), ()) in self.queue:
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

    def _decide(self, place: list[bytes], argv: list[bytes], env: list[bytes], **limits: int) -> spawn.Order:
        """The policy's verdict on a START. Raises Refusal, or WireError where no api of ours would ask."""
        policy = self.policy
        names = [entry.partition(b"=")[0] for entry in env if b"=" in entry]
        if not argv or not argv[0] or not all(names) or len(set(names)) != len(env) or len(place) != 2:
            raise WireError("argv is empty, env not a list of distinct NAME=value, or place not two strings")
        fast = len(self.starts) == policy.starts_per_second and time.monotonic() - self.starts[0] < 1
        if len(self.jobs) >= policy.max_jobs or fast:
            bounds = f"{policy.max_jobs} jobs, {policy.starts_per_second} starts a second"
            raise Refusal(Stage.CAPACITY, errno.EAGAIN, f"the policy's bounds are reached: {bounds}")
        profile = policy.profiles.get(place[0].decode("utf-8", "replace") or next(iter(policy.profiles)))
        if profile is None:
            raise Refusal(Stage.POLICY, errno.EINVAL, f"no such profile; the policy has: {', '.join(policy.profiles)}")
        cwd = place[1] or b"/"
        if not cwd.startswith(b"/") or (cwd + b"/").startswith(b"/proc/"):
            raise Refusal(Stage.CHDIR, errno.EINVAL, "the working directory must be absolute and outside /proc")
        final = limits_of(policy, profile, limits)
        rows = self.base.rows(final, policy.allow_missing_controllers, self.disks[profile.profile_name])
        return spawn.Order(argv, env, cwd, profile, self.uids.take(), final, rows)  # last: a refusal would keep the uid

    # A job's life

    def _read_status(self, job: Job) -> None:
        """The status pipe: EOF after E is a successful exec, the only thing that makes a job run."""
        with suppress(BlockingIOError):
            piece = os.read(job.fds["status"], 64)
            job.status += piece
            if piece and len(job.status) < 64:
                return
        self._close(job, "status")
        if job.failure:
            return
        if job.status == spawn.EXEC_NEXT:
            job.state = JobState.RUNNING
            return self._send(Type.STARTED, job.request_id, job.handed(), handle=job.handle, uid=job.uid)
        report = job.status.removeprefix(spawn.EXEC_NEXT)
        whole = len(report) == spawn.STATUS.size  # else the init died without a word
        number, error = spawn.STATUS.unpack(report) if whole else (Stage.CLONE, errno.EIO)
        cause = os.strerror(error) if whole else "it died before exec, perhaps of too little memory"
        job.failure = Refusal(Stage(number), error, f"the start failed at {Stage(number).name.lower()}: {cause}")
        self._kill_job(job)

    def _expire(self, job: Job) -> None:
        """A job beyond its deadline: SIGTERM, and after a grace, as a deadline of its own, SIGKILL."""
        with suppress(ProcessLookupError):  # just dead
            pidfd_send_signal(job.fds["pidfd"], SIGKILL if job.facts["timed_out"] else SIGTERM)
        job.facts["timed_out"], job.deadline = 1, job.deadline + _GRACE_S

    def _kill_job(self, job: Job) -> None:
        job.facts["killed"] = 1
        with suppress(OSError):  # just dead, or no fd is free: the first was enough, and _finish does the rest
            pidfd_send_signal(job.fds["pidfd"], SIGKILL)  # its namespace ends with it
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
        code = os.waitstatus_to_exitcode(status)  # a signal as a negative number
        job.facts |= {"exit_code": max(code, 0), "signal": max(-code, 0), "max_rss_bytes": usage.ru_maxrss * 1024}
        job.facts |= {"user_usec": int(usage.ru_utime * 1e6), "system_usec": int(usage.ru_stime * 1e6)}
        self._watch(job.fds["events"], select.POLLPRI, lambda: None)
        job.state = JobState.DYING  # finished at the end of this turn

    def _finish(self, job: Job) -> None:
        """Ends a job whose cgroup is empty; else waits for the event that cgroup.events polls."""
        if b"populated 1" in os.pread(job.fds["events"], 256, 0):  # reading rearms the event
            return cgroup.kill(job.fds["cgroup"])
        job.facts |= cgroup.facts(job.fds["cgroup"])
        if not cgroup.remove(self.base.job_path(job.handle)):  # passing: tried again at the next turn
            return
        self._close(job, "events")
        job.state = JobState.ENDED
        if job.failure:
            self._forget(job)
            return self._refuse(job.request_id, job.failure)
        self._send(Type.EXITED, 0, **job.facts)

    def _forget(self, job: Job) -> None:
        self._close(job, *job.fds)
        self.uids.give_back(job.uid)
        del self.jobs[job.handle]
