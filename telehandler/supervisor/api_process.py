"""An api process as the supervisor has it: started, told, stopped. No grpc in here."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from telehandler.certs.pem import read_pair
from telehandler.common import control
from telehandler.common.errors import TelehandlerError

READY_S = 30.0  # from the start until it has read its spec, on a busy machine
STOP_S = 6.0
# One heap for all of grpc's threads (mallopt(3)): with one each, what a thousand watchers were sent stays scattered in
# them, a fifth of the memory. Two cores are no faster with more.
_MALLOC = {"MALLOC_ARENA_MAX": "1"}


class Files:
    """Certificate, key and root as fds in memory, which any user may read through /proc/self/fd.

    So an api that is started later needs no permission for the files. Raises TelehandlerError when they are no pair.
    """

    def __init__(self, cert: str, key: str, root: str) -> None:
        read_pair(cert, key, root)  # its errors name the files; the api sees only copies
        self.fds = [_memory_copy(path) for path in (cert, key, root)]

    def spec(self) -> dict[str, list[str]]:
        return {"tls_copies": [f"/proc/self/fd/{fd}" for fd in self.fds]}

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


class Api:
    """Owns the process, its pidfd and our end of its control channel."""

    def __init__(self, spec: dict[str, Any], files: Files, paths: list[int]) -> None:
        """Started as root, it finds its code through `paths`, directories that were opened as root: a checkout below
        /root cannot be entered by the user it runs as.
        """
        path = [f"/proc/self/fd/{fd}" for fd in paths] or sys.path
        code = f"import sys; sys.path[:] = {path!r}; from telehandler.api.process import main; main()"
        interpreter = getattr(sys, "_base_executable", sys.executable)
        self.files = files
        self.channel, theirs = control.pair()
        with theirs:
            # Its own process group: a terminal's Ctrl-C is for us, who then stop it in order.
            self._process = subprocess.Popen(
                [interpreter, "-I", "-S", "-c", code],
                stdin=theirs.fileno(),
                pass_fds=[*files.fds, *paths],
                process_group=0,
                cwd="/",
                env=_MALLOC | os.environ,
            )
        self.pidfd = os.pidfd_open(self._process.pid)
        self.deadline = time.monotonic() + READY_S  # when it is killed
        self.ready = self.serving = self.handing_over = False
        self.deaf = False  # it has closed its end: about to end itself
        self.tell("spec", spec | files.spec())

    def tell(self, kind: str, spec: dict[str, Any] | None = None, fd: int = -1) -> None:
        """One that is dead hears nothing: its pidfd says so. One that does not read is as good as dead."""
        try:
            self.channel.settimeout(STOP_S)
            control.send(self.channel, kind, spec, fd)
        except TimeoutError:
            self.kill()
        except OSError:
            pass

    def hear(self) -> str:
        """The kind of its next message, empty at the end."""
        try:
            message = control.receive(self.channel)
        except (OSError, TelehandlerError):
            message = None
        kind = message.kind if message else ""
        if not message:
            self.deaf, self.deadline = True, min(self.deadline, time.monotonic() + STOP_S)
        if kind == "ready":
            self.ready, self.deadline = True, math.inf
        self.serving |= kind == "serving"
        return kind

    def terminate(self) -> None:
        """Has it hand over: it ends, and leaves the jobs to the next."""
        self.handing_over, self.deadline = True, time.monotonic() + STOP_S
        self.tell("hand-over")

    def kill(self) -> None:
        self.deadline = math.inf
        self._process.send_signal(signal.SIGKILL)

    def wait(self) -> int:
        """Its exit status, once it has ended; closes what is ours of it."""
        status = self._process.wait()
        self.channel.close()
        os.close(self.pidfd)
        return status


def _memory_copy(path: str) -> int:
    fd = os.memfd_create("telehandler")
    os.write(fd, Path(path).read_bytes())
    return fd
