"""A process that SIGKILL does not end before it is let go: ptrace(2), which stops it on its way out."""

import ctypes
import os
import subprocess
from pathlib import Path

_SEIZE, _DETACH, _TRACEEXIT = 0x4206, 17, 0x40
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


class SlowToDie:
    """A child of ours; a context manager, of one thread."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(["sleep", "1000"])
        self.pid = self._process.pid
        self._ptrace(_SEIZE, _TRACEEXIT)

    def __enter__(self) -> "SlowToDie":
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_dying():
            self.let_go()
        self._process.kill()
        self._process.wait()

    def is_dying(self) -> bool:
        """Whether it has been killed, and stands on its way out."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "t"

    def let_go(self) -> None:
        self._ptrace(_DETACH, 0)

    def _ptrace(self, request: int, data: int) -> None:
        if _libc.ptrace(request, self.pid, 0, data) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
