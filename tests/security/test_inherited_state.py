"""Whatever state the helper is started in, a job's is the same, and the helper's mounts and memory are its own."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.helper_driver import Helper
from support.servers import Server

pytestmark = pytest.mark.usefixtures("as_root")
# Every signal that can be ignored is, those that libc keeps to itself (32, 33) too; some are blocked besides.
IGNORING = """#!/usr/bin/python3 -I
import ctypes, os, signal, struct, sys
libc = ctypes.CDLL(None)
for number in {1, 2, 3, 10, 12, 13, 15, 20, 24, 25, 32, 33, 34, 64}:
    assert libc.syscall(13, number, struct.pack("4Q", 1, 0, 0, 0), None, 8) == 0
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGHUP})
os.execv("/usr/bin/python3", ["python3", *sys.argv[1:]])
"""
# A machine whose mounts are shared, as systemd makes them: here in a namespace of the helper's own.
SHARED_MOUNTS = '#!/bin/sh\nexec unshare --mount --propagation shared /usr/bin/python3 "$@"\n'
ServerFactory = Callable[..., Server]
WITHOUT_PTRACE = ["setpriv", "--bounding-set=-sys_ptrace"]


def _starter(place: Path, name: str, text: str) -> str:
    path = place / name
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("umask", [0o000, 0o077], ids=oct)
def test_s22_the_umask_is_022_whatever_the_starters(policy: Path, umask: int) -> None:
    with Helper(policy):
        pass  # one without it has written the bytecode: with that for all to write, the helper would refuse to start
    with Helper(policy, umask=umask) as helper:
        ended = helper.run("sh", "-c", "umask; mkdir /tmp/d; stat -c %a /tmp/d /dev/null /dev/shm /dev/pts/ptmx")
        assert ended.stdout.split() == [b"0022", b"755", b"666", b"1777", b"666"]


def test_s11_bytecode_is_nobody_elses_to_write_whatever_the_starters_umask(make_server: ServerFactory) -> None:
    """Python writes the helper's bytecode before a line of the helper runs: its umask must be right from the start."""
    bytecode = ROOT / "helper" / "__pycache__"
    shutil.rmtree(bytecode, ignore_errors=True)
    server = make_server(umask=0)
    for path in (bytecode, *bytecode.glob("*.pyc")):
        assert path.stat().st_mode & 0o022 == 0, path
    for name in ("keeper", "helper"):
        status = Path(f"/proc/{server.children()[name]}/status").read_text()
        assert int(status.split("Umask:")[1].split()[0], 8) & 0o022 == 0o022
    assert server.stop() == 0


def test_s22_signals_are_default_whatever_the_starters(policy: Path, place: Path, code: Path) -> None:
    with Helper(policy, code=code, executable=_starter(place, "ignoring", IGNORING)) as helper:
        own = Path(f"/proc/{helper.process.pid}/status").read_text()
        assert int(re.findall(r"SigIgn:\t(\w+)", own)[0], 16) & 0b11 << 31, "32 and 33 were not ignored"
        ended = helper.run("cat", "/proc/self/status")
        assert set(re.findall(rb"Sig(?:Blk|Ign|Cgt):\t(\w+)", ended.stdout)) == {b"0" * 16}


def test_s24_no_mount_travels_to_a_host_whose_mounts_are_shared(policy: Path, place: Path) -> None:
    with Helper(policy, executable=_starter(place, "shared-mounts", SHARED_MOUNTS)) as helper:
        mounts = Path(f"/proc/{helper.process.pid}/mountinfo")
        before = mounts.read_text()
        assert re.search(r"^\S+ \S+ \S+ / / .* shared:", before, re.MULTILINE)
        reply, fds = helper.request_start("cat", "/proc/self/mountinfo")
        assert mounts.read_text() == before
        assert reply.type.name == "STARTED", reply
        output = os.read(fds[0], 1 << 16)
        assert b"shared:" not in output
        assert b"master:" not in output
        for fd in fds:
            os.close(fd)


def test_s23_the_helpers_memory_is_closed_to_a_root_that_may_not_trace(policy: Path, place: Path) -> None:
    """Root in a container has lost CAP_SYS_PTRACE. What it may not trace is what is not dumpable."""
    script = f'#!/bin/sh\nexec {" ".join(WITHOUT_PTRACE)} /usr/bin/python3 "$@"\n'
    with Helper(policy, executable=_starter(place, "without-ptrace", script)) as helper:
        assert _links_of(helper.process.pid) == ""
        other = subprocess.Popen([*WITHOUT_PTRACE, "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with other:
            assert other.stdin is not None
            assert other.stdout is not None
            other.stdin.write(b"up\n")
            other.stdin.flush()
            assert other.stdout.readline() == b"up\n"  # it has executed
            assert _links_of(other.pid).endswith("/cat")  # the same root may read what is dumpable
            other.stdin.close()


def _links_of(pid: int) -> str:
    command = [*WITHOUT_PTRACE, "readlink", f"/proc/{pid}/exe"]
    return subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True).stdout.strip()
