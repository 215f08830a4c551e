"""The helper's one loop: requests from the api in, jobs' life cycles, replies and events out.

A request is looked up in PERMITTED by the connection's state; anything the table does not know, or
that does not parse, is a violation: every job is killed and the helper exits. See PROTOCOL.md.
"""

import errno
import os
import select
import time
from collections import deque
from collections.abc import Callable
from enum import Enum
from signal import pidfd_send_signal
from typing import Any

from helper import cgroup, init, spawn, syscalls, wire
from helper.jobs import Job, Jobs, JobState
from helper.link import Events, Link
from helper.policy import CONTROLLERS, Policy, Refusal, limits_of
from helper.uids import Uids
from helper.wire import Stage, Stdio, Type, WireError

_TICK_MS = 250  # the pace of deadlines, and of a cgroup removal that met EBUSY
_PATH_MAX = 4096  # with the NUL: limits.h


class State(Enum):
    """Of the connection."""

    NEW, READY, ENDING = range(3)


_OF_JOBS = Type.CHECK, Type.START, Type.CANCEL, Type.SIGNAL, Type.KILL, Type.CLOSE_STDIN, Type.RELEASE
# A later HELLO is a restarted api's: it is answered with the live jobs.
PERMITTED: dict[State, tuple[Type, ...]] = {
    State.NEW: (Type.HELLO,),
    State.READY: (Type.HELLO, *_OF_JOBS, Type.SHUTDOWN),
    State.ENDING: (),
}


class Monitor:
    """The loop and the handlers: the state of the connection, and what a START may have."""

    def __init__(self, link: Link, policy: Policy, uids: Uids, cgroup_root: str) -> None:
        self.link, self.policy, self.uids, self.events = link, policy, uids, Events()
        self.state, self.next_handle = State.NEW, 1
        self.starts: deque[float] = deque(maxlen=policy.starts_per_second)
        self.ends_at = float("inf")  # after SIGTERM
        written = {name: [bind.split(":")[0] for bind in view.writable] for name, view in policy.profiles.items()}
        roots = {name: policy.io_devices or [view.root, *written[name]] for name, view in policy.profiles.items()}
        self.disks = {name: cgroup.disks(paths) for name, paths in roots.items()}
        # Must come last: no failure after it leaves a cgroup.
        self.base = cgroup.Base(cgroup_root)
        self.jobs = Jobs(self.base, uids, self.events, link)

    # The loop

    def run(self, signal_fd: int, peer_fd: int) -> None:
        """Serves until EOF, SHUTDOWN or the end of the peer's process, then ends every job.

        `signal_fd` tells of SIGTERM, `peer_fd` is a pidfd. Raises WireError at a violation.
        """
        self.events.watch(signal_fd, select.POLLIN, lambda _: self._on_sigterm(signal_fd))
        self.events.watch(peer_fd, select.POLLIN, lambda _: self._end())
        try:
            while self.state is not State.ENDING:
                self.events.watch(self.link.sock.fileno(), self.link.wanted(), self._on_link)
                self.events.wait(_TICK_MS)
                self.jobs.turn()
                self.link.check_progress()
                if self.link.ended or time.monotonic() >= self.ends_at:
                    self._end()
        finally:
            for job in self.jobs.table.values():  # for what follows, should no fd be free
                self.jobs.close_fds(job, *job.fds)
            # The whole tree at once, by nothing of the table: a fault may be what ended us.
            cgroup.end(self.base.fd, self.base.path)

    def _end(self) -> None:
        self.state = State.ENDING

    def _on_sigterm(self, signal_fd: int) -> None:
        """It may have gone to the whole group: the peer ends in its own order, within the longest drain."""
        os.read(signal_fd, 64)
        self.ends_at = min(self.ends_at, time.monotonic() + self.policy.max_drain_seconds)

    def _on_link(self, came: int) -> None:
        if self.state is State.ENDING or not (message := self.link.on_event(came)):
            return
        if message.type not in PERMITTED[self.state]:
            raise WireError(f"{message.type.name} in state {self.state.name}")
        handler: Callable[..., None] = getattr(self, f"_on_{message.type.name.lower()}")
        try:
            handler(message.request_id, **message.fields)
        except Refusal as refusal:
            self.link.refuse(message.request_id, refusal)

    # Handlers, one for each request. Each is safe with a hostile api because of what it takes:

    # Nothing. It tells about jobs that this same socket's holder started.
    def _on_hello(self, request_id: int) -> None:
        self.state = State.READY
        self.link.queue.clear()  # of an api before: it is gone, and its requests with it
        for job in self.jobs.table.values():
            if job.state is JobState.STARTING and not job.failure:
                self.jobs.give_up(job, errno.ECANCELED, "the api that asked has gone")
        known = [job for job in self.jobs.table.values() if not job.failure]
        missing = [name.encode() for name in CONTROLLERS if name not in self.base.controllers]
        lists = {"missing_controllers": missing, "profiles": [name.encode() for name in self.policy.profiles]}
        self.link.send(Type.WELCOME, request_id, live_jobs=len(known), max_jobs=self.policy.max_jobs, **lists)
        for job in known:
            self.link.send(Type.ADOPT, request_id, job.handed(), handle=job.handle, uid=job.uid, tag=job.tag)
        for job in known:
            if job.state is JobState.ENDED:
                self.link.send(Type.EXITED, 0, **job.facts)

    # What START takes. Nothing is made: it tells what START would do now.
    def _on_check(self, request_id: int, tag: bytes, parent: int, **fields: Any) -> None:
        order = self._decide(parent, **fields)
        if not parent:  # else it is that job's
            self.uids.give_back(order.uid)
        sandbox = {"uid": order.uid, "cwd": os.fsdecode(order.cwd)} | vars(order.profile) | order.limits
        sandbox |= {name.lower(): 1 for name, bit in Stdio.__members__.items() if order.stdio & bit}
        shown = [(name, ", ".join(value) if isinstance(value, list) else value) for name, value in sandbox.items()]
        rows = [os.fsencode(f"{name} {value}") for name, value in [*shown, *order.rows]]
        self.link.send(Type.VERDICT, request_id, rows=rows)

    # argv, env, a directory and a profile's name, for a process without privileges; uid, cgroup,
    # mounts and maxima are decided here. Counts and sizes are the wire's. Or the handle of a job, which this command
    # joins: as its uid, in its cgroup, with all of its limits.
    def _on_start(self, request_id: int, tag: bytes, parent: int, **fields: Any) -> None:
        order = self._decide(parent, **fields)
        job = Job(self.next_handle, request_id, tag, order, self.jobs.table.get(parent))
        self.next_handle += 1
        self.starts.append(time.monotonic())
        self.jobs.start(job)

    # The request id of a START: it ends what that START began, and nothing that runs.
    def _on_cancel(self, request_id: int, start_id: int) -> None:
        for job in self.jobs.table.values():
            if job.request_id == start_id and job.state is JobState.STARTING and not job.failure:
                self.jobs.give_up(job, errno.ECANCELED, "it was cancelled")
                return self.link.send(Type.DONE, request_id)
        raise Refusal(Stage.NO_SUCH_JOB, errno.ESRCH, "no such start is under way")

    # A handle of the table and a signal number; it goes through the pidfd of the job's init.
    def _on_signal(self, request_id: int, handle: int, signal: int) -> None:
        if not 1 <= signal <= wire.MAX_SIGNAL:
            raise WireError(f"signal {signal}")
        pidfd = self.jobs.live(handle, JobState.RUNNING).fds["pidfd"]
        try:
            if signal in init.CARRIED:
                syscalls.pidfd_queue_signal(pidfd, init.CARRIER, signal)
            else:
                pidfd_send_signal(pidfd, signal)
        except BlockingIOError:  # the job's own doing
            raise Refusal(Stage.REQUEST, errno.EAGAIN, "the job has too many signals pending") from None
        self.link.send(Type.DONE, request_id)

    # A handle of the table; it goes through the pidfd of the job's init.
    def _on_kill(self, request_id: int, handle: int) -> None:
        job = self.jobs.live(handle, JobState.STARTING, JobState.RUNNING)
        if job.state is JobState.STARTING:
            self.jobs.give_up(job, errno.ECANCELED, "it was killed")
        else:
            self.jobs.kill_job(job)
        self.link.send(Type.DONE, request_id)

    # A handle whose STARTED or ADOPT was sent; it closes a pipe of ours.
    def _on_close_stdin(self, request_id: int, handle: int) -> None:
        job = self.jobs.live(handle, JobState.RUNNING)
        if any(job.fds.get("stdin") in fds for _, fds in self.link.queue):  # its number would be another fd's by then
            raise WireError("CLOSE_STDIN before STARTED")
        self.jobs.close_fds(job, "stdin")
        self.link.send(Type.DONE, request_id)

    # A handle whose EXITED was sent: it frees nothing but memory and fds of a dead job.
    def _on_release(self, request_id: int, handle: int) -> None:
        job = self.jobs.live(handle, *JobState)
        if job.state is not JobState.ENDED or self.link.unsent(Type.EXITED, 0, **job.facts):
            raise WireError("RELEASE before EXITED")
        self.jobs.forget(job)
        self.link.send(Type.DONE, request_id)

    # Nothing.
    def _on_shutdown(self, request_id: int) -> None:
        self.link.send(Type.DONE, request_id)
        self._end()

    # What a START may have

    def _decide(
        self, parent: int, stdio: int, place: list[bytes], argv: list[bytes], env: list[bytes], **limits: int
    ) -> spawn.Order:
        """The policy's verdict on a START. Raises Refusal, or WireError where no api of ours would ask."""
        policy = self.policy
        names = [entry.partition(b"=")[0] for entry in env if b"=" in entry]
        if not argv or not argv[0] or not all(names) or len(set(names)) != len(env) or len(place) != 2:
            raise WireError("argv is empty, env not a list of distinct NAME=value, or place not two strings")
        if stdio > Stdio.TERMINAL:
            raise WireError(f"stdio {stdio}: not of a terminal alone, or of pipes")
        fast = len(self.starts) == policy.starts_per_second and time.monotonic() - self.starts[0] < 1
        if len(self.jobs.table) >= policy.max_jobs or fast:
            bounds = f"{policy.max_jobs} jobs, {policy.starts_per_second} starts a second"
            raise Refusal(Stage.CAPACITY, errno.EAGAIN, f"the policy's bounds are reached: {bounds}")
        cwd = _working_directory(place[1])
        if parent:
            joined = self.jobs.live(parent, JobState.RUNNING)
            if joined.parent or place[0] or any(limits.values()):
                raise WireError("a command in a job has the job's profile and limits, and no commands in it")
            changes: dict[str, Any] = {"argv": argv, "env": env, "cwd": cwd, "rows": [], "stdio": Stdio(stdio)}
            return joined.order._replace(**changes, parent_pidfd=joined.fds["pidfd"])
        profile = policy.profiles.get(place[0].decode("utf-8", "replace") or next(iter(policy.profiles)))
        if profile is None:
            raise Refusal(Stage.POLICY, errno.EINVAL, f"no such profile; the policy has: {', '.join(policy.profiles)}")
        final = limits_of(policy, profile, limits)
        rows = self.base.rows(final, policy.allow_missing_controllers, self.disks[profile.profile_name])
        # The uid comes last: a refusal after it would keep it.
        return spawn.Order(argv, env, cwd, profile, self.uids.take(), final, rows, Stdio(stdio))


def _working_directory(asked: bytes) -> bytes:
    """Raises Refusal."""
    cwd = asked or b"/"
    if not cwd.startswith(b"/") or (cwd + b"/").startswith(b"/proc/"):
        raise Refusal(Stage.CHDIR, errno.EINVAL, "the working directory must be absolute and outside /proc")
    if len(cwd) >= _PATH_MAX:  # also for VERDICT, where it is part of a string
        text = f"the working directory has {len(cwd)} bytes; Linux takes at most {_PATH_MAX - 1}"
        raise Refusal(Stage.CHDIR, errno.ENAMETOOLONG, text)
    return cwd
