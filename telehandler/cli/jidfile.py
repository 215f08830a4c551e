"""The file that keeps the name of the last job, so that the next verb needs none."""

import os
import stat

from telehandler.cli import terminal
from telehandler.common.errors import TelehandlerError

_MAX_NAME = 1024


def check(path: str) -> None:
    """Before a job is started for it: raises TelehandlerError for what can never be written."""
    try:
        mode = os.lstat(path).st_mode
    except (OSError, ValueError):
        return  # there is none yet, or `write` says why not
    if not stat.S_ISREG(mode) and not _is_null(path, mode):
        kind = "a symbolic link" if stat.S_ISLNK(mode) else "a directory" if stat.S_ISDIR(mode) else "no regular file"
        raise TelehandlerError(f"the jidfile {path} is {kind}, and is not written: name another with -j")


def write(path: str, name: str) -> None:
    """All of the new name or all of the one before is there. No link is followed; what cannot be is told.

    The directory may be one where others make files, such as /tmp.
    """
    temporary = f"{path}.{os.getpid()}.{os.urandom(4).hex()}"
    try:
        check(path)
        if os.path.lexists(path) and _is_null(path, os.lstat(path).st_mode):
            return
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            with open(fd, "w", encoding="utf-8") as file:
                file.write(f"{name}\n")
            os.rename(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise
    except (OSError, ValueError, TelehandlerError) as error:
        text = getattr(error, "strerror", None) or str(error)
        terminal.note(f"the job runs, but its name {name} cannot be written to {path}: {text}")


def read(path: str) -> str:
    """The name in it. Raises TelehandlerError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO nobody writes to is not waited for
        with open(fd, encoding="utf-8") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(0, "it is no regular file")
            return file.read(_MAX_NAME).strip()
    except (OSError, ValueError) as error:
        text = getattr(error, "strerror", None) or "it is not text"
        raise TelehandlerError(f"no JOB is given, and {path} cannot be read: {text}") from None


def _is_null(path: str, mode: int) -> bool:
    """/dev/null, for who wants no jidfile."""
    return stat.S_ISCHR(mode) and os.lstat(path).st_rdev == os.stat(os.devnull).st_rdev
