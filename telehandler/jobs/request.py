"""What a user asks for in a start."""

import json
import os
import signal
from collections.abc import Mapping
from typing import NamedTuple

from telehandler.output.log import NO_CAP, Cap

DEFAULT_ENV = {
    b"PATH": b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    b"HOME": b"/home/job",
    b"USER": b"job",
    b"LANG": b"C.UTF-8",
    b"TERM": b"dumb",
}


class Life(NamedTuple):
    """How a job is found, stopped, removed and restarted. Times in milliseconds."""

    given_name: str = ""  # no other job of its owner has it
    labels: Mapping[str, str] = {}
    stop_signal: int = signal.SIGTERM
    stop_grace_ms: int = 10_000
    remove_after_ms: int | None = None  # its end; None: it is kept
    max_restarts: int | None = None  # after failures; 0: no bound; None: not restarted
    restart_of: str = ""  # UUID of the first run
    restarts: int = 0  # runs before this one


class Request(NamedTuple):
    """What a user asks for."""

    owner: str
    argv: list[bytes]
    env: dict[bytes, bytes]
    cwd: bytes  # empty: the server's own where the job may enter it, else /
    limits: dict[str, int]
    profile: str
    log_cap: Cap = NO_CAP
    log_kill: bool = False  # at the cap, if it does not drop the oldest; else the job waits
    request_id: str = ""  # starts of one owner with one id are one job's; empty: each is its own
    request_sha256: str = ""  # hex, tells requests with one id apart
    merge_stderr: bool = False  # one pipe for both, read as stdout
    stdin: bool = False  # a pipe, and not /dev/null
    terminal: bool = False  # in the place of all three, whatever is said of them
    size: tuple[int, int] = (24, 80)  # the terminal's rows and columns
    life: Life = Life()
    exec_in: str = ""  # the UUID of the job in which this is a further command; empty: a job of its own


def dump(request: Request) -> str:
    """As text, for `load`."""
    values = request._asdict() | {
        "argv": [_text(word) for word in request.argv],
        "env": [(_text(name), _text(value)) for name, value in request.env.items()],
        "cwd": _text(request.cwd),
        "life": request.life._asdict(),
    }
    return json.dumps(values)


def load(text: str) -> Request:
    """What `dump` was given, by this version or another: each has its own fields."""
    values = {name: value for name, value in json.loads(text).items() if name in Request._fields}
    values["argv"] = [os.fsencode(word) for word in values["argv"]]
    values["env"] = {os.fsencode(name): os.fsencode(value) for name, value in values["env"]}
    values["cwd"] = os.fsencode(values["cwd"])
    values["log_cap"] = Cap(*values["log_cap"])
    values["size"] = tuple(values["size"])
    values["life"] = Life(**values["life"])
    return Request(**values)


def _text(word: bytes) -> str:
    return word.decode("utf-8", "surrogateescape")
