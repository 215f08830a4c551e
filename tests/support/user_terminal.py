"""A user's terminal with one of our commands in it: what is typed, what is seen, and how it is left."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Sequence

from support.checkout import ROOT
from support.wait import DEADLINE_S


class UserTerminal:
    """A context manager: the command runs in a session of its own, whose controlling terminal this is."""

    def __init__(self, command: Sequence[str], rows: int = 50, columns: int = 132, term: str = "xterm") -> None:
        self._master_fd, self._slave_fd = pty.openpty()
        self.resize(rows, columns)
        self._before = termios.tcgetattr(self._slave_fd)
        self._seen = b""
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *command],
            cwd=ROOT,
            env=os.environ | {"TERM": term},
            stdin=self._slave_fd,
            stdout=self._slave_fd,
            stderr=self._slave_fd,
        )

    def __enter__(self) -> "UserTerminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master_fd)
        os.close(self._slave_fd)

    def resize(self, rows: int, columns: int) -> None:
        """The foreground processes get SIGWINCH."""
        fcntl.ioctl(self._master_fd, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self._master_fd, keys)

    def until(self, wanted: bytes) -> bytes:
        """What is seen up to and with `wanted`."""
        end = time.monotonic() + DEADLINE_S
        while wanted not in self._seen:
            if not select.select([self._master_fd], [], [], max(end - time.monotonic(), 0))[0]:
                raise AssertionError(f"no {wanted!r} but {self._seen!r}")
            self._seen += os.read(self._master_fd, 4096)
        seen, _, self._seen = self._seen.partition(wanted)
        return seen + wanted

    def ask(self, prompt: bytes, keys: bytes) -> bytes:
        """Types once the prompt is seen: what was seen before."""
        seen = self.until(prompt)
        self.type(keys)
        return seen

    def end(self) -> tuple[int, bytes]:
        """The command's exit code, and the rest of what is seen."""
        end = time.monotonic() + DEADLINE_S
        while self.process.poll() is None or select.select([self._master_fd], [], [], 0)[0]:
            assert time.monotonic() < end, self._seen
            if select.select([self._master_fd], [], [], 0.01)[0]:
                self._seen += os.read(self._master_fd, 4096)
        return self.process.returncode, self._seen

    @property
    def restored(self) -> bool:
        """Whether its attributes are what they were in the beginning."""
        return termios.tcgetattr(self._slave_fd) == self._before

    @property
    def raw(self) -> bool:
        return not termios.tcgetattr(self._slave_fd)[3] & termios.ICANON
