"""A job's limits by the wire's names: the cgroup controller that enforces each, and the flag that sets it.

Where the root policy allows jobs without a controller, its limits are not in force, and whoever asks for one is told.
Imports nothing.
"""

from collections.abc import Collection, Iterable

_CONTROLLERS = {
    "cpu_millis": "cpu",
    "memory_bytes": "memory",
    "memory_high_bytes": "memory",
    "pids": "pids",
    **dict.fromkeys(("read_bps", "write_bps", "read_iops", "write_iops"), "io"),
}
_FLAGS = {
    "cpu_millis": "--cpus",
    "memory_bytes": "--memory",
    "memory_high_bytes": "--memory-reservation",
    "pids": "--pids-limit",
    "read_bps": "--device-read-bps",
    "write_bps": "--device-write-bps",
    "read_iops": "--device-read-iops",
    "write_iops": "--device-write-iops",
}


def of_request(asked: Iterable[str]) -> list[str]:
    """Those of the limits that were asked for which a cgroup enforces."""
    return [name for name in asked if name in _CONTROLLERS]


def without_file(rows: Iterable[bytes]) -> list[str]:
    """The limits that have no file of a cgroup among a dry run's rows, so that nothing enforces them."""
    there = {row.partition(b" ")[0].partition(b".")[0].decode() for row in rows if b"." in row.partition(b" ")[0]}
    return [name for name, controller in _CONTROLLERS.items() if controller not in there]


def of_controllers(missing: Collection[str]) -> list[str]:
    """The limits that these controllers would enforce."""
    return [name for name, controller in _CONTROLLERS.items() if controller in missing]


def marked(rows: list[bytes], unenforced: Collection[str]) -> list[bytes]:
    """A dry run's rows, with a word at each limit that is not in force."""
    names = {name.encode() for name in unenforced}
    return [row + b" (not enforced)" if row.partition(b" ")[0] in names else row for row in rows]


def warning(unenforced: Collection[str]) -> str:
    """For who asked for these; empty when there are none."""
    if not unenforced:
        return ""
    flags = ", ".join(_FLAGS.get(name, name) for name in unenforced)
    lacking = ", ".join(dict.fromkeys(_CONTROLLERS.get(name, name) for name in unenforced))
    return f"not enforced on this job: {flags}; the machine has no cgroup controller for it: {lacking}"
