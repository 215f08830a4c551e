"""An api or stream worker as the supervisor has it: started, told, stopped. No grpc in here."""

import contextlib
import fcntl
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from telehandler.certs.pem import read_pair
from telehandler.common import control
from telehandler.common.errors import EXIT_OURS, TelehandlerError

READY_S = 30.0  # from the start until it has read its spec, on a busy machine
STOP_S = 6.0
# One heap for all of grpc's threads (mallopt(3)): with one each, what a thousand watchers were sent stays scattered in
# them, a fifth of the memory. Two cores are no faster with more.
_MALLOC = {"MALLOC_ARENA_MAX": "1"}
_NOT_PASSED_ON = ("LC_", "LANG", "PYTHON", "GRPC_")
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
# All that it imports it must be able to read. The rest of its errors it tells itself.
_CODE = """
import sys
sys.path[:] = {path!r}
try:
    from {module} import main
except (ImportError, OSError) as error:
    print("telehandler: the server's user cannot load {what} code:", error, file=sys.stderr)
    sys.exit({status})
main()
"""


class Files:
    """Certificate, key and root, read once: an api that is started later needs no permission for the files.

    They stay in this process, where no api reaches them. Each api gets copies of its own (S43): what one that was taken
    over does to them ends with it. Raises TelehandlerError when they are no pair.
    """

    def __init__(self, cert: str, key: str, root: str) -> None:
        self._pieces = read_pair(cert, key, root)  # its errors name the files; the api sees only copies

    @contextlib.contextmanager
    def copies(self) -> Iterator[list[int]]:
        """An fd for each, of a file in memory that nobody can write; closed at the end."""
        fds: list[int] = []
        try:
            for piece in self._pieces:
                fds.append(os.memfd_create("telehandler", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
                _write_sealed(fds[-1], piece)
            yield fds
        finally:
            for fd in fds:
                os.close(fd)


class Child:
    """Owns the process, its pidfd and our end of its control channel."""

    module = what = ""

    def __init__(self, spec: dict[str, Any], files: Files, paths: list[int]) -> None:
        """Started as root, it finds its code through `paths`, directories that were opened as root: a checkout below
        /root cannot be entered by the user it runs as.
        """
        path = [f"/proc/self/fd/{fd}" for fd in paths] or sys.path
        code = _CODE.format(path=path, status=EXIT_OURS, module=self.module, what=self.what)
        interpreter = getattr(sys, "_base_executable", sys.executable)
        self.files = files
        self.channel, theirs = control.pair()
        with theirs, files.copies() as copies:
            spec = spec | {"tls_copies": [f"/proc/self/fd/{fd}" for fd in copies]}
            # Its own process group: a terminal's Ctrl-C is for us, who then stop it in order.
            self._process = subprocess.Popen(
                [interpreter, "-I", "-S", "-X", "utf8", "-c", code],
                stdin=theirs.fileno(),
                pass_fds=[*copies, *paths],
                process_group=0,
                cwd="/",
                env=_environment(),
            )
        self.pidfd = os.pidfd_open(self._process.pid)
        self.deadline = time.monotonic() + READY_S  # when it is killed
        self.ready = self.serving = self.handing_over = False
        self.deaf = False  # it has closed its end: about to end itself
        self.tell("spec", spec)

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

    def kill(self) -> None:
        self.deadline = math.inf
        self._process.send_signal(signal.SIGKILL)

    def wait(self) -> int:
        """Its exit status, once it has ended; closes what is ours of it."""
        status = self._process.wait()
        self.channel.close()
        os.close(self.pidfd)
        return status


class Api(Child):
    """The api process."""

    module, what = "telehandler.api.process", "the api's"

    def hand_over(self) -> None:
        """Has it end, and leave the jobs to the next."""
        self.handing_over, self.deadline = True, time.monotonic() + STOP_S
        self.tell("hand-over")


def _write_sealed(fd: int, data: bytes) -> None:
    """Nobody can change it any more, nor take the seals off: fcntl(2)."""
    while data:
        data = data[os.write(fd, data) :]
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)


def _environment() -> dict[str, str]:
    """What of ours has no say in what the api does: its language, Python's and grpc's own variables are left out."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(_NOT_PASSED_ON)}
    return _MALLOC | kept | {"LC_ALL": "C.UTF-8"}
