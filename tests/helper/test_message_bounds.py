"""Messages at their bounds: what the kernel takes is taken, what is beyond is told, and no answer is too long."""

import errno
import os
import signal
import time
from pathlib import Path

import pytest
from support.helper_driver import PYTHON, TAG, Helper, Job, read_line
from support.wait import wait_until

from helper import wire
from helper.wire import Stage, Type

pytestmark = pytest.mark.usefixtures("as_root")
MAX_ARG_STRLEN = 128 * 1024  # of execve(2), with the NUL


def test_one_argument_may_be_as_long_as_exec_takes(policy: Path) -> None:
    assert wire.MAX_STRING == MAX_ARG_STRLEN - 1
    script = b"#" * (wire.MAX_STRING - 8) + b"\necho ok"
    with Helper(policy) as helper:
        assert len(script) == wire.MAX_STRING
        assert helper.run("sh", "-c", script).stdout == b"ok\n"
        long = [b"LONG=" + b"x" * (wire.MAX_STRING - 5)]
        assert helper.run("/bin/sh", "-c", "echo ${#LONG}", env=long).stdout == b"%d\n" % (wire.MAX_STRING - 5)


def test_all_together_may_be_as_long_as_a_datagram(policy: Path) -> None:
    """On a socket whose buffer nobody has changed: to the last byte."""
    words = [os.fsencode(word) for word in (*PYTHON, "import sys; print(sum(map(len, sys.argv)))")]
    fields = dict.fromkeys(wire.LIMITS.split(), 0) | {"stdio": 0, "parent": 0}
    rest = wire.pack(Type.START, 7, tag=TAG, place=[b"", b""], env=[], argv=[*words, b"", b"y" * 100_000], **fields)
    spare = wire.MAX_MESSAGE - len(rest)
    with Helper(policy) as helper:
        ended = helper.run(*words, b"x" * spare, b"y" * 100_000, env=[])
        assert int(ended.stdout) == len("-c") + spare + 100_000
        assert spare + 100_000 >= 200_000
        assert helper.run("sh", "-c", "echo $#", *["x"] * (wire.MAX_COUNT - 3)).stdout == b"%d\n" % (wire.MAX_COUNT - 4)
        variables = [b"N%d=" % number for number in range(wire.MAX_COUNT)]
        assert helper.run("/usr/bin/env", env=variables).stdout.count(b"\n") == wire.MAX_COUNT


@pytest.mark.parametrize("kind", [Type.CHECK, Type.START])
@pytest.mark.parametrize("length", [4096, 32_765, wire.MAX_STRING])
def test_a_directory_that_is_too_long_is_told(policy: Path, kind: Type, length: int) -> None:
    """In CHECK's answer it is part of a longer string, which must not pass the wire's bound."""
    with Helper(policy) as helper:
        answer, _ = helper.request_start("true", kind=kind, place=[b"", b"/".ljust(length, b"x")])
        assert (answer.type, answer.fields["stage"]) == (Type.ERROR, Stage.CHDIR)
        assert answer.fields["errno"] == errno.ENAMETOOLONG
        assert helper.run("true").facts["exit_code"] == 0


def test_the_longest_directory_is_checked(policy: Path, code: Path) -> None:
    directory = b"/usr" + b"/." * 2045 + b"/"
    assert len(directory) == 4095
    with Helper(policy, code=code) as helper:
        verdict, _ = helper.request_start("true", kind=Type.CHECK, place=[b"", directory])
        assert b"cwd " + directory in verdict.fields["rows"]
        assert helper.run("sh", "-c", "pwd -P", place=[b"", directory]).stdout == b"/usr\n"


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _waiting(helper: Helper) -> Job:
    job = helper.start("sh", "-c", "trap 'echo continued' CONT; echo up; while :; do sleep 0.02; done")
    assert read_line(job.stdout) == b"up\n"
    return job


def test_sigstop_stops_the_job_and_not_its_init(policy: Path, code: Path) -> None:
    with Helper(policy, code=code) as helper:
        job = _waiting(helper)
        init, main = helper.host_pids(job)[:2]
        for _ in range(2):
            assert helper.request(Type.SIGNAL, handle=job.handle, signal=signal.SIGSTOP).type is Type.DONE
            wait_until("it has stopped", lambda: _state(main) == "T")
            wait_until("its init waits, and has not stopped", lambda: _state(init) == "S")
            assert helper.request(Type.SIGNAL, handle=job.handle, signal=signal.SIGCONT).type is Type.DONE
            assert read_line(job.stdout) == b"continued\n"
        helper.request(Type.SIGNAL, handle=job.handle, signal=signal.SIGSTOP)
        wait_until("it has stopped", lambda: _state(main) == "T")
        assert helper.request(Type.KILL, handle=job.handle).type is Type.DONE
        assert helper.finish(job).facts["killed"] == 1


@pytest.mark.parametrize("number", [number for number in range(1, wire.MAX_SIGNAL + 1) if number not in (9, 18, 19)])
def test_every_signal_arrives(policy: Path, code: Path, number: int) -> None:
    """Also those that libc keeps to itself, 32 and 33. The job says which one it got."""
    script = (
        "import ctypes\n"
        "libc = ctypes.CDLL(None)\n"
        "signals = (ctypes.c_ulong * 1)((1 << 64) - 1)\n"
        "libc.syscall(14, 0, signals, None, 8)\n"  # rt_sigprocmask: all are blocked
        "os.write(1, b'up\\n')\n"
        "print(libc.syscall(128, signals, None, None, 8))\n"  # rt_sigtimedwait
    )
    with Helper(policy, code=code) as helper:
        job = helper.start(*PYTHON, "import os\n" + script)
        assert read_line(job.stdout) == b"up\n"
        assert helper.request(Type.SIGNAL, handle=job.handle, signal=number).type is Type.DONE
        assert helper.finish(job).stdout == b"%d\n" % number


def test_a_job_with_all_its_signals_pending_costs_the_helper_nothing(policy: Path) -> None:
    """What cannot be queued is an error of that request."""
    flood = (
        "import ctypes, os, signal\n"
        "libc = ctypes.CDLL(None)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"
        "while libc.sigqueue(os.getpid(), 40, None) == 0: pass\n"
        "os.write(1, b'full\\n')\n"
        "signal.pause()\n"
    )
    with Helper(policy) as helper:
        job = helper.start(*PYTHON, flood)
        assert read_line(job.stdout) == b"full\n"
        began = time.monotonic()
        answer = helper.request(Type.SIGNAL, handle=job.handle, signal=signal.SIGSTOP)
        assert time.monotonic() - began < 10
        assert answer.type is Type.ERROR
        assert (answer.fields["stage"], answer.fields["errno"]) == (Stage.REQUEST, errno.EAGAIN)
        assert helper.request(Type.KILL, handle=job.handle).type is Type.DONE
        assert helper.finish(job).facts["killed"] == 1
