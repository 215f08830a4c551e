"""S43: what an api holds of certificates, key and roots is its own, and nobody can write it."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.process_usage import fds_of_same_file
from support.servers import Server, free_address
from support.wait import wait_until

from telehandler.supervisor.api_process import Files

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
NAMES = ("server.pem", "server-key.pem", "root.pem")


def _copies(pid: int) -> dict[int, bytes]:
    """The files in memory that a process has open, by inode."""
    found = {}
    for path in Path(f"/proc/{pid}/fd").iterdir():
        if os.readlink(path).startswith("/memfd:telehandler"):
            found[path.stat().st_ino] = path.read_bytes()
    return found


def test_s43_the_copies_are_sealed(ssl: Path) -> None:
    with Files(*(str(ssl / name) for name in NAMES)).copies() as fds:
        for fd, name in zip(fds, NAMES, strict=True):
            path = f"/proc/self/fd/{fd}"
            assert Path(path).read_bytes() == (ssl / name).read_bytes()
            assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == _SEALS
            writable = os.open(path, os.O_RDWR)
            for attempt in (
                lambda fd=writable: os.pwrite(fd, b"x", 0),
                lambda fd=writable: os.ftruncate(fd, 0),
                lambda fd=writable: os.ftruncate(fd, 1 << 20),
                lambda fd=writable: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0),
            ):
                with pytest.raises(PermissionError):
                    attempt()
            os.close(writable)
            assert fds_of_same_file(fd) == 1
            assert Path(path).read_bytes() == (ssl / name).read_bytes()


@pytest.mark.parametrize("how", ["reload", "killed"])
def test_s43_each_api_has_copies_of_its_own(make_server: Callable[..., Server], ssl: Path, how: str) -> None:
    server = make_server(listen=free_address())
    assert server.process is not None
    before = server.children()["api"]
    copies = _copies(before)
    assert sorted(copies.values()) == sorted((ssl / name).read_bytes() for name in NAMES)
    if how == "reload":
        server.process.send_signal(signal.SIGHUP)
    else:
        os.kill(before, signal.SIGKILL)
    wait_until("another api is there", lambda: server.children().get("api", before) != before)
    wait_until("it answers", lambda: server.client("ls").returncode == 0)
    after = _copies(server.children()["api"])
    assert sorted(after.values()) == sorted(copies.values())
    assert not after.keys() & copies.keys()
    assert _copies(server.process.pid) == {}  # the server keeps none open that an api has
    assert server.stop() == 0


def test_s43_no_other_process_of_its_user_reaches_into_the_server(server: Server) -> None:
    """An api that was taken over would else read the key from the server, or live on in it: by ptrace(2), /proc."""
    assert server.process is not None
    assert Path(f"/proc/{server.process.pid}/mem").stat().st_uid == 0  # its user may not open it
    code = (
        "import ctypes, os; from telehandler.supervisor import caller; os.setresuid(65534, 65534, 65534); "
        "libc = ctypes.CDLL(None); libc.prctl(4, 1, 0, 0, 0); print(libc.prctl(3, 0, 0, 0, 0)); "
        "caller.establish(); print(libc.prctl(3, 0, 0, 0, 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "0"]  # PR_GET_DUMPABLE, of one that was not started as root
