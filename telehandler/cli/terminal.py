"""What commands print: a job's bytes to their own streams, everything else as one line on stderr."""

import os
import shlex
import signal
import stat
import sys
from collections.abc import Sequence
from typing import NoReturn

from telehandler.cli import raw_mode
from telehandler.common import streams
from telehandler.common.errors import EXIT_OURS, EXIT_PIPE, EXIT_TIMEOUT


def write(stderr: bool, data: bytes) -> None:
    """All of `data`, to fd 1 or 2. Raises OutputFailed, and ReaderGone when nobody reads any more."""
    streams.write(streams.STDERR_FD if stderr else streams.STDOUT_FD, data)


def note(text: str) -> None:
    """One line on stderr; control characters of a job's fields are shown escaped."""
    end = "\r\n" if raw_mode.entered() else "\n"
    print(f"telehandler: {printable(text)}", end=end, file=sys.stderr, flush=True)


def leave(code: int) -> NoReturn:
    """Ends this process at once, from any thread, with its terminal as it was."""
    raw_mode.leave()
    os._exit(code)


def end_with_reader(fd: int) -> None:
    """Ends this process once the pipe or socket behind `fd` has no reader, as SIGPIPE would at the next output."""
    mode = os.fstat(fd).st_mode
    if not stat.S_ISFIFO(mode) and not stat.S_ISSOCK(mode):
        return
    import select
    import threading  # which most verbs do without

    def watch() -> None:
        poll = select.poll()
        poll.register(fd, 0)  # for POLLERR and POLLHUP, which come unasked
        poll.poll()
        leave(EXIT_PIPE)

    threading.Thread(target=watch, daemon=True).start()


def printable(text: str) -> str:
    """Control characters shown escaped: a job's or another user's fields must not steer a terminal."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def come_back(name: str, attached: bool = False) -> str:
    """How to see again a job that goes on without us; with `attached`, to write to it again too."""
    if attached:
        return f"`telehandler client attach {name}` comes back"
    return f"`telehandler client watch {name}` shows its output"


def show_check(argv: Sequence[str], rows: list[bytes]) -> None:
    """Prints what a dry run found: the request's words, then a name and a value a line."""
    print(f"{'command':<18} {printable(shlex.join(argv))}")
    for row in rows:
        name, _, value = row.decode("utf-8", "backslashreplace").partition(" ")
        print(f"{name:<18} {printable(value)}")


def report_end(reason: str, exit_code: int | None, number: int, detail: str = "", job: str = "the job") -> int:
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
    if exit_code is None:  # a job that was lost
        return EXIT_OURS
    return {"timeout": EXIT_TIMEOUT, "output_lost": EXIT_OURS}.get(reason, exit_code)
