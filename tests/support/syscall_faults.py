"""Fails one system call of a start, in the helper, the job's init or its main process, by ptrace(2)."""

import ctypes
import errno
import os
import re
import select
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from support.helper_driver import Helper
from support.processes import alive
from support.wait import DEADLINE_S

_SEIZE, _INTERRUPT, _SYSCALL_INFO, _CONT, _DETACH, _SYSCALL, _POKEUSER = 0x4206, 0x4207, 0x420E, 7, 17, 24, 6
_OPTIONS = 1 | 2 | 8 | 16  # TRACESYSGOOD, TRACEFORK, TRACECLONE, TRACEEXEC
_EVENT_EXEC, _EVENT_STOP, _SYSCALL_STOP = 4, 128, 0x80 | 5
_ENTRY = 1
_RAX, _ORIG_RAX = 10 * 8, 15 * 8  # in struct user
_WALL = 0x40000000
_HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
NAMES = {int(number): name for name, number in re.findall(r"__NR_(\w+) (\d+)", _HEADER.read_text())}
ROLES = ("helper", "init", "main")
# These cannot fail: nothing would be left to return to.
_WITHOUT_RESULT = {"exit", "exit_group", "rt_sigreturn", "execve"}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> None:
    """ESRCH is no error: the process was killed while it was stopped."""
    if _libc.ptrace(request, pid, address, data) < 0 and ctypes.get_errno() != errno.ESRCH:
        raise OSError(ctypes.get_errno(), f"ptrace {request} {pid}")


class Tracer:
    """Follows a helper and its children to their end, or the exec of the job's command.

    `calls` is what was seen of a start, by role. The one that `fail` chose gets an error: it is not carried
    out, except close, which the kernel always carries out.
    """

    def __init__(self, helper: Helper) -> None:
        self.helper = helper
        self.pids = {helper.process.pid: "helper"}
        self.calls: dict[str, list[str]] = {}
        self.failing: tuple[str, int | str, int] | None = None
        self.born: list[str] = []  # the cgroup of each child before its first instruction
        self.failed = ""  # the call that was failed
        self._mode, self._pending = _CONT, 0
        _ptrace(_SEIZE, helper.process.pid, 0, _OPTIONS)

    def watch(self, failing: tuple[str, int | str, int] | None = None) -> None:
        """From now on counts calls; with (role, index or name, errno) fails that one and counts no further."""
        self.calls, self.failed, self.failing, self._mode = {role: [] for role in ROLES}, "", failing, _SYSCALL
        _ptrace(_INTERRUPT, self.helper.process.pid)

    def let_go(self) -> None:
        self._mode = _CONT

    def ended(self) -> bool:
        return self.helper.process.returncode is not None

    def until_message(self) -> bool:
        """Lets all run until the helper has said something; False when it has ended."""
        return self._until(self._said)

    def until_ended(self) -> None:
        self._until(lambda: False)

    def all_gone(self) -> bool:
        """Once the helper has ended. Each of the others must be waited for, or an init waits for it."""
        with suppress(ChildProcessError):
            while self._turn():
                pass
        return not [pid for pid in self.pids if alive(pid)]

    def _until(self, reached: Callable[[], bool]) -> bool:
        end = time.monotonic() + DEADLINE_S
        while not self.ended():
            assert time.monotonic() < end, f"a hang after {self.failing} {self.failed}"
            if not self._turn() and reached():
                return True
        return False

    def _said(self) -> bool:
        """A message, not the end of the connection."""
        with suppress(ConnectionError):
            return bool(select.select([self.helper.sock], [], [], 0)[0] and self.helper.sock.recv(1, socket.MSG_PEEK))
        return False

    def _turn(self) -> bool:
        """One event of a process; False when there is none."""
        pid, status = os.waitpid(-1, os.WNOHANG | _WALL)
        if not pid:
            return False
        if not os.WIFSTOPPED(status):
            self.pids.pop(pid, None)
            if pid == self.helper.process.pid:  # its Popen will not see it again
                self.helper.process.returncode = os.waitstatus_to_exitcode(status)
            return True
        event, number = status >> 16, os.WSTOPSIG(status)
        if pid not in self.pids:
            self.pids[pid] = ROLES[min(len(self.pids), 2)]
            self.born.append(Path(f"/proc/{pid}/cgroup").read_text().splitlines()[-1])
        if event == _EVENT_EXEC and self.pids[pid] != "init":  # the init goes on as another program
            del self.pids[pid]
            _ptrace(_DETACH, pid)
            return True
        signal = 0
        if number == _SYSCALL_STOP:
            self._at_call(pid)
        elif not event:
            signal = number
        _ptrace(self._mode, pid, 0, signal)
        return True

    def _at_call(self, pid: int) -> None:
        if pid == self._pending:
            _ptrace(_POKEUSER, pid, _RAX, -self.failing[2])  # type: ignore[index]
            self._pending, self._mode = 0, _CONT
            return
        info = ctypes.create_string_buffer(88)
        _libc.ptrace(_SYSCALL_INFO, pid, len(info), ctypes.addressof(info))
        if info.raw[0] != _ENTRY or self._mode != _SYSCALL:
            return
        role, name = self.pids[pid], NAMES.get(struct.unpack_from("<Q", info, 24)[0], "?")
        calls = self.calls[role]
        chosen = self.failing and self.failing[0] == role and self.failing[1] in (len(calls), name)
        if chosen and not self.failed and name not in _WITHOUT_RESULT:
            self.failed, self._pending = name, pid
            if name != "close":
                _ptrace(_POKEUSER, pid, _ORIG_RAX, -1)
        calls.append(name)
