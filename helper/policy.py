"""The root-owned policy: who may ask, which uids, which limits, which views of the file system.

Read once, before the first request. Unknown keys are errors: a misspelt bound must not vanish.
contrib/policy.toml has every key, explained; the defaults here are the built-in policy.
"""

import os
import re
import stat
import sys
import tomllib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

from helper.wire import Limit

DEFAULT_PATH = "/etc/telehandler/policy.toml"
CONTROLLERS = ("cpu", "memory", "io", "pids")
_MAX_FILE = 1 << 20
_MIB, _GIB, _TIB = 1 << 20, 1 << 30, 1 << 40
HIDDEN = "/root /run /boot /mnt /media /etc/telehandler /var/lib/telehandler /var/log".split()
# limit: (default, maximum); memory_high_bytes defaults to three quarters of memory_bytes.
LIMITS = {
    Limit.CPU_MILLIS: (1000, 256_000),
    Limit.MEMORY_BYTES: (512 * _MIB, _TIB),
    Limit.MEMORY_HIGH_BYTES: (0, _TIB),
    Limit.PIDS: (512, 100_000),
    Limit.READ_BPS: (80 * _MIB, _TIB),
    Limit.WRITE_BPS: (40 * _MIB, _TIB),
    Limit.READ_IOPS: (1000, 10_000_000),
    Limit.WRITE_IOPS: (1000, 10_000_000),
    Limit.FILE_BYTES: (64 * _GIB, _TIB),
    Limit.OPEN_FILES: (1024, 1_000_000),
}


class PolicyError(Exception):
    """A policy that cannot be trusted or understood; the message names the file, line and key."""


class Policy(SimpleNamespace):
    """The keys of _TOP, with `uid_first`, `uid_count`, `default` and `maximum` by Limit, `profiles` by name."""


class Profile(SimpleNamespace):
    """A view of the file system and the network: the keys of _PROFILE and its `name`; binds have _BIND's."""


class _Rule(NamedTuple):
    default: Any  # its type is the value's; for a list, `valid` is each item's
    valid: Callable[[Any], bool]
    wanted: str


def _range(default: int, low: int, high: int) -> _Rule:
    return _Rule(default, lambda value: type(value) is int and low <= value <= high, f"from {low} to {high}")


def _path(default: Any) -> _Rule:
    def valid(value: Any) -> bool:
        return isinstance(value, str) and value.startswith("/") and os.path.normpath(value) == value

    return _Rule(default, valid, "an absolute path without . and ..")


def _choice(default: Any, choices: tuple[Any, ...]) -> _Rule:
    return _Rule(default, lambda value: value in choices, "one of: " + ", ".join(map(str, choices)))


def _any_table() -> _Rule:
    return _Rule({}, lambda _: True, "a table")


_TOP = {
    "allowed_uids": _Rule([], lambda value: type(value) is int and value >= 0, "a number"),
    "cgroup_root": _path("/sys/fs/cgroup"),
    "max_jobs": _range(1000, 1, 10_000),
    "starts_per_second": _range(500, 1, 10_000),
    "allow_missing_controllers": _choice([], CONTROLLERS),
    "io_devices": _path([]),
    "job_uids": _any_table(),
    "limits": _any_table(),
    "profile": _any_table(),
}
# Clear of every range that distributions and systemd hand out: systemd.io/UIDS-GIDS.
_UIDS = {"first": _range(1_900_000_000, 1000, (1 << 31) - 1), "count": _range(65_536, 1, 1 << 20)}
_PROFILE = {
    "root": _path("/"),
    "hidden": _path(HIDDEN),
    "binds": _Rule([], lambda value: isinstance(value, dict), "a table"),
    "network": _choice("none", ("none", "host")),
    "tmp_bytes": _range(256 * _MIB, 1, _TIB),
}
_BIND = {"source": _path(""), "target": _path(""), "writable": _choice(False, (True, False))}


class _Source(NamedTuple):
    path: str
    text: str

    def read(self, table: Any, rules: dict[str, _Rule], where: str) -> dict[str, Any]:
        """`table` with defaults filled in; raises PolicyError at a key or value of no rule."""
        if not isinstance(table, dict):
            raise self.error(where, "a table")
        for key in table:
            if key not in rules:
                raise self.error(f"{where}{key}", f"one of: {', '.join(rules)}")
        for key, rule in rules.items():
            value = table.get(key, rule.default)
            items = value if isinstance(value, list) and isinstance(rule.default, list) else [value]
            given = key in table or not rule.valid("") and rule.default == ""
            if given and not (type(value) is type(rule.default) and all(map(rule.valid, items))):
                raise self.error(f"{where}{key}", rule.wanted)
        return {key: table.get(key, rule.default) for key, rule in rules.items()}

    def error(self, key: str, wanted: str) -> PolicyError:
        name = re.escape(key.rpartition(".")[2])
        found = re.search(rf"^[\[\s\w.]*\b{name}\b", self.text, re.MULTILINE)
        line = self.text.count("\n", 0, found.end()) + 1 if found else 1
        return PolicyError(f"{self.path}, line {line}: {key} must be {wanted}")


def parse(path: str, text: str) -> Policy:
    """The policy in `text`; `path` is for messages. Raises PolicyError."""
    source = _Source(path, text)
    try:
        top = source.read(tomllib.loads(text), _TOP, "")
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"{path}: {error}") from None
    uids = source.read(top.pop("job_uids"), _UIDS, "job_uids.")
    tables = source.read(top.pop("limits"), {"default": _any_table(), "maximum": _any_table()}, "limits.")
    bounds = {limit.name.lower(): _range(high, 1, 1 << 62) for limit, (_, high) in LIMITS.items()}
    maximum = source.read(tables["maximum"], bounds, "limits.maximum.")
    rules = {limit.name.lower(): _range(low, 1, maximum[limit.name.lower()]) for limit, (low, _) in LIMITS.items()}
    default = source.read(tables["default"], rules, "limits.default.")
    default["memory_high_bytes"] = default["memory_high_bytes"] or default["memory_bytes"] * 3 // 4
    over = [key for key, value in default.items() if value > maximum[key]]
    if over:
        raise source.error(f"limits.maximum.{over[0]}", "at least the default")
    profiles = {}
    for name, table in (top.pop("profile") or {"host": {}}).items():
        where = f"profile.{name}."
        profile = source.read(table, _PROFILE, where)
        profile["binds"] = [SimpleNamespace(**source.read(row, _BIND, f"{where}binds.")) for row in profile["binds"]]
        profiles[name] = Profile(name=name, **profile)
    if uids["first"] + uids["count"] > 1 << 31 or uids["count"] < top["max_jobs"]:
        raise source.error("job_uids.count", "at least max_jobs, and end below 2^31")
    by_limit = [{limit: table[limit.name.lower()] for limit in LIMITS} for table in (default, maximum)]
    top |= {"uid_first": uids["first"], "uid_count": uids["count"], "default": by_limit[0], "maximum": by_limit[1]}
    return Policy(**top, profiles=profiles)


def load(path: str | None, seen: set[str]) -> Policy:
    """The policy of `path`, else of DEFAULT_PATH, else the built-in one. Raises PolicyError."""
    chosen = path or DEFAULT_PATH
    try:
        trusted(chosen, seen)
        with open(chosen, encoding="utf-8") as file:
            return parse(chosen, file.read(_MAX_FILE))
    except FileNotFoundError:
        if path:
            raise PolicyError(f"{path}: no such policy file") from None
        return parse("built-in policy", "")
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"{chosen}: {error}") from None


def trusted(path: str, seen: set[str]) -> None:
    """Raises PolicyError unless `path` and all its parents are root's and nobody else can write them.

    A sticky directory counts: others cannot rename what root has in it. `seen` saves repeated work.
    """
    path = os.path.realpath(path)
    while path not in seen:
        status = os.lstat(path)
        sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        if status.st_uid != 0 or (status.st_mode & 0o022 and not sticky):
            found = f"uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):o}"
            raise PolicyError(f"{path} is not root's alone ({found}): chown root:root and chmod go-w")
        seen.add(path)
        path = os.path.dirname(path)


def trusted_code(seen: set[str]) -> None:
    """Checks the interpreter and every imported file the same way (S11)."""
    modules = list(sys.modules.values())
    files = [getattr(module, name, None) for module in modules for name in ("__file__", "__cached__")]
    for path in [sys.executable, *filter(None, files)]:
        if os.path.exists(path):
            trusted(path, seen)
