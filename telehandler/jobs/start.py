"""What a start is made of: the request, its record, the helper asked, and what is said when it fails."""

import sqlite3
import time
import uuid as uuids
from typing import NamedTuple

from helper.wire import Stage
from telehandler.common import capacity
from telehandler.common.errors import Exhausted, HelperRefused
from telehandler.jobs.helper_link import HelperLink, LiveJob, Order
from telehandler.jobs.records import Record
from telehandler.output.log import NO_CAP, Cap

DEFAULT_ENV = {
    b"PATH": b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    b"HOME": b"/tmp",
    b"USER": b"job",
    b"LANG": b"C.UTF-8",
    b"TERM": b"dumb",
}
_MAX_SHOWN = 200  # bytes of a command or directory in a message


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


def new_record(request: Request) -> Record:
    """Of a job that is about to start."""
    record = Record(str(uuids.uuid4()), request.owner, request.argv, start_ns=time.time_ns())
    record.request_id, record.request_sha256 = request.request_id, request.request_sha256
    if request.log_cap.max_bytes:
        policy = "drop" if request.log_cap.drop_oldest else "kill" if request.log_kill else "block"
        record.extra |= {"log_max_bytes": str(request.log_cap.max_bytes), "log_policy": policy}
    return record


async def ask_helper(link: HelperLink, order: Order, anywhere: bool) -> LiveJob:
    """Starts it in /, if `anywhere` will do, where the server's own directory is hidden from jobs."""
    try:
        return await link.start(order)
    except HelperRefused as refused:
        if refused.stage != Stage.CHDIR or not anywhere:
            raise
        return await link.start(order._replace(cwd=b"/"))


def told(error: Exception, request: Request) -> Exception:
    """What the one who asked for a start is told of its failure."""
    if isinstance(error, HelperRefused):
        return _named(error, request)
    if isinstance(error, sqlite3.OperationalError) or (isinstance(error, OSError) and error.errno in capacity.ERRORS):
        text = error.strerror if isinstance(error, OSError) else error
        return Exhausted(f"the server cannot keep a job in its state directory: {text}")
    return error


def _named(refused: HelperRefused, request: Request) -> HelperRefused:
    """A refusal that says what the helper, which quotes no user, leaves out: the command or the directory."""
    word = {Stage.EXEC: request.argv[0], Stage.CHDIR: request.cwd}.get(Stage(refused.stage))
    if not word:
        return refused
    shown = repr(word[:_MAX_SHOWN].decode("utf-8", "backslashreplace"))
    return HelperRefused(refused.stage, refused.errno, f"{refused}: {shown}")
