"""`telehandler server`: starts the helper, gives up root, keeps helper and api running. No grpc in here."""

import os
import sys
from pathlib import Path
from typing import NamedTuple

from telehandler.common import privileges, process_state
from telehandler.common.errors import TelehandlerError
from telehandler.supervisor import caller
from telehandler.supervisor.api_process import Files
from telehandler.supervisor.helper_process import Helpers
from telehandler.supervisor.restarts import Supervisor
from telehandler.supervisor.stream_workers import most_that_help

HELPER_STOP_S = 15.0


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
    max_jobs_per_user: int  # 0: a share
    stream_workers: int | None  # processes that serve streams, the api among them; None: as many as help here
    drain_s: float | None  # how long SIGTERM waits for the jobs that run; None: it kills them


def serve(options: Options) -> int:
    """Runs until SIGTERM or SIGINT: exit status 0; 125: the api cannot start; 1: the helper is gone for good."""
    caller.establish()  # must come first
    is_root = os.geteuid() == 0
    user = privileges.server_user(options.user) if is_root else None
    if options.user and not is_root:
        raise TelehandlerError("--user needs root")
    # As root, before root is given up: what the api must read later, as fds that need no permission.
    cert, key, root = map(process_state.absolute, (options.cert, options.key, options.root))
    names = cert, key, root
    files = Files(*names)
    paths = [_open_directory(path) for path in sys.path if os.path.isdir(path)] if is_root else []
    state = _state_directory(options.state_dir, user.pw_uid if user else os.getuid(), user.pw_gid if user else -1)
    helpers = Helpers(options.cgroup_root, options.helper_policy)
    helpers.start()
    try:
        if user:
            privileges.drop_to(user)
        spec = {
            "listen": options.listen,
            "state_dir": str(state),
            "admins": options.admins,
            "keep": options.keep,
            "max_connections": options.max_connections,
            "max_calls_per_user": options.max_calls_per_user,
            "max_jobs_per_user": options.max_jobs_per_user,
            "stream_workers": options.stream_workers or most_that_help(),
            "cwd": process_state.working_directory(),
            "tls_files": names,
        }
        return Supervisor(spec, names, files, paths, helpers, options.drain_s).run()
    finally:
        if not helpers.end(HELPER_STOP_S):
            print("telehandler: the helper has not ended yet", file=sys.stderr)


def _open_directory(path: str) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _state_directory(wanted: str | None, uid: int, gid: int) -> Path:
    """The state directory, made, the server user's and nobody else's to read."""
    if wanted:
        path = Path(process_state.absolute(wanted))
    elif os.geteuid() == 0:
        path = Path("/var/lib/telehandler")
    else:
        base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        path = Path(base) / "telehandler"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.geteuid() == 0 and path.stat().st_uid == 0:
            if any(
                entry.name != "lost+found" for entry in path.iterdir()
            ):  # /etc, by a slip, must not become another's
                text = f"the state directory {path} is root's and not empty: choose another --state-dir, or chown it"
                raise TelehandlerError(text)
            os.chown(path, uid, gid)
        if path.stat().st_uid != uid:
            raise TelehandlerError(f"the state directory {path} is another user's: choose another --state-dir")
        path.chmod(0o700)
    except OSError as error:
        raise TelehandlerError(f"the state directory {path} cannot be made: {error.strerror}") from None
    return path
