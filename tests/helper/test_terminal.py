"""A job's terminal: of its own devpts, the controlling one of its session, its own user's."""

import contextlib
import fcntl
import os
import select
import signal
import struct
import termios
from pathlib import Path

import pytest
from support.helper_driver import Helper, Job
from support.wait import DEADLINE_S, wait_until

from helper.wire import Stdio, Type

pytestmark = pytest.mark.usefixtures("as_root")


def _until(fd: int, wanted: bytes) -> bytes:
    seen = b""
    while wanted not in seen:
        assert select.select([fd], [], [], DEADLINE_S)[0], f"only {seen!r}"
        seen += os.read(fd, 4096)
    return seen


def _to_end(fd: int) -> bytes:
    """What a terminal's master tells: at the end of all who have it open, EIO."""
    seen = b""
    with contextlib.suppress(OSError):
        while select.select([fd], [], [], DEADLINE_S)[0]:
            seen += os.read(fd, 4096)
        raise AssertionError(f"no end after {seen!r}")
    return seen


def _run(helper: Helper, script: str) -> bytes:
    job = helper.start("sh", "-c", script, stdio=Stdio.TERMINAL)
    seen = _to_end(job.stdout)
    assert helper.exited(job)["exit_code"] == 0, seen
    assert helper.request(Type.RELEASE, handle=job.handle).type is Type.DONE
    job.close()
    return seen


def test_all_three_are_one_terminal_of_the_jobs_own(policy: Path, code: Path) -> None:
    with Helper(policy, code=code) as helper:
        assert _run(helper, "tty; tty <&1; tty <&2; ls /dev/pts") == b"/dev/pts/0\r\n" * 3 + b"0  ptmx\r\n"
        owner = _run(helper, "stat -c '%u %a' $(tty); id -u")
        assert owner.split()[0] == owner.split()[2]


def test_it_is_the_controlling_one_of_a_session_of_the_commands_own(policy: Path, code: Path) -> None:
    with Helper(policy, code=code) as helper:
        # tpgid, session and process group of the command itself, in /proc/PID/stat.
        assert _run(helper, "cut -d' ' -f5,6,8 /proc/$$/stat; echo told >/dev/tty") == b"2 2 2\r\ntold\r\n"


def test_what_is_typed_comes_and_control_c_interrupts(policy: Path, code: Path) -> None:
    with Helper(policy, code=code) as helper:
        job = helper.start(
            "sh", "-c", "trap 'echo interrupted; exit 7' INT; read line; echo got $line; read more", stdio=4
        )
        os.write(job.stdin, b"hello\n")
        _until(job.stdout, b"got hello")
        os.write(job.stdin, b"\x03")
        assert b"interrupted" in _to_end(job.stdout)
        assert helper.exited(job)["exit_code"] == 7


def test_its_size_is_what_the_master_is_told(policy: Path) -> None:
    with Helper(policy) as helper:
        job = helper.start(
            "sh", "-c", "stty size; trap 'stty size; exit' WINCH; echo ready; while :; do read x; done", stdio=4
        )
        _until(job.stdout, b"ready")
        fcntl.ioctl(job.stdout, termios.TIOCSWINSZ, struct.pack("4H", 33, 101, 0, 0))
        assert b"33 101" in _until(job.stdout, b"33 101")


def test_its_end_comes_at_the_jobs_end_only(policy: Path, code: Path) -> None:
    with Helper(policy, code=code) as helper:
        script = "trap 'echo again >/dev/tty; exit' USR1; exec </dev/null >/dev/null 2>&1; while :; do sleep 0.01; done"
        job = helper.start("sh", "-c", script, stdio=Stdio.TERMINAL)
        fds = Path(f"/proc/{helper.host_pids(job)[1]}/fd")
        wait_until("its outputs are closed", lambda: os.readlink(fds / "2") == "/dev/null")
        assert not select.select([job.stdout], [], [], 0)[0]
        helper.request(Type.SIGNAL, handle=job.handle, signal=signal.SIGUSR1)
        assert _to_end(job.stdout) == b"again\r\n"


def test_a_process_left_in_the_background_that_holds_it_ends_with_the_job(policy: Path, code: Path) -> None:
    with Helper(policy, code=code) as helper:
        assert _run(helper, "setsid sleep 1000 & echo $!").strip().isdigit()


def test_a_restarted_api_gets_it_again(policy: Path) -> None:
    with Helper(policy) as helper:
        job = helper.start("cat", stdio=Stdio.TERMINAL)
        job.close()
        helper.send(Type.HELLO)
        helper.receive()
        adopted, fds = helper.receive()
        job = Job(adopted.fields["handle"], adopted.fields["uid"], *fds)
        os.write(job.stdin, b"still\n")
        assert _until(job.stdout, b"still\r\nstill\r\n") == b"still\r\nstill\r\n"
