"""Policy files for the helper that suit this machine."""

import os
from itertools import count
from pathlib import Path

from support.cgroups import missing_controllers

_RANGE = 16
# A pid is one of its namespace; uids, and the file that helpers lock them in, are all of the machine's.
_process = os.getpid() + os.stat("/proc/self/ns/pid").st_ino
_ranges = count(2_000_000_000 + _process % 30_000 * 4096, _RANGE)


def policy_text(extra: str = "") -> str:
    """A policy that goes without the controllers this machine lacks, and no others."""
    missing, device = missing_controllers(), os.stat("/").st_dev
    io_devices = []
    if not os.path.exists(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"):  # an overlay, as in tests/vm
        names = [path.parent.name for path in sorted(Path("/sys/block").glob("*/device"))]
        io_devices = [f"/dev/{name}" for name in names if os.path.exists(f"/dev/{name}")]
        missing += [] if io_devices or "io" in missing else ["io"]
    return f"allow_missing_controllers = {missing!r}\nio_devices = {io_devices!r}\n{extra}"


def own_uids(number: int) -> str:
    """A range of uids for the policy that no other test has: those of jobs are shared by all helpers of the machine."""
    first = next(_ranges)
    for _ in range(number // _RANGE):
        next(_ranges)
    return f"[job_uids]\nfirst = {first}\ncount = {number}\n"


def write_policy(place: Path, name: str, text: str) -> Path:
    path = place / f"{name}.toml"
    path.write_text(text)
    path.chmod(0o644)
    return path
