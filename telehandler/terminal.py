"""What commands print: a job's bytes to their own streams, everything else as one line on stderr."""

import os
import signal
import sys

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
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    print(f"telehandler: {shown}", file=sys.stderr, flush=True)


def tell_end(reason: str, exit_code: int, number: int, detail: str = "") -> None:
    """Says why a job ended, when it was not a plain exit."""
    if detail:
        note(f"the job was ended, its output could not be kept: {detail}")
    if reason == "oom":
        note("the job was killed at its memory limit: ask for more with -m")
    elif reason == "lost":
        note("the job was lost: the root helper died, and the job with it")
    elif reason == "stopped":
        note(f"the job was stopped (exit code {exit_code})")
    elif number:
        name = signal.Signals(number).name if number in {*signal.Signals} else f"signal {number}"
        note(f"the job was ended by {name}")
