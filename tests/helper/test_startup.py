"""The helper's start and its keeper: options, what is refused and with which status, what a keeper goes on after."""

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.checkout import ROOT
from support.helper_copy import helper_copy
from support.helper_driver import VIOLATION, Helper
from support.helper_startup import ISOLATED_PYTHON, helper_command, run_helper, startup_outcome
from support.policies import policy_text, write_policy
from support.processes import alive, descendants
from support.wait import DEADLINE_S, wait_until

from helper import policy as rules
from helper import wire
from helper.wire import Type, WireError

pytestmark = pytest.mark.usefixtures("as_root")
HELPER = (*ISOLATED_PYTHON, str(ROOT / "helper"))
EXIT_SETUP, EXIT_AGAIN = 125, os.EX_TEMPFAIL
NOBODY = 65534


@pytest.mark.parametrize(
    "options",
    [
        ("--policy",),
        ("--policy", "/x", "--cgroup-root"),
        ("--policy", "relative"),
        ("--cgroup-root", "./x", "--policy", "/x"),
        ("--other", "/x"),
        ("/x", "--policy"),
        ("--policy", "/x", "--other", "/x"),
    ],
)
def test_options_that_are_none(options: tuple[str, ...]) -> None:
    status, said = startup_outcome(*HELPER, *options)
    assert (status, "usage: telehandler-helper [--cgroup-root DIR] [--policy FILE]" in said) == (EXIT_SETUP, True)


def test_a_helper_file_does_not_stand_in_for_the_standard_library(policy: Path, place: Path) -> None:
    code = helper_copy(place, "with a tomllib")
    (code / "helper" / "tomllib.py").write_text("raise OSError('loaded')\n")
    assert startup_outcome(*helper_command(code, policy)) == (0, "")


def test_who_is_not_root_cannot_start_it(policy: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        user: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        status, said = run_helper(theirs.fileno(), *helper_command(ROOT, policy), **user)
    assert (status, "must run as root" in said) == (EXIT_SETUP, True)


def test_another_machine_is_refused(policy: Path) -> None:
    status, said = startup_outcome("setarch", "i686", *helper_command(ROOT, policy))
    assert (status, "this machine is i686; the helper knows x86_64 only" in said) == (EXIT_SETUP, True)


def test_a_limit_that_root_may_not_raise_is_named(policy: Path) -> None:
    limited = ["prlimit", "--cpu=1000:1000", "setpriv", "--bounding-set=-sys_resource"]
    status, said = startup_outcome(*limited, *helper_command(ROOT, policy))
    assert (status, "a hard limit (ulimit -H) cannot be raised by root here" in said) == (EXIT_SETUP, True)


def test_a_socket_whose_maker_has_gone_is_refused(policy: Path) -> None:
    """Nobody's end could be waited for."""
    channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    make = "import socket, sys; pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET); "
    make += "socket.send_fds(socket.socket(fileno=0), [b'.'], [one.fileno() for one in pair])"
    with channel, theirs:
        subprocess.run([sys.executable, "-c", make], stdin=theirs.fileno(), check=True)
        _, fds, _, _ = socket.recv_fds(channel, 1, 2)
    try:
        status, said = run_helper(fds[0], *helper_command(ROOT, policy))
    finally:
        for fd in fds:
            os.close(fd)
    assert (status, "is not to be seen from here" in said) == (EXIT_SETUP, True)


def test_no_id_of_the_callers_stays(policy: Path) -> None:
    """As by a setuid wrapper, whose real ids are its user's."""
    spoil = "import os, sys; os.setgroups([11, 12]); os.setresgid(13, 14, 15); os.setresuid(65534, 0, 0); "
    spoil += "os.execv(sys.argv[1], sys.argv[1:])"
    with Helper(policy, command=[sys.executable, "-c", spoil, *helper_command(ROOT, policy)]) as helper:
        status = Path(f"/proc/{helper.process.pid}/status").read_text()
        for name, ids in (("Uid", ["0"] * 4), ("Gid", ["0"] * 4), ("Groups", [])):
            assert status.partition(f"\n{name}:")[2].partition("\n")[0].split() == ids, name


@pytest.fixture
def full_cgroup(bare_cgroup: Path) -> Iterator[Path]:
    """One that takes no more directories, for a while."""
    (bare_cgroup / "cgroup.max.descendants").write_text("0")
    yield bare_cgroup
    (bare_cgroup / "cgroup.max.descendants").write_text("max")


def test_what_may_pass_has_a_status_of_its_own(policy: Path, full_cgroup: Path) -> None:
    status, said = startup_outcome(*helper_command(ROOT, policy, "--cgroup-root", str(full_cgroup)))
    assert (status, os.strerror(errno.EAGAIN) in said) == (EXIT_AGAIN, True)


# What no test can have the kernel do for real: main alone, in this process.


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Any:
    """helper/__main__.py as a module, whose parts a test replaces."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["helper"])
    from helper import __main__ as module

    return module


def _raise(error: Exception) -> Any:
    def raising(*_: object) -> None:
        raise error

    return raising


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (MemoryError(), EXIT_AGAIN, "out of memory"),
        (OSError(errno.ENOMEM, "none left"), EXIT_AGAIN, "[Errno 12] none left"),
        (OSError(errno.EPERM, "not here"), EXIT_SETUP, "[Errno 1] not here"),
        (rules.SetupError("no such thing"), EXIT_SETUP, "no such thing"),
    ],
)
def test_what_keeps_it_from_starting(
    main: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    error: Exception,
    status: int,
    said: str,
) -> None:
    monkeypatch.setattr(main, "_leave_caller", _raise(error))
    assert main.main() == status
    assert capfd.readouterr() == ("", f"telehandler-helper: {said}\n")


@pytest.mark.parametrize("error", [MemoryError("none"), OSError("none"), WireError("none")])
def test_what_ends_it_while_it_runs(
    main: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: Exception
) -> None:
    class Monitor:
        def __init__(self, *_: object) -> None:
            self.run = _raise(error)

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    monkeypatch.setattr(main, "_leave_caller", lambda: 0)
    monkeypatch.setattr(main.confine, "drop_bounding_set", lambda: None)  # ours would be gone for good
    monkeypatch.setattr(main, "_set_up", lambda _: (theirs, rules.parse("", ""), 0))
    monkeypatch.setattr(main, "Monitor", Monitor)
    with ours, theirs:
        assert main.main() == VIOLATION
    said = f"telehandler-helper: every job was killed: {type(error).__name__}: none\n"
    assert capfd.readouterr() == ("", said)


# The keeper


@contextmanager
def _keeper(*command: str) -> Iterator[tuple["subprocess.Popen[bytes]", socket.socket]]:
    """A keeper and the server's end of its socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.settimeout(DEADLINE_S)
    with theirs:
        keeper = subprocess.Popen(command, stdin=theirs.fileno(), cwd="/", stderr=subprocess.PIPE)
    with keeper, ours:
        yield keeper, ours


def _next_helper(control: socket.socket) -> socket.socket:
    """The socket of the keeper's next helper."""
    _, fds, _, _ = socket.recv_fds(control, 16, 1)
    link = socket.socket(fileno=fds[0])
    link.settimeout(DEADLINE_S)
    return link


def _greet(link: socket.socket) -> None:
    link.send(wire.pack(Type.HELLO, 1))
    assert wire.unpack(link.recv(wire.MAX_MESSAGE)).type is Type.WELCOME


def _shut_down(link: socket.socket, keeper: "subprocess.Popen[bytes]") -> None:
    """Its helper serves, and ends with the keeper when it is asked to."""
    _greet(link)
    link.send(wire.pack(Type.SHUTDOWN, 2))
    assert keeper.wait(DEADLINE_S) == 0


def _kill_helper(keeper: "subprocess.Popen[bytes]", link: socket.socket) -> None:
    (pid,) = descendants(keeper.pid)
    os.kill(pid, signal.SIGKILL)
    assert link.recv(1) == b""
    link.close()


def test_a_keeper_starts_a_helper_for_each_byte(policy: Path) -> None:
    with _keeper(*helper_command(ROOT, policy)) as (keeper, control):
        control.send(b"LL")
        for _ in range(2):
            link = _next_helper(control)
            _greet(link)
            _kill_helper(keeper, link)
        control.close()
        assert keeper.wait(DEADLINE_S) == 0


def test_a_keepers_helper_gets_no_fd_even_before_it_is_there(policy: Path) -> None:
    """SO_PASSRIGHTS, of Linux 6.16; elsewhere what is sent is discarded."""
    with _keeper(*helper_command(ROOT, policy)) as (_, control):
        control.send(b"L")
        with _next_helper(control) as link:
            refuses = True
            try:
                control.setsockopt(socket.SOL_SOCKET, 83, 0)
            except OSError:
                refuses = False
            refused = False
            try:
                socket.send_fds(link, [wire.pack(Type.HELLO, 1)], [0])
            except PermissionError:
                refused = True
            assert refused == refuses


def test_a_keeper_ends_with_the_server_whoever_has_its_helpers_socket(policy: Path) -> None:
    with _keeper(*helper_command(ROOT, policy)) as (keeper, control):
        control.send(b"L")
        with _next_helper(control) as link:
            _greet(link)
            (pid,) = descendants(keeper.pid)
            control.close()
            assert keeper.wait(DEADLINE_S) == 0
            wait_until("the helper has ended", lambda: not alive(pid))


def test_a_keeper_ends_when_its_helper_ends_by_itself(policy: Path) -> None:
    with _keeper(*helper_command(ROOT, policy)) as (keeper, control):
        control.send(b"L")
        with _next_helper(control) as link:
            _shut_down(link, keeper)


def test_a_keeper_goes_on_after_a_policy_that_was_bad_for_a_while_but_not_when_it_always_was(place: Path) -> None:
    path = write_policy(place, "changing", policy_text())
    with _keeper(*helper_command(ROOT, path)) as (keeper, control):
        for good in (True, False, True):
            path.write_text(policy_text() if good else "nonsense")
            control.send(b"L")
            link = _next_helper(control)
            if good:
                _greet(link)
                _kill_helper(keeper, link)
            else:
                assert link.recv(1) == b""
                link.close()
        assert keeper.poll() is None
    with _keeper(*helper_command(ROOT, path)) as (keeper, control):
        # Its own policy was good: it waits for the server, in recvfrom from fd 0.
        proc = Path(f"/proc/{keeper.pid}/syscall")
        wait_until("it has started", lambda: proc.read_text().startswith("45 0x0 "))
        path.write_text("nonsense")
        control.send(b"L")
        _next_helper(control).close()
        assert keeper.wait(DEADLINE_S) == EXIT_SETUP


def test_a_keeper_goes_on_when_a_helper_cannot_start_now(policy: Path, full_cgroup: Path) -> None:
    with _keeper(*helper_command(ROOT, policy, "--cgroup-root", str(full_cgroup))) as (keeper, control):
        control.send(b"L")
        with _next_helper(control) as link:
            assert link.recv(1) == b""
        (full_cgroup / "cgroup.max.descendants").write_text("max")
        control.send(b"L")
        with _next_helper(control) as link:
            _shut_down(link, keeper)


def test_a_keeper_goes_on_when_there_is_no_process_to_be_had(policy: Path) -> None:
    """The first clone fails, as at a limit of processes."""
    calls = "clone,clone3,vfork"
    strace = f"strace -qq -o /dev/null -e trace={calls} -e inject={calls}:error=EAGAIN:when=1".split()
    with _keeper(*strace, *helper_command(ROOT, policy)) as (tracer, control):
        control.send(b"L")
        with _next_helper(control) as link:
            assert link.recv(1) == b""
        control.send(b"L")
        with _next_helper(control) as link:
            _shut_down(link, tracer)
        assert tracer.stderr is not None
        said = f"telehandler-helper: the helper cannot be started now: {os.strerror(errno.EAGAIN)}\n"
        assert tracer.stderr.read().decode() == said
