"""What a user asks for in a start."""

from typing import NamedTuple

from telehandler.output.log import NO_CAP, Cap

DEFAULT_ENV = {
    b"PATH": b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    b"HOME": b"/tmp",
    b"USER": b"job",
    b"LANG": b"C.UTF-8",
    b"TERM": b"dumb",
}


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
