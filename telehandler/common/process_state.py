"""What a process inherits from whoever starts it, made what it must be: the first thing that every main does (R23).

fds 0, 1 and 2 are open, so that no file, socket or pipe of ours ever gets one of these numbers. No signal is blocked.
SIGCHLD has its default action: ignored, the kernel reaps children by itself, and nobody learns how they ended.
"""

import os
import signal
import sys

from telehandler.common import streams
from telehandler.common.errors import TelehandlerError

# Who ignores these for us means it, as nohup(1) and a shell's background jobs do. The last three are a terminal's.
_MAY_STAY_IGNORED = {
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM),
    *(signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
    *(signal.SIGPIPE, signal.SIGXFSZ),  # Python's own: a write fails with an error instead
}


def establish() -> None:
    """Fds, signal mask and dispositions; sys.stdin, stdout and stderr are there, and messages on stderr never fail."""
    _open_standard_fds()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - _MAY_STAY_IGNORED:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stderr = streams.messages()
    if sys.stdout is None:
        sys.stdout = streams.results()


def working_directory() -> str:
    """The current directory; / when it has been deleted."""
    try:
        return os.getcwd()
    except OSError:
        return "/"


def absolute(path: str) -> str:
    """Raises TelehandlerError where that depends on a directory that is gone."""
    try:
        return os.path.abspath(path)
    except OSError:
        raise TelehandlerError(f"the working directory has been deleted: name {path} by an absolute path") from None


def _open_standard_fds() -> None:
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
            os.set_inheritable(fd, True)  # children get it, as they would the caller's own
            streams.closed.add(fd)
