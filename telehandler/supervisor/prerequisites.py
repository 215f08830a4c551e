"""What must be there before the helper can start at all, each with its remedy: told by `check` and at start-up."""

import os
import platform
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from telehandler.common.errors import HelperUnavailable

LEAST_KERNEL = (5, 14)  # cgroup.kill; clone3 into a cgroup and mount_setattr are older
DEFAULT_POLICY, DEFAULT_ROOT = Path("/etc/telehandler/policy.toml"), "/sys/fs/cgroup"


class Finding(NamedTuple):
    """`ok` None: it could not be seen here, which the text explains; it does not count."""

    name: str
    ok: bool | None
    text: str
    remedy: str = ""


def findings(cgroup_root: str | None, policy: str | None) -> Iterator[Finding]:
    """Kernel, machine, cgroup v2."""
    release = platform.release()
    numbers = tuple(int(word) for word in release.split("-")[0].split(".")[:2])
    remedy = f"Linux {LEAST_KERNEL[0]}.{LEAST_KERNEL[1]} or later is needed"
    yield Finding("kernel", numbers >= LEAST_KERNEL, f"Linux {release}", remedy)
    yield Finding("machine", platform.machine() == "x86_64", platform.machine(), "the helper knows x86_64 only")
    yield _cgroup(os.path.realpath(cgroup_root or _root_of(policy)))


def require(cgroup_root: str | None, policy: str | None) -> None:
    """Raises HelperUnavailable for the first that is missing."""
    for finding in findings(cgroup_root, policy):
        if not finding.ok:
            raise HelperUnavailable(f"{finding.text}: {finding.remedy}")


def _root_of(policy: str | None) -> str:
    """The policy's cgroup_root; what is wrong with the policy itself is the helper's to say."""
    try:
        path = Path(policy) if policy else DEFAULT_POLICY
        return str(tomllib.loads(path.read_text()).get("cgroup_root", DEFAULT_ROOT))
    except (OSError, ValueError):
        return DEFAULT_ROOT


def _cgroup(root: str) -> Finding:
    """As the helper looks: `root` itself, else a cgroup2 mount below it (a hybrid set-up)."""
    rows = [line.split() for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()]
    # From the mount point on: kind, and the options of mount and file system.
    mounts = [(row[4], row[row.index("-") + 1], {*row[5].split(","), *row[-1].split(",")}) for row in rows]
    inside = [mount for mount in mounts if _contains(mount[0], root) or _contains(root, mount[0])]
    if os.path.exists(f"{root}/cgroup.controllers"):
        found = [mount for mount in mounts if mount[1] == "cgroup2" and _contains(mount[0], root)][-1:]
    else:
        found = [mount for mount in inside if mount[1] == "cgroup2" and _contains(root, mount[0])]
        found = [mount for mount in found if os.path.exists(f"{mount[0]}/cgroup.controllers")][:1]  # not covered
    if not found:
        old = " (only version 1)" if any(kind == "cgroup" for _, kind, _ in inside) else ""
        remedy = f"boot with systemd.unified_cgroup_hierarchy=1, `mount -t cgroup2 none {root}`, or --cgroup-root DIR"
        return Finding("cgroup", False, f"there is no cgroup v2 at or below {root}{old}", remedy)
    point, _, options = found[0]
    remedy = f"`mount -o remount,rw {point}`; a container needs a writable cgroup of its own"
    if "ro" in options:
        return Finding("cgroup", False, f"cgroup v2 at {point} is read-only", remedy)
    return Finding("cgroup", True, f"cgroup v2 is at {point}", remedy)


def _contains(directory: str, path: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")
