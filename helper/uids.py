"""The uids of jobs: no two live jobs of any helper on this machine have the same one.

All helpers open one file, root's alone, and lock in it the byte whose offset is the uid: fcntl(2), open
file description locks, which the kernel takes back when a helper dies. What its jobs are then is on the way
to death, but may still be there: so a uid is taken only when no process has it.
"""

import errno
import fcntl
import os
import stat
import struct
from contextlib import suppress

from helper.policy import Policy, Refusal, SetupError
from helper.wire import Stage

PATH = "/run/telehandler.uids"
_FLOCK = "hhqqi4x"  # struct flock: type, whence, start, length, pid, which must be 0


class Uids:
    """Takes uids of the policy's range, and gives them back. Raises SetupError when the file is not ours alone."""

    def __init__(self, policy: Policy) -> None:
        self.first: int = policy.uid_first
        self.count: int = policy.uid_count
        self.taken: set[int] = set()
        # A place of its own to begin at, and on from there: a uid comes again as late as can be.
        self.next = int.from_bytes(os.urandom(8), "little")
        try:
            self.fd = os.open(PATH, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        except OSError as error:
            raise SetupError(f"{PATH}, where helpers lock the uids of jobs: {error.strerror}; is /run there?") from None
        status = os.fstat(self.fd)
        if status.st_uid != 0 or not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
            raise SetupError(f"{PATH} is not a file that only root can open: remove it")

    def take(self) -> int:
        """A uid that no live job and no process has. Raises Refusal when there is none."""
        for _ in range(self.count):
            uid = self.first + self.next % self.count
            self.next += 1
            if uid not in self.taken and self._lock(fcntl.F_WRLCK, uid):
                self.taken.add(uid)
                if not _in_use(uid):
                    return uid
                self.give_back(uid)
        last = self.first + self.count - 1
        text = f"jobs of this machine have all uids from {self.first} to {last}: the policy's job_uids can name more"
        raise Refusal(Stage.CAPACITY, errno.EAGAIN, text)

    def give_back(self, uid: int) -> None:
        self.taken.remove(uid)
        with suppress(Refusal):  # then nobody else can take it: no harm
            self._lock(fcntl.F_UNLCK, uid)

    def _lock(self, kind: int, uid: int) -> bool:
        """Whether the byte is no other helper's; to us the kernel would give our own a second time."""
        try:
            fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, uid, 1, 0))
        except BlockingIOError:
            return False
        except OSError as error:  # no memory for the lock
            text = f"no uid can be locked in {PATH}: {error.strerror}"
            raise Refusal(Stage.CAPACITY, error.errno or errno.EIO, text) from None
        return True


def _in_use(uid: int) -> bool:
    """Whether any process has the uid: getpriority(2) fails with ESRCH when none has."""
    with suppress(ProcessLookupError):
        os.getpriority(os.PRIO_USER, uid)
        return True
    return False
