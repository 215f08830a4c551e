"""The root-owned policy: who may ask, which uids, which limits, which views of the file system.

Read once, before the first request. Unknown keys are errors: a misspelt bound must not vanish.
"""

import os
import re
import stat
import sys
import tomllib
from typing import Any, NamedTuple

from helper.wire import Limit

DEFAULT_PATH = "/etc/telehandler/policy.toml"
CONTROLLERS = ("cpu", "memory", "io", "pids")
MIB = 1 << 20
GIB = 1 << 30


class PolicyError(Exception):
    """A policy that cannot be trusted or understood; the message names the file, line and key."""


class Bind(NamedTuple):
    source: str
    target: str
    writable: bool


class Profile(NamedTuple):
    """A view of the file system and the network."""

    name: str
    root: str
    hidden: tuple[str, ...]
    binds: tuple[Bind, ...]
    network: str  # "none" or "host"
    tmp_bytes: int


class Policy(NamedTuple):
    allowed_uids: tuple[int, ...]  # empty: whoever started the helper
    cgroup_root: str
    uid_first: int
    uid_count: int
    max_jobs: int
    starts_per_second: int
    allow_missing_controllers: tuple[str, ...]
    io_devices: tuple[str, ...]  # empty: the disk that backs the profile's root
    default: dict[Limit, int]
    maximum: dict[Limit, int]
    profiles: dict[str, Profile]  # the first is the default


HIDDEN = ("/root", "/run", "/boot", "/mnt", "/media", "/etc/telehandler", "/var/lib/telehandler", "/var/log")
DEFAULTS = {
    Limit.CPU_MILLIS: 1000,
    Limit.MEMORY_BYTES: 512 * MIB,
    Limit.PIDS: 512,
    Limit.READ_BPS: 80 * MIB,
    Limit.WRITE_BPS: 40 * MIB,
    Limit.READ_IOPS: 1000,
    Limit.WRITE_IOPS: 1000,
    Limit.FILE_BYTES: 64 * GIB,
    Limit.OPEN_FILES: 1024,
}
MAXIMA = {
    Limit.CPU_MILLIS: 256_000,
    Limit.MEMORY_BYTES: 1024 * GIB,
    Limit.MEMORY_HIGH_BYTES: 1024 * GIB,
    Limit.PIDS: 100_000,
    Limit.READ_BPS: 100 * GIB,
    Limit.WRITE_BPS: 100 * GIB,
    Limit.READ_IOPS: 10_000_000,
    Limit.WRITE_IOPS: 10_000_000,
    Limit.FILE_BYTES: 1024 * GIB,
    Limit.OPEN_FILES: 1_000_000,
}
_LIMIT_KEYS = {limit.name.lower(): limit for limit in Limit}
_INT = (int, lambda value: value >= 0, "a number of 0 or more")
_PATH = (str, lambda value: os.path.normpath(value) == value and value.startswith("/"), "an absolute, normal path")


def trusted(path: str, seen: set[str]) -> None:
    """Raises PolicyError unless `path` and all its parents are root's and nobody else can write them.

    A sticky directory counts: others cannot rename what root has in it. `seen` saves repeated work.
    """
    path = os.path.realpath(path)
    while path not in seen:
        status = os.lstat(path)
        sticky_dir = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        if status.st_uid != 0 or (status.st_mode & 0o022 and not sticky_dir):
            raise PolicyError(f"{path} is not root's alone (uid {status.st_uid}, mode {status.st_mode & 0o7777:o}): chown root:root and chmod go-w")
        seen.add(path)
        path = os.path.dirname(path)


def trusted_code(seen: set[str]) -> None:
    """Checks the interpreter and every imported file the same way (S11)."""
    files = [sys.executable]
    for module in list(sys.modules.values()):
        files += [getattr(module, name, None) for name in ("__file__", "__cached__")]
    for path in files:
        if path and os.path.exists(path):
            trusted(path, seen)


class _Table:
    """Takes typed keys out of one TOML table; `end` refuses what is left."""

    def __init__(self, values: Any, where: str, source: "tuple[str, str]") -> None:
        self.where, self.source = where, source
        if not isinstance(values, dict):
            self.fail("", "a table")
        self.values = dict(values)

    def fail(self, key: str, wanted: str) -> None:
        path, text = self.source
        name = key or self.where.rpartition(".")[2]
        found = re.search(rf"^[\s\[]*[\w.]*\b{re.escape(name)}\b", text, re.MULTILINE)
        line = text.count("\n", 0, found.end()) + 1 if found else 1
        raise PolicyError(f"{path}, line {line}: {'.'.join(filter(None, (self.where, key)))} must be {wanted}")

    def take(self, key: str, rule: Any, default: Any) -> Any:
        kind, valid, wanted = rule
        value = self.values.pop(key, default)
        if type(value) is not kind or not valid(value):
            self.fail(key, wanted)
        return value

    def take_list(self, key: str, rule: Any, default: tuple[Any, ...]) -> tuple[Any, ...]:
        kind, valid, wanted = rule
        value = self.values.pop(key, list(default))
        if type(value) is not list or not all(type(item) is kind and valid(item) for item in value):
            self.fail(key, f"a list, each {wanted}")
        return tuple(value)

    def table(self, key: str) -> "_Table":
        return _Table(self.values.pop(key, {}), f"{self.where}.{key}".lstrip("."), self.source)

    def end(self) -> None:
        for key in self.values:
            self.fail(key, "left out: no such key")


def _limits(table: _Table, base: dict[Limit, int]) -> dict[Limit, int]:
    positive = (int, lambda value: 0 < value < 1 << 62, "a number of 1 or more")
    limits = dict(base)
    for key in list(table.values):
        if key in _LIMIT_KEYS:
            limits[_LIMIT_KEYS[key]] = table.take(key, positive, 0)
    table.end()
    return limits


def _profile(name: str, table: _Table) -> Profile:
    binds = []
    rows = table.values.pop("binds", [])
    for row in rows if isinstance(rows, list) else [rows]:
        entry = _Table(row, f"{table.where}.binds", table.source)
        source = entry.take("source", _PATH, "")
        flag = (bool, lambda _: True, "true or false")
        binds.append(Bind(source, entry.take("target", _PATH, source), entry.take("writable", flag, False)))
        entry.end()
    network = (str, lambda value: value in ("none", "host"), '"none" or "host"')
    profile = Profile(
        name,
        table.take("root", _PATH, "/"),
        table.take_list("hidden", _PATH, HIDDEN),
        tuple(binds),
        table.take("network", network, "none"),
        table.take("tmp_bytes", _INT, 256 * MIB),
    )
    table.end()
    return profile


def parse(path: str, text: str) -> Policy:
    """The policy in `text`; `path` is for messages. Raises PolicyError."""
    try:
        top = _Table(tomllib.loads(text), "", (path, text))
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"{path}: {error}") from None
    controller = (str, CONTROLLERS.__contains__, f"one of {', '.join(CONTROLLERS)}")
    count = (int, lambda value: 1 <= value <= 10_000, "from 1 to 10000")
    uids, limits, profiles = top.table("job_uids"), top.table("limits"), top.table("profile")
    names = list(profiles.values) or ["host"]
    policy = Policy(
        top.take_list("allowed_uids", _INT, ()),
        top.take("cgroup_root", _PATH, "/sys/fs/cgroup"),
        # Clear of every range that distributions and systemd hand out: systemd.io/UIDS-GIDS.
        uids.take("first", (int, lambda v: 1000 <= v < 1 << 31, "from 1000 to 2^31 - 1"), 1_900_000_000),
        uids.take("count", (int, lambda v: 1 <= v <= 1 << 20, "from 1 to 2^20"), 65_536),
        top.take("max_jobs", count, 1000),
        top.take("starts_per_second", count, 500),
        top.take_list("allow_missing_controllers", controller, ()),
        top.take_list("io_devices", _PATH, ()),
        _limits(limits.table("default"), DEFAULTS),
        _limits(limits.table("maximum"), MAXIMA),
        {name: _profile(name, profiles.table(name)) for name in names},
    )
    for table in (uids, limits, profiles, top):
        table.end()
    for limit, value in policy.default.items():
        if value > policy.maximum[limit]:
            raise PolicyError(f"{path}: limits.default.{limit.name.lower()} is over its maximum")
    if policy.uid_first + policy.uid_count > 1 << 31 or policy.uid_count < policy.max_jobs:
        raise PolicyError(f"{path}: job_uids must end below 2^31 and hold max_jobs uids")
    return policy


def load(path: str | None, seen: set[str]) -> Policy:
    """The policy of `path`, else of DEFAULT_PATH, else the built-in one. Raises PolicyError."""
    chosen = path or DEFAULT_PATH
    try:
        trusted(chosen, seen)
        with open(chosen, encoding="utf-8") as file:
            return parse(chosen, file.read(MIB))
    except FileNotFoundError:
        if path:
            raise PolicyError(f"{path}: no such policy file") from None
        return parse("built-in policy", "")
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"{chosen}: {error}") from None
