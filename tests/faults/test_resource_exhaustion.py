"""R15: file descriptors, processes and memory run out in helper and api, for real: a clear refusal, and recovery."""

import asyncio
import errno
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from support.helper_driver import TAG, Helper, read_line
from support.process_usage import cpu_ticks, highest_fd, limit_fds, process_usage
from support.raw_client import RawClient
from support.servers import Server, free_address
from support.syscall_faults import Tracer
from support.wait import wait_until

from helper import wire
from helper.wire import Stage, Type
from telehandler.jobs.helper_link import HelperLink, JobSpec, Unreceived

pytestmark = pytest.mark.usefixtures("as_root")
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def test_r15_the_helper_is_out_of_fds(policy: Path) -> None:
    """At every number of free fds: a start is refused or succeeds, running jobs end as they should, nothing stays."""
    with Helper(policy) as helper:
        pid = helper.process.pid
        helper.run("true")
        before = process_usage(pid)
        refusals = set()
        for free in range(16):
            old = helper.start("sh", "-c", "echo up; exec sleep 1000")
            other = helper.start("sh", "-c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.01; done")
            assert read_line(other.stdout) == b"up\n"
            limit_fds(pid, highest_fd(pid) + 1 + free)
            message, fds = helper.request_start("true")
            if message.type is Type.ERROR:
                refusals.add((Stage(message.fields["stage"]), message.fields["errno"]))
            else:
                for fd in fds:
                    os.close(fd)
                handle = message.fields["handle"]
                wait_until("it has ended", lambda handle=handle: _released(helper, handle))  # type: ignore[misc]
            assert helper.request(Type.KILL, handle=old.handle).type is Type.DONE
            assert helper.finish(old).facts["killed"] == 1
            assert helper.request(Type.SIGNAL, handle=other.handle, signal=15).type is Type.DONE
            assert helper.finish(other).facts["exit_code"] == 5
            limit_fds(pid, None)
            assert helper.run("echo", "again").stdout == b"again\n"
            assert process_usage(pid) == before
            assert not list(helper.cgroup.glob("job-*"))
        assert {number for _, number in refusals} == {errno.EMFILE}
        assert {stage for stage, _ in refusals} <= {Stage.CGROUP, Stage.CLONE}


def _released(helper: Helper, handle: int) -> bool:
    while not any(event.fields["handle"] == handle for event in helper.events):
        message, _ = helper.receive()
        assert message.type is Type.EXITED
        helper.events.append(message)
    return helper.request(Type.RELEASE, handle=handle).type is Type.DONE


def test_r15_a_kill_takes_no_fd_and_the_end_is_told_once_there_is_one(policy: Path) -> None:
    """With a limit below the fds that are open, not even one that is closed makes room."""
    with Helper(policy) as helper:
        job = helper.start("sleep", "1000")
        limit_fds(helper.process.pid, 5)
        assert helper.request(Type.KILL, handle=job.handle).type is Type.DONE
        wait_until("it is dead", lambda: not helper.host_pids(job))
        assert helper.start_error("true")[:2] == (Stage.CGROUP, errno.EMFILE)
        limit_fds(helper.process.pid, None)
        assert helper.finish(job).facts["killed"] == 1
        assert not list(helper.cgroup.glob("job-*"))


def _lowest_free(pid: int) -> int:
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    return min(set(range(len(used) + 1)) - used)


def test_r15_the_helpers_end_at_its_limit_of_fds_is_clean(policy: Path) -> None:
    with Helper(policy) as helper:
        job = helper.start("sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done")
        assert read_line(job.stdout) == b"up\n"
        limit_fds(helper.process.pid, _lowest_free(helper.process.pid))
        helper.sock.close()
        assert helper.end()[0] == 0
        assert not helper.cgroup.exists()
        job.close()


@pytest.mark.parametrize(
    ("call", "error", "stage"),
    [
        ("clone3", errno.EAGAIN, Stage.CLONE),
        ("clone3", errno.ENOMEM, Stage.CLONE),
        ("pipe2", errno.EMFILE, Stage.CLONE),
        ("pipe2", errno.ENFILE, Stage.CLONE),
        ("mkdir", errno.ENOSPC, Stage.CGROUP),
        ("mkdir", errno.ENOMEM, Stage.CGROUP),
        ("sendmsg", errno.ENOBUFS, None),
        ("sendmsg", errno.ENOMEM, None),
        ("sendmsg", errno.ETOOMANYREFS, None),
        ("epoll_wait", errno.EINTR, None),
    ],
    ids=lambda value: value if isinstance(value, str) else str(getattr(value, "name", errno.errorcode.get(value))),
)
def test_r15_a_call_of_the_helper_fails_once(policy: Path, call: str, error: int, stage: Stage | None) -> None:
    """A start is refused with stage and errno, or, where it can only wait, comes a moment later; nothing stays.

    EINTR at every call of a start is test_s34.
    """
    fields = dict.fromkeys(wire.LIMITS.split(), 0) | {
        "tag": TAG, "stdio": 0, "parent": 0, "place": [b"", b"/tmp"], "env": [b"PATH=/bin"], "argv": [b"/bin/true"],
    }  # fmt: skip
    with Helper(policy) as helper:
        tracer = Tracer(helper)
        before = process_usage(helper.process.pid)
        tracer.watch(("helper", call, error))
        helper.send(Type.START, 7, **fields)
        _one_life(tracer, helper, (stage, error) if stage else None)
        assert tracer.failed == call
        tracer.let_go()
        helper.send(Type.START, 7, **fields)
        _one_life(tracer, helper, None)
        assert process_usage(helper.process.pid) == before
        assert not list(helper.cgroup.glob("job-*"))
        helper.sock.shutdown(socket.SHUT_WR)
        tracer.until_ended()
        assert helper.process.returncode == 0


def _one_life(tracer: Tracer, helper: Helper, refused: tuple[Stage, int] | None) -> None:
    """A START's reply; for a job that runs, its end and release too."""
    assert tracer.until_message()
    message, fds = helper.receive()
    if refused:
        assert (message.fields["stage"], message.fields["errno"]) == refused
        return
    assert message.type is Type.STARTED, message
    assert tracer.until_message()
    assert helper.receive()[0].type is Type.EXITED
    helper.send(Type.RELEASE, 8, handle=message.fields["handle"])
    assert tracer.until_message()
    assert helper.receive()[0].type is Type.DONE
    for fd in fds:
        os.close(fd)


@pytest.fixture
def server(make_server: Callable[..., Server]) -> Iterator[Server]:
    server = make_server(listen=free_address())
    yield server
    assert server.stop() == 0


def test_r15_the_api_is_out_of_fds(server: Server) -> None:
    """Starts are refused before the helper is asked; nobody can connect, and that costs nothing; jobs write on."""
    api = server.children()["api"]
    script = "trap 'echo end; exit 3' TERM; mkfifo /tmp/f; while :; do echo $((i += 1)); read -t 0.02 x <>/tmp/f; done"
    with RawClient(server, server.ssl / "client") as caller:
        caller.start("true")
        before = process_usage(api)
        name = caller.start("bash", "-c", script).name
        for free in (0, 1, 2, 3, 5, 8, 13):
            limit_fds(api, highest_fd(api) + 1 + free)
            for _ in range(3):
                with pytest.raises(AssertionError) as raised:
                    caller.start("sleep", "1234.25")
                assert str(grpc.StatusCode.RESOURCE_EXHAUSTED) in str(raised.value)
                assert "open files" in str(raised.value)
        limit_fds(api, highest_fd(api) + 1)
        with RawClient(server, server.ssl / "client"):  # knocks
            began, ticks, size = os.times().elapsed, cpu_ticks(api), caller.job_status(name).stdout_bytes
            wait_until(
                "two seconds of output",
                lambda: caller.job_status(name).stdout_bytes > size and os.times().elapsed > began + 2,
            )
            spent = (cpu_ticks(api) - ticks) / _TICKS_A_SECOND
            assert spent < 0.5 * (os.times().elapsed - began), "a busy loop"
        assert len(list(server.cgroup.glob("job-*"))) == 1
        limit_fds(api, None)
        assert server.client("run", "--", "echo", "again").stdout == b"again\n"
        assert server.client("stop", name).returncode == 0
        done = server.client("watch", "--verify", name)
        assert (done.returncode, done.stdout.endswith(b"end\n")) == (3, True)
        lines = done.stdout.splitlines()[:-1]
        assert lines == [b"%d" % number for number in range(1, len(lines) + 1)]
        wait_until("no fd is left", lambda: process_usage(api).fds <= before.fds)
        assert process_usage(api).children == process_usage(api).zombies == 0


def test_r15_the_helpers_refusal_reaches_the_client(server: Server) -> None:
    helper = server.children()["helper"]
    assert server.client("run", "--", "true").returncode == 0
    before = process_usage(helper)
    limit_fds(helper, highest_fd(helper) + 1)
    with RawClient(server, server.ssl / "client") as caller, pytest.raises(AssertionError) as raised:
        caller.start("true")
    assert str(grpc.StatusCode.RESOURCE_EXHAUSTED) in str(raised.value)
    done = server.client("run", "--", "true")
    assert done.returncode == 125
    assert done.stderr == b"telehandler: the helper cannot start a job now: cgroup: Too many open files\n"
    limit_fds(helper, None)
    assert server.client("run", "--", "echo", "again").stdout == b"again\n"
    wait_until("nothing is left", lambda: process_usage(helper).within(before))


@pytest.mark.parametrize("room", [0, 1, 2])
def test_r15_fds_that_do_not_fit_end_one_start_not_the_link(room: int) -> None:
    """The kernel cuts the fds off (MSG_CTRUNC) while the message is received: the job is the caller's to kill."""
    # In a process of its own, where no other thread makes or takes room.
    here = Path(__file__)
    code = f"import {here.stem} as test; test.receive_with_room({room})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr


def receive_with_room(room: int) -> None:
    """For as many fds."""

    async def run() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        link = HelperLink(ours)
        start = asyncio.create_task(link.start(JobSpec(bytes(16), "", b"", [b"x"], [], {})))
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        request = wire.unpack(await loop.sock_recv(theirs, wire.MAX_MESSAGE))
        before = sorted(os.listdir("/proc/self/fd"))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        probe = os.dup(2)
        os.close(probe)
        spare = [os.dup(2) for _ in range(highest_fd(os.getpid()) - probe)]  # no gap below the limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest_fd(os.getpid()) + room, hard))
        try:
            datagram = wire.pack(Type.STARTED, request.request_id, 3, handle=77, uid=1)
            socket.send_fds(theirs, [datagram], [2, 2, 2])
            with pytest.raises(Unreceived) as raised:
                await start
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in spare:
                os.close(fd)
        assert raised.value.handle == 77
        assert sorted(os.listdir("/proc/self/fd")) == before
        assert not link.closed
        kill = asyncio.create_task(link.kill(77))
        request = wire.unpack(await loop.sock_recv(theirs, wire.MAX_MESSAGE))
        assert (request.type, request.fields["handle"]) == (Type.KILL, 77)
        theirs.send(wire.pack(Type.DONE, request.request_id))
        await kill
        link.close()
        theirs.close()

    asyncio.run(run())


# Not write: grpc wakes itself by one to a pipe that does not block, which no signal interrupts.
_CALLS = "recvmsg sendmsg sendto splice pwrite64 pread64 epoll_wait read openat accept4".split()


@pytest.mark.parametrize("call", _CALLS)
def test_r15_interrupted_calls_of_the_api_are_harmless(server: Server, call: str) -> None:
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-p", str(server.children()["api"])]
    with subprocess.Popen([*command, "-e", f"inject={call}:error=EINTR:when=3+7"]) as strace:
        try:
            for _ in range(2):
                done = server.client("run", "--", "sh", "-c", "seq 1 20000; exit 4")
                assert (done.returncode, len(done.stdout)) == (4, 108894), done.stderr
        finally:
            strace.terminate()
    assert server.client("run", "--", "echo", "again").stdout == b"again\n"
