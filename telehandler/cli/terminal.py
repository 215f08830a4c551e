"""What commands print: a job's bytes to their own streams, everything else as one line on stderr."""

import os
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

from telehandler.common.errors import EXIT_OURS, EXIT_TIMEOUT

STDOUT_FD, STDERR_FD = 1, 2
_EXIT_PIPE = 128 + signal.SIGPIPE


def write(stderr: bool, data: bytes) -> None:
    """All of `data`, to fd 1 or 2. Ends the process, as SIGPIPE would, when nobody reads any more."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(STDERR_FD if stderr else STDOUT_FD, view) :]
    except BrokenPipeError:
        os._exit(_EXIT_PIPE)


def note(text: str) -> None:
    """One line on stderr; control characters of a job's fields are shown escaped."""
    with suppress(BrokenPipeError):  # nobody reads them, but the job's output may have a reader
        print(f"telehandler: {printable(text)}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Control characters shown escaped: a job's or another user's fields must not steer a terminal."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def show_check(argv: Sequence[str], rows: list[bytes]) -> None:
    """Prints what a dry run found: the request's words, then a name and a value a line."""
    print(f"{'command':<18} {printable(shlex.join(argv))}")
    for row in rows:
        name, _, value = row.decode("utf-8", "backslashreplace").partition(" ")
        print(f"{name:<18} {printable(value)}")


def report_end(reason: str, exit_code: int, number: int, detail: str = "", job: str = "the job") -> int:
    """Says why a job ended, when it was not a plain exit; the exit code that goes with it."""
    if detail:
        note(f"not all output of {job} was kept: {detail}")
    if reason == "oom":
        note(f"{job} was killed at its memory limit: ask for more with -m")
    elif reason == "lost":
        note(f"{job} was lost: the root helper died, and the job with it")
    elif reason == "timeout":
        note(f"{job} was ended at its timeout: ask for more with --timeout")
    elif reason == "pids":
        note(f"{job} failed at its limit of processes: ask for more with --pids-limit")
    elif reason == "stopped":
        note(f"{job} was stopped (exit code {exit_code})")
    elif number:
        name = signal.Signals(number).name if number in {*signal.Signals} else f"signal {number}"
        note(f"{job} was ended by {name}")
    return {"lost": EXIT_OURS, "timeout": EXIT_TIMEOUT}.get(reason, exit_code)
