"""`telehandler server`: starts the helper, gives up root, keeps the api running. No grpc in here."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

from telehandler import helper_process, privileges
from telehandler.errors import EXIT_OURS, TelehandlerError
from telehandler.pem import read_pair

API_STOP_S = 6.0
HELPER_STOP_S = 15.0
MAX_RESTARTS, RESTART_WINDOW_S = 10, 60.0
_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 0.1, 5.0


class Options(NamedTuple):
    listen: str
    cert: str
    key: str
    root: str
    state_dir: str | None
    user: str | None
    cgroup_root: str | None
    helper_policy: str | None
    admins: tuple[str, ...]
    keep: dict[str, int]  # of records.Keep
    max_connections: int
    max_calls_per_user: int


def serve(options: Options) -> int:
    """Runs until SIGTERM or SIGINT: exit status 0; 125 when the api cannot start, 1 when the helper dies."""
    is_root = os.geteuid() == 0
    user = privileges.server_user(options.user) if is_root else None
    if options.user and not is_root:
        raise TelehandlerError("--user needs root")
    read_pair(options.cert, options.key, options.root)  # its errors name the files; the api sees only copies
    # As root, before root is given up: what the api must read later, as fds that need no permission.
    certificates = (options.cert, options.key, options.root)
    files = [_memory_copy(path) for path in certificates]
    paths = [_open_directory(path) for path in sys.path if os.path.isdir(path)] if is_root else []
    state = _state_directory(options.state_dir, user.pw_uid if user else os.getuid(), user.pw_gid if user else -1)
    helper, link = helper_process.start(options.cgroup_root, options.helper_policy)
    try:
        if user:
            privileges.drop_to(user)
        spec = {
            "listen": options.listen,
            "state_dir": str(state),
            "helper_fd": link.fileno(),
            "admins": options.admins,
            "keep": options.keep,
            "max_connections": options.max_connections,
            "max_calls_per_user": options.max_calls_per_user,
            "cwd": os.getcwd(),
            "tls_files": [os.path.abspath(path) for path in certificates],
            "tls_copies": [f"/proc/self/fd/{fd}" for fd in files],
        }
        status = _keep_running(spec, [link.fileno(), *files, *paths], paths, helper)
    finally:
        # EOF is the helper's order to kill every job, remove its cgroups and end.
        link.shutdown(socket.SHUT_RDWR)
        link.close()
        try:
            helper.wait(HELPER_STOP_S)
        except subprocess.TimeoutExpired:
            print("telehandler: the helper has not ended yet", file=sys.stderr)
    return status


def _keep_running(spec: dict[str, Any], fds: list[int], paths: list[int], helper: "subprocess.Popen[bytes]") -> int:
    wake_fd = _catch_signals()
    helper_fd = os.pidfd_open(helper.pid)
    deaths: deque[float] = deque(maxlen=MAX_RESTARTS)
    backoff = _FIRST_BACKOFF_S
    while True:
        api = _start_api(spec, fds, paths)
        began = time.monotonic()
        api_fd = os.pidfd_open(api.pid)
        ready = _wait(wake_fd, helper_fd, api_fd)
        os.close(api_fd)
        if wake_fd in ready or helper_fd in ready:
            _stop_api(api)
            if wake_fd in ready:
                return 0
            print("telehandler: the root helper has died, and its jobs with it", file=sys.stderr)
            return 1
        if api.wait() == EXIT_OURS:
            return EXIT_OURS  # it has said why
        deaths.append(time.monotonic())
        if len(deaths) == MAX_RESTARTS and deaths[-1] - deaths[0] < RESTART_WINDOW_S:
            raise TelehandlerError(f"the api died {MAX_RESTARTS} times in {RESTART_WINDOW_S:.0f} s: giving up")
        backoff = _FIRST_BACKOFF_S if deaths[-1] - began > RESTART_WINDOW_S else min(backoff * 2, _MAX_BACKOFF_S)
        print(f"telehandler: the api died (status {api.returncode}); starting it again", file=sys.stderr)
        if select.select([wake_fd], [], [], backoff)[0]:
            return 0


def _wait(*fds: int) -> list[int]:
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll()]


def _catch_signals() -> int:
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(write_fd)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return read_fd


def _start_api(spec: dict[str, Any], fds: list[int], paths: list[int]) -> "subprocess.Popen[bytes]":
    """The api in a fresh interpreter; its stdin carries the spec and tells it when we are gone.

    Started as root, it finds its code through directories that were opened as root: a checkout below /root
    cannot be entered by the user it runs as.
    """
    path = [f"/proc/self/fd/{fd}" for fd in paths] or sys.path
    code = f"import sys; sys.path[:] = {path!r}; from telehandler.api import main; main()"
    interpreter = getattr(sys, "_base_executable", sys.executable)
    # Its own process group: a terminal's Ctrl-C is for us, who then stop it in order.
    api = subprocess.Popen(
        [interpreter, "-I", "-S", "-c", code], stdin=subprocess.PIPE, pass_fds=fds, process_group=0, cwd="/"
    )
    assert api.stdin is not None
    api.stdin.write(json.dumps(spec).encode() + b"\n")
    api.stdin.flush()
    return api


def _stop_api(api: "subprocess.Popen[bytes]") -> None:
    api.terminate()
    try:
        api.wait(API_STOP_S)
    except subprocess.TimeoutExpired:
        api.kill()
        api.wait()


def _memory_copy(path: str) -> int:
    """A file's content as an fd in memory, which any user may read through /proc/self/fd."""
    fd = os.memfd_create("telehandler")
    os.write(fd, Path(path).read_bytes())
    return fd


def _open_directory(path: str) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _state_directory(wanted: str | None, uid: int, gid: int) -> Path:
    """The state directory, made, the server user's and nobody else's to read."""
    if wanted:
        path = Path(wanted).absolute()
    elif os.geteuid() == 0:
        path = Path("/var/lib/telehandler")
    else:
        base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        path = Path(base) / "telehandler"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.geteuid() == 0 and path.stat().st_uid == 0:
            os.chown(path, uid, gid)
        if path.stat().st_uid != uid:
            raise TelehandlerError(f"the state directory {path} is another user's: choose another --state-dir")
        path.chmod(0o700)
    except OSError as error:
        raise TelehandlerError(f"the state directory {path} cannot be made: {error.strerror}") from None
    return path
