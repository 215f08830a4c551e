"""What the guest's tests share: where its disks are, and a job's figures."""

import os
from pathlib import Path

from support.helper_driver import Helper, Job

from helper.wire import Type

MIB = 1 << 20
WHOLE, PARTITION = Path("/vm-whole"), Path("/vm-partition")
# The built-in policy, every controller needed. The guest's root is an overlay without a disk of its own, so io
# limits act on those of the binds.
POLICY = f"""
[profile.host]
writable = ["{WHOLE}:/mnt"]
[profile.partition]
writable = ["{PARTITION}:/mnt"]
"""


def cgroup_file(job: Job, name: str) -> str:
    """A file of the job's cgroup, through the fd that an api gets."""
    with open(os.open(name, os.O_RDONLY, dir_fd=job.cgroup)) as file:
        return file.read().strip()


def figure(job: Job, name: str, key: str) -> int:
    """A figure of a flat-keyed file."""
    words = cgroup_file(job, name).split()
    return int(words[words.index(key) + 1])


def end(helper: Helper, job: Job) -> dict[str, int]:
    """Kills a job: its facts."""
    helper.request(Type.KILL, handle=job.handle)
    return helper.finish(job).facts


def device_number(disk: str) -> str:
    return Path(f"/sys/block/{disk}/dev").read_text().strip()
