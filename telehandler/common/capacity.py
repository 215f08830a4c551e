"""Whether there is room for one more job, told before anything of it is made."""

import errno
import os
import resource
from pathlib import Path

from telehandler.common.errors import Exhausted

# What a disk or the kernel is out of, whatever the step that met it.
_OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
ERRORS = (*_OF_A_DISK, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS)
SPARE_BYTES = 1 << 20  # of the state directory's disk: for the records of jobs that run
SPARE_FILES = 16
FDS_OF_A_START = 7  # those that STARTED brings at most, the two of the log, the one of its input's state
SPARE_FDS = 16


def lowest_fd() -> int:
    """The lowest that is free: all below are in use. Raises OSError when there is none."""
    fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
    os.close(fd)
    return fd


def check(state: Path, starting: int) -> None:
    """For one job beside `starting` others that are not yet there. Raises Exhausted, or the disk's OSError."""
    disk = os.statvfs(state)
    if disk.f_flag & os.ST_RDONLY:
        raise Exhausted("the disk of the server's state directory is read-only: mount it for writing")
    # Some file systems have no bound of their own: 0.
    if (disk.f_blocks and disk.f_bavail * disk.f_frsize < SPARE_BYTES) or (
        disk.f_files and disk.f_favail < SPARE_FILES
    ):
        raise Exhausted("the disk of the server's state directory is full: remove jobs or other files")
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if lowest_fd() > most - SPARE_FDS - FDS_OF_A_START * (starting + 1):
        raise Exhausted(f"the server is at its limit of {most} open files: end jobs or watches, or raise the limit")
