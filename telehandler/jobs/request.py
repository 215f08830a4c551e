"""What a user asks for in a start, and the record that it begins with."""

import time
import uuid as uuids
from typing import NamedTuple

from telehandler.jobs.records import Record
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


def new_record(request: Request) -> Record:
    """Of a job that is about to start."""
    record = Record(str(uuids.uuid4()), request.owner, request.argv, start_ns=time.time_ns())
    record.request_id, record.request_sha256 = request.request_id, request.request_sha256
    if request.log_cap.max_bytes:
        policy = "drop" if request.log_cap.drop_oldest else "kill" if request.log_kill else "block"
        record.extra |= {"log_max_bytes": str(request.log_cap.max_bytes), "log_policy": policy}
    return record
