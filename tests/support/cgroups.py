"""This machine's cgroup v2 tree: where it is, which controllers it has, which cgroups are a helper's."""

from pathlib import Path

CONTROLLERS = ("cpu", "memory", "io", "pids")


def cgroup_root() -> Path:
    """Where cgroup v2 is mounted."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2":
            return Path(fields[4])
    raise AssertionError("no cgroup v2 on this machine")


def missing_controllers() -> list[str]:
    there = (cgroup_root() / "cgroup.controllers").read_text().split()
    return [name for name in CONTROLLERS if name not in there]


def our_cgroups() -> set[str]:
    return {path.name for path in cgroup_root().glob("telehandler.*")}
