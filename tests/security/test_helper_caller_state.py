"""Of whoever starts the helper nothing stays: fds, signals, timers, limits, umask, directory (S42)."""

import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.helper_driver import Helper
from support.helper_startup import helper_command, run_helper
from support.wait import DEADLINE_S

from helper import wire
from helper.wire import Type

pytestmark = pytest.mark.usefixtures("as_root")
EXIT_SETUP = 125
MIB = 1 << 20
# What starts a command in the worst of states: argv after it is the command. Soft limits alone are low, because root
# cannot raise a hard one everywhere.
SPOIL = """
import os, resource, signal, sys
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
    signal.setitimer(timer, 0.005, 0.005)
os.kill(os.getpid(), signal.SIGUSR1)
os.umask(0o777)
os.mkdir("gone")
os.chdir("gone")
os.rmdir("../gone")
for name, soft in (("DATA", 64), ("AS", 512), ("FSIZE", 0), ("STACK", 1), ("MEMLOCK", 0), ("NPROC", 0), ("CPU", 1)):
    kind = getattr(resource, "RLIMIT_" + name)
    resource.setrlimit(kind, (soft << (0 if name == "CPU" else 20), resource.getrlimit(kind)[1]))
resource.setrlimit(resource.RLIMIT_NOFILE, (8, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
os.closerange(1, 3)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture(scope="module")
def wrapper(place: Path) -> Path:
    """The setuid wrapper; run by root, it needs no group."""
    built = place / "wrapper"
    source = ROOT / "contrib" / "telehandler-helper.c"
    subprocess.run(["gcc", f'-DHELPER="{ROOT}/helper"', "-o", str(built), str(source)], check=True)
    return built


@pytest.fixture
def spoiled(policy: Path, tmp_path: Path) -> Iterator[Helper]:
    command = [sys.executable, "-c", SPOIL, *helper_command(ROOT, policy)]
    with Helper(policy, command=command, cwd=tmp_path) as helper:
        yield helper


def _check_state(pid: int) -> None:
    """Of a helper, that it is as if started by the best of callers."""
    text = Path(f"/proc/{pid}/status").read_text()
    status = {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    ignored = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP, signal.SIGPIPE, signal.SIGXFSZ)
    assert int(status["SigBlk"], 16) == 0
    assert int(status["SigIgn"], 16) & (1 << 31) - 1 == sum(1 << number - 1 for number in ignored)
    assert int(status["SigCgt"], 16) == 1 << signal.SIGTERM - 1
    assert status["Umask"] == "0022"
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    for fd in (1, 2):
        assert os.path.exists(f"/proc/{pid}/fd/{fd}")
    assert "/dev/null" not in [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if int(path.name) > 2]
    for name in ("DATA", "AS", "FSIZE", "CPU", "RTTIME"):
        assert resource.prlimit(pid, getattr(resource, f"RLIMIT_{name}")) == (resource.RLIM_INFINITY,) * 2, name
    assert resource.prlimit(pid, resource.RLIMIT_STACK) == (8 * MIB, resource.RLIM_INFINITY)
    assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)
    for name in ("NPROC", "MEMLOCK", "NOFILE", "SIGPENDING"):  # what root may raise depends on the machine
        soft, hard = resource.prlimit(pid, getattr(resource, f"RLIMIT_{name}"))
        assert soft == hard, name


def test_s42_nothing_of_a_callers_state_stays(spoiled: Helper) -> None:
    _check_state(spoiled.process.pid)
    assert spoiled.run("sh", "-c", "exit 3").facts["exit_code"] == 3  # a SIGCHLD that is ignored would hide it
    assert spoiled.run("sh", "-c", "kill -ALRM $$").facts["signal"] == signal.SIGALRM


def test_s42_a_timer_of_the_callers_ends_nothing(spoiled: Helper) -> None:
    """The job outlives all three by far: a helper whose alarm had rung would be gone."""
    ended = spoiled.run("sh", "-c", "sleep 1.2; echo late")
    assert ended.stdout == b"late\n"


def test_s42_a_job_has_nothing_of_it_either(spoiled: Helper) -> None:
    seen = spoiled.probe(
        "import signal\n"
        "text = open('/proc/self/status').read()\n"
        "status = dict(line.split(':', 1) for line in text.splitlines())\n"
        "tell([int(status['SigBlk'], 16), status['Umask'].strip(), signal.getitimer(signal.ITIMER_REAL)[0]])"
    )
    assert seen == [0, "0022", 0.0]


def test_s42_the_keeper_and_its_helper_have_nothing_of_it(policy: Path, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.settimeout(DEADLINE_S)
    command = [sys.executable, "-c", SPOIL, *helper_command(ROOT, policy)]
    with theirs:
        keeper = subprocess.Popen(command, stdin=theirs.fileno(), cwd=tmp_path)
    with keeper, ours:
        ours.send(b"L")
        _, fds, _, _ = socket.recv_fds(ours, 16, 1)
        with socket.socket(fileno=fds[0]) as link:
            link.settimeout(DEADLINE_S)
            link.send(wire.pack(Type.HELLO, 1))
            assert wire.unpack(link.recv(wire.MAX_MESSAGE)).type is Type.WELCOME
            _check_state(keeper.pid)
            (helper,) = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children").read_text().split()
            _check_state(int(helper))
        ours.close()
        assert keeper.wait(DEADLINE_S) == 0  # a SIGCHLD that is ignored would fail its wait


def test_s42_the_wrapper_leaves_nothing_of_it(policy: Path, wrapper: Path, tmp_path: Path) -> None:
    """After python has started anew: what a process could not start with is the wrapper's to reset."""
    low = SPOIL.replace('("DATA", 64)', '("DATA", 4)').replace('("AS", 512)', '("AS", 8)')
    with Helper(policy, command=[sys.executable, "-c", low, str(wrapper)], cwd=tmp_path) as helper:
        _check_state(helper.process.pid)


@pytest.mark.parametrize("name", ["DATA", "AS", "STACK", "FSIZE", "CPU"])
def test_s42_a_hard_limit_never_leaves_a_process_that_spins(policy: Path, wrapper: Path, name: str) -> None:
    """It is raised, or where root may not do that the wrapper says so: at once, and in one line."""
    kind = getattr(resource, f"RLIMIT_{name}")
    value = 1 if name == "CPU" else 4 * MIB
    limited = f"import os, resource; resource.setrlimit({int(kind)}, ({value},) * 2); os.execv({str(wrapper)!r}, ['w'])"
    helper = Helper(policy, hello=False, command=[sys.executable, "-c", limited])
    with helper:
        helper.send(Type.HELLO)
        raised = False
        try:
            raised = bool(helper.sock.recv(wire.MAX_MESSAGE))
        except ConnectionError:
            pass
        if raised:
            _check_state(helper.process.pid)
        else:
            status, said = helper.end()
            assert (status, said.count("\n"), "ulimit" in said) == (EXIT_SETUP, 1, True)


def test_s42_an_fd_0_whose_end_does_not_show_is_refused(policy: Path) -> None:
    command = helper_command(ROOT, policy)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        status, said = run_helper(theirs.fileno(), *command)
        assert (status, "not a connected socket" in said) == (EXIT_SETUP, True)
    for kind in (socket.SOCK_SEQPACKET, socket.SOCK_STREAM):
        with socket.socket(socket.AF_UNIX, kind) as listening:
            listening.bind(f"\0test-of-telehandler-{os.getpid()}-{int(kind)}")
            listening.listen()
            status, said = run_helper(listening.fileno(), *command)
            assert (status, "not a connected socket" in said) == (EXIT_SETUP, True)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as tcp:
        status, said = run_helper(tcp.fileno(), *command)
        assert status == EXIT_SETUP


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_s42_closed_standard_fds_are_no_files_of_the_helpers(policy: Path, closed: tuple[int, ...]) -> None:
    """With fd 2 closed, the helper's socket must not be where its messages go."""
    code = f"import os; [os.close(fd) for fd in {closed}]; os.execv({helper_command(ROOT, policy)[0]!r}, "
    code += f"{helper_command(ROOT, policy)!r})"
    with Helper(policy, hello=False, command=[sys.executable, "-c", code]) as helper:
        if 0 in closed:
            assert helper.end()[0] == EXIT_SETUP
            return
        assert helper.request(Type.HELLO).type is Type.WELCOME
        for fd in closed:
            assert os.readlink(f"/proc/{helper.process.pid}/fd/{fd}") == "/dev/null"
        assert helper.run("sh", "-c", "echo a message >&2").stderr == b"a message\n"
