"""One system call of a start fails, each in its turn: nothing runs with less confinement, and nothing is left."""

import errno
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.helper_driver import ENV, TAG, VIOLATION, Helper, Job
from support.syscall_faults import ROLES, Tracer
from support.wait import wait_until

from helper import wire
from helper.wire import Stdio, Type

pytestmark = pytest.mark.usefixtures("as_root")
# What a job can see of its confinement, in one process and without a library's start-up.
_FILES = "status mountinfo cgroup limits net/dev"
_PROBE = "\n".join(
    [
        f"for file in {_FILES}; do while read -r line; do echo \"$file $line\"; done </proc/self/$file; done",
        "read -r name </proc/sys/kernel/hostname; umask; echo $name fds /proc/self/fd/*; echo end",
    ]
)  # fmt: skip
# Of /proc/self/status: what says how the process is confined.
_STATUS = "Uid Gid Groups NSpid NSsid SigBlk SigIgn SigCgt CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp"
_COVERED = "/ /proc /proc/sys /sys /dev /dev/pts /dev/shm /tmp /var/tmp /home /run /root /boot".split()
_START = dict.fromkeys(wire.LIMITS.split(), 0) | {
    "tag": TAG,
    "stdio": 0,
    "parent": 0,
    "place": [b"", b"/tmp"],
    "env": ENV,
    "argv": [b"/bin/sh", b"-c", _PROBE.encode()],
}


class TracedHelper:
    """A helper that is traced, and what must be as before after each start."""

    def __init__(self, policy: Path, code: Path = ROOT, stdio: int = 0, joins: bool = False) -> None:
        self.helper = Helper(policy, code=code)
        # A job to join is started before the tracer comes, which is to meet the one init and main of each start.
        self.parent = self.helper.start("sleep", "1000") if joins else None
        self.request = _START | {"stdio": stdio, "parent": self.parent.handle if self.parent else 0}
        self.tracer = Tracer(self.helper)
        self.proc = Path(f"/proc/{self.helper.process.pid}")
        self.before = self.leftovers()

    def leftovers(self) -> list[object]:
        children = (self.proc / "task" / self.proc.name / "children").read_text()
        fds = sorted(os.readlink(path) for path in (self.proc / "fd").iterdir())
        mounts = [line.split()[4] for line in (self.proc / "mountinfo").read_text().splitlines()]
        mounts = [point for point in mounts if point in _COVERED]  # whatever else the host mounts meanwhile
        return [children, fds, mounts, sorted(self.helper.cgroup.glob("**/*-*"))]

    def start(self, failing: tuple[str, int, int] | None = None) -> set[str] | None:
        """What the job saw of itself; None when it did not start. Checks that the rest is as before."""
        self.tracer.watch(failing)
        self.helper.send(Type.START, 7, **self.request)
        seen = self._life()
        self.tracer.let_go()
        if self._request(Type.KILL, handle=0) is Type.ERROR:
            assert self.leftovers() == self.before, failing
        else:
            self._check_end(failing)
        return seen

    def _life(self) -> set[str] | None:
        """START's reply, EXITED and RELEASE, each unless the helper ends."""
        if not self.tracer.until_message():
            return None
        message, fds = self.helper.receive()
        if message.type is not Type.STARTED:  # ERROR, or EXITED of a helper that ends
            assert not fds
            return None
        job = Job(message.fields["handle"], message.fields["uid"], *fds)
        try:
            if self.tracer.until_message() and self.helper.receive()[0].type is Type.EXITED:
                self._request(Type.RELEASE, handle=job.handle)
            return _confinement(_to_end(job.stdout).decode(), job.uid)
        finally:
            job.close()

    def _request(self, kind: Type, **fields: int) -> Type | None:
        """The reply's type; None when the helper has ended or does so now."""
        with suppress(ConnectionError):
            self.helper.send(kind, 8, **fields)
        return self.helper.receive()[0].type if self.tracer.until_message() else None

    def _check_end(self, failing: object) -> None:
        assert self.helper.process.stderr is not None
        said = self.helper.process.stderr.read().decode()
        assert (self.helper.process.returncode, said.count("\n")) == (VIOLATION, 1), (failing, said)
        assert "Traceback" not in said
        assert not self.helper.cgroup.exists(), (failing, said)
        # Out of the cgroup already; a moment later they are no processes either.
        wait_until(f"all have ended after {failing}", self.tracer.all_gone)

    def close(self) -> None:
        if self.parent:
            self.parent.close()
        if not self.tracer.ended():
            self.helper.sock.shutdown(socket.SHUT_WR)
            self.tracer.until_ended()
            assert self.helper.process.returncode == 0
        self.helper.__exit__()


def _to_end(fd: int) -> bytes:
    """A pipe's or a terminal's, whose master tells of its end by EIO."""
    output = b""
    with suppress(OSError):
        while piece := os.read(fd, 1 << 16):
            output += piece
    return output


def _confinement(output: str, uid: int) -> set[str]:
    """The probe's lines, without what differs from job to job."""
    lines = set()
    mounts: dict[str, str] = {}
    for line in re.sub(rf"\b{uid}\b", "UID", output).splitlines():  # whole: five digits are in other numbers too
        # The numbers of one that joins a job go up from start to start.
        line = re.sub(r"^(status NS[ps]id:\t|cgroup 0::/exec-)\d+$", r"\1N", line)
        kind, _, rest = line.partition(" ")
        if kind == "mountinfo":
            fields = rest.split()
            # By mount point: one that is covered is not there for the job.
            if not fields[4].startswith("/var/tmp/telehandler-test-"):  # another test's, on the host
                mounts[fields[4]] = f"mount {fields[4]} {fields[5]} {fields[fields.index('-') + 1]}"
        elif kind != "status" or rest.split(":")[0] in _STATUS.split():
            lines.add(line)
    # Of a job that was killed half way, a mount that another covers may be the last that was told.
    return lines | set(mounts.values()) if "end" in lines else lines


_FOR_MEMORY = {"mmap", "mremap", "munmap", "brk", "madvise"}


@contextmanager
def _traced_helper(policy: Path, code: Path = ROOT, stdio: int = 0, joins: bool = False) -> Iterator[TracedHelper]:
    traced = TracedHelper(policy, code, stdio, joins)
    try:
        yield traced
    finally:
        traced.close()


@pytest.mark.parametrize("error", [errno.ENOMEM, errno.EINTR], ids=errno.errorcode.get)
@pytest.mark.parametrize("role", ROLES)
def test_s34_a_fault_at_any_system_call_of_a_start_leaves_nothing(
    policy: Path, code: Path, role: str, error: int
) -> None:
    with _traced_helper(policy, code) as traced:
        clean = traced.start()
        assert clean
        assert "end" in clean
        calls = traced.tracer.calls[role]
    index, failed = 0, 0
    while index < len(calls):
        with _traced_helper(policy, code) as traced:
            while index < len(calls) and not traced.tracer.ended():
                seen = traced.start((role, index, error))
                # A job that did start may have been killed early, but what it saw is what every job sees.
                assert seen is None or seen <= clean, (traced.tracer.failed, index, seen - clean)
                failed += bool(traced.tracer.failed)
                index += 1
    # After a call for memory has failed, the allocator makes no more of them: later starts are so many calls shorter.
    assert failed > sum(name not in _FOR_MEMORY for name in calls) * 0.9


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("stdio", "joins"), [(Stdio.TERMINAL, False), (Stdio.STDIN, True), (Stdio.TERMINAL, True)])
def test_s34_nor_with_input_a_terminal_or_a_job_to_join(policy: Path, role: str, stdio: Stdio, joins: bool) -> None:
    """Every call of a start of which these make another fails once."""
    with _traced_helper(policy, stdio=stdio, joins=joins) as traced:
        clean = traced.start()
        assert clean
        assert any("end" in line for line in clean)
        calls = traced.tracer.calls[role]
    index, failed = 0, 0
    while index < len(calls):
        with _traced_helper(policy, stdio=stdio, joins=joins) as traced:
            while index < len(calls) and not traced.tracer.ended():
                seen = traced.start((role, index, errno.ENOMEM))
                # Of a job that was killed half way, a mount that another covers may be the last that it told.
                told = traced.tracer.failed, index, seen and seen - clean
                assert seen is None or traced.tracer.ended() or seen <= clean, told
                failed += bool(traced.tracer.failed)
                index += 1
    assert failed > len(calls) // 2


def test_s18_a_step_of_the_confinement_that_fails_ends_the_start(policy: Path, code: Path) -> None:
    steps = "dup2 unshare open_tree mount_setattr move_mount pivot_root umount2 mount mknodat sethostname prlimit64 "
    steps += "fchown sched_setaffinity prctl setgroups setresgid setresuid keyctl capset openat"
    with _traced_helper(policy, code) as traced:
        traced.start()
        calls, main = traced.tracer.calls["init"], traced.tracer.calls["main"]
        # The last of each name, but for what the compiled init does: that begins with prctl.
        program = calls.index("execveat") + 1 if code == ROOT else calls.index("clone")
        last = [program - 1 - calls[program - 1 :: -1].index(name) for name in steps.split()]
        rest = [program - 1, *range(program, calls.index("fork") + 1)] if code == ROOT else [program]
        for index in [*last, *rest]:
            assert traced.start(("init", index, errno.EPERM)) is None, calls[index]
            assert traced.tracer.failed == calls[index]
            assert "execve" not in traced.tracer.calls["main"]
        for index in range(main.index("execve")):
            if main[index] in ("setsid", "chdir", "getcwd", "rt_sigaction", "rt_sigprocmask"):
                assert traced.start(("main", index, errno.EPERM)) is None, main[index]
                assert "execve" not in traced.tracer.calls["main"]


def test_s24_nothing_that_is_in_the_way_is_left_there(policy: Path, code: Path) -> None:
    """An error of finding or detaching what is to go ends the start, whichever it is."""
    with _traced_helper(policy, code) as traced:
        traced.start()
        calls = traced.tracer.calls["init"]
        indices = [index for index, name in enumerate(calls) if name in ("umount2", "openat2")]
        assert len(indices) > 10
        for index in indices:
            assert traced.start(("init", index, errno.EIO)) is None, (calls[index], index)


def test_a_step_that_fails_before_the_fds_are_in_their_places_is_told_too(policy: Path, code: Path) -> None:
    with _traced_helper(policy, code) as traced:
        traced.tracer.watch(("init", "setsid", errno.EPERM))
        traced.helper.send(Type.START, 7, **_START)
        assert traced.tracer.until_message()
        told = traced.helper.receive()[0].fields
        assert (told["stage"], told["errno"]) == (wire.Stage.CLONE, errno.EPERM)


def test_s17_groups_gid_and_uid_go_in_that_order_and_are_read_back(policy: Path, code: Path) -> None:
    with _traced_helper(policy, code) as traced:
        status = (traced.proc / "status").read_text()
        traced.start()
        calls = traced.tracer.calls["init"]
    order = "setgroups setresgid setresuid keyctl capset prctl read setuid".split()
    after = 0
    for name in [*order, "execveat" if code == ROOT else "clone"]:
        after = calls.index(name, after) + 1
    assert not {"setresuid", "setresgid", "capset"} & set(calls[after:])
    assert f"CapBnd:\t{'0' * 16}\n" in status  # what a job inherits


def test_s16_every_process_is_born_in_the_jobs_cgroup(policy: Path) -> None:
    with _traced_helper(policy) as traced:
        traced.start()
        calls, born = traced.tracer.calls["helper"], traced.tracer.born
        cgroup = f"telehandler.{traced.helper.process.pid}/job-1"
    assert len(born) == 2  # init and main
    assert all(line.startswith("0::/") and line.endswith(f"/{cgroup}") for line in born), born
    # Its limits are written before: no file of the cgroup is opened after the clone, until the job is reaped.
    clone = calls.index("clone3")
    assert calls.index("mkdir") < clone
    assert "openat" not in calls[clone : calls.index("wait4")]


def test_s35_each_fork_ends_in_exec_or_exit(policy: Path, code: Path) -> None:
    """The init that is told to end at its last step, and a main process whose exec fails, leave by _exit."""
    with _traced_helper(policy, code) as traced:
        traced.start()
        assert traced.tracer.calls["init"][-1] == "exit_group"
        assert traced.tracer.calls["main"][-1] == "execve"
        traced.tracer.watch()
        traced.helper.send(Type.START, 7, **(_START | {"argv": [b"/no/such"]}))
        assert traced.tracer.until_message()
        assert traced.helper.receive()[0].fields["stage"] == wire.Stage.EXEC
        assert traced.tracer.calls["main"][-3:] == ["execve", "write", "exit_group"]
