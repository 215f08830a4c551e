"""The root-owned policy: who may ask, which uids, which limits, which views of the file system.

Read once, before the first request. policy.toml beside this file is the built-in policy and the
schema: a file of the administrator's may set its keys anew, and no others.
"""

import errno
import os
import re
import stat
import sys
import tomllib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from helper.wire import Stage

_HERE = os.path.dirname(os.path.realpath(__file__))
BUILT_IN = os.path.join(_HERE, "policy.toml")
DEFAULT_PATH = "/etc/telehandler/policy.toml"
CONTROLLERS = ("cpu", "memory", "io", "pids")
_MAX_FILE = 16 * 1024  # bytes; what is in it fits in one message


class SetupError(Exception):
    """The helper cannot start; the message says why and what to do."""


class Refusal(Exception):
    """Stage, errno, text: an operational failure, answered with ERROR; the connection lives on."""


class Policy(SimpleNamespace):
    """policy.toml's keys; `default` and `maximum` limits by name; `profiles`: a Profile each, by name."""


class Profile(SimpleNamespace):
    """A view of the file system and the network: the keys of [profile.host] and its `profile_name`."""


def data(name: str) -> dict[str, Any]:
    """The tables of a TOML file beside this one. As code is, it is read before `trusted_code` has checked it."""
    with open(os.path.join(_HERE, name), "rb") as file:
        return tomllib.load(file)


def _normal(path: Any) -> bool:
    return isinstance(path, str) and path.startswith("/") and os.path.normpath(path) == path and "\0" not in path


def _bind(text: Any) -> bool:
    return isinstance(text, str) and text.count(":") == 1 and all(map(_normal, text.split(":")))


# Keys, what each of their values must be, and the test of that.
_CHECKS: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("cgroup_root root io_devices hidden", "an absolute path without . and ..", _normal),
    ("read_only writable", 'a list of "/source:/target"', _bind),
    ("network", '"none" or "host"', ("none", "host").__contains__),
    ("allow_missing_controllers", f"a list of: {', '.join(CONTROLLERS)}", CONTROLLERS.__contains__),
    ("allowed_uids", "a list of numbers", lambda value: type(value) is int),
)


class _Source:
    """One TOML text, for errors that name the file, line and key."""

    def __init__(self, path: str, text: str) -> None:
        self.path, self.text = path, text
        try:
            self.tables = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise SetupError(f"{path}: {error}") from None

    def error(self, key: str, wanted: str) -> SetupError:
        at = 0
        for name in map(re.escape, key.split(".")):  # each behind the one before: tables share keys
            found = re.compile(rf'^[\[\s\w."]*\b{name}\b', re.MULTILINE).search(self.text, at)
            at = found.end() if found else at
        return SetupError(f"{self.path}, line {self.text.count(chr(10), 0, at) + 1}: {key} must be {wanted}")

    def merge(self, base: dict[str, Any], given: dict[str, Any], where: str) -> dict[str, Any]:
        """`base` with `given` in it, of the same keys and types; raises SetupError."""
        result = dict(base)
        for key, value in given.items():
            name = f"{where}{key}"
            if where == "profile." and isinstance(value, dict):
                result[key] = self.merge(base.get(key, base["host"]), value, f"{name}.")
            elif key not in base:
                raise self.error(name, f"one of: {', '.join(base)}")
            elif type(value) is not type(base[key]):
                raise self.error(name, f"a {type(base[key]).__name__}")
            elif isinstance(value, dict):
                result[key] = self.merge(base[key], value, f"{name}.")
            else:
                self.check(key, name, value)
                result[key] = value
        return result

    def check(self, key: str, name: str, value: Any) -> None:
        """One value on its own; what hangs together is `parse`'s."""
        items = value if isinstance(value, list) else [value]
        for keys, wanted, valid in _CHECKS:
            if key in keys.split() and not all(map(valid, items)):
                raise self.error(name, wanted)
        least = 0 if name == "limits.default.memory_high_bytes" else 1  # 0: as memory_bytes
        if type(value) is int and not least <= value < 1 << 62:
            raise self.error(name, f"a number of {least} or more")


def parse(path: str, text: str) -> Policy:
    """The built-in policy with `text` in it; `path` is for messages. Raises SetupError."""
    source = _Source(path, text)
    top = source.merge(data("policy.toml"), source.tables, "")
    default, maximum = top["limits"]["default"], top["limits"]["maximum"]
    default["memory_high_bytes"] = default["memory_high_bytes"] or default["memory_bytes"]
    for key, value in default.items():
        if value > maximum[key]:
            raise source.error(f"limits.maximum.{key}", "at least the default")
    if default["memory_high_bytes"] > default["memory_bytes"]:
        raise source.error("limits.default.memory_high_bytes", "at most memory_bytes")
    first, count = top["job_uids"]["first"], top["job_uids"]["count"]
    if first < 1000 or first + count > 1 << 31 or count < top["max_jobs"]:
        raise source.error("job_uids", "from 1000 to 2^31 - 1 and hold max_jobs")
    profiles = {name: Profile(profile_name=name, **table) for name, table in top["profile"].items()}
    return Policy(profiles=profiles, uid_first=first, uid_count=count, default=default, maximum=maximum, **top)


def limits_of(policy: Policy, profile: Profile, limits: dict[str, int]) -> dict[str, int]:
    """A job's limits, of what it asks for (0: the default) and the policy. Raises Refusal."""
    asked = {name: value for name, value in limits.items() if value}
    for name, value in asked.items():
        if value > policy.maximum[name]:
            raise Refusal(Stage.LIMIT, errno.EINVAL, f"{name} is over {policy.maximum[name]}, the policy's maximum")
    final: dict[str, int] = policy.default | asked
    memory = final["memory_bytes"]
    # memory.high below memory.max makes a job crawl instead of ending it: only for who wants that.
    if "memory_bytes" in asked and "memory_high_bytes" not in asked:
        final["memory_high_bytes"] = min(memory, policy.maximum["memory_high_bytes"])
    # Files in memory are the job's memory. They end with ENOSPC before the job does, and leave it a quarter at least.
    for name, share, other in (("tmp_bytes", memory // 2, "shm_bytes"), ("shm_bytes", memory // 4, "tmp_bytes")):
        size = min(profile.tmp_bytes, policy.maximum[name], share, memory - final.get(other, 0))
        final.setdefault(name, max(size, 1))  # 0 would be no limit: tmpfs(5)
    if final["memory_high_bytes"] > memory:
        raise Refusal(Stage.LIMIT, errno.EINVAL, f"memory_high_bytes is over the job's memory_bytes, {memory}")
    if final["tmp_bytes"] + final["shm_bytes"] > memory:
        text = f"tmp_bytes and shm_bytes, which are of the job's memory, are over its memory_bytes, {memory}"
        raise Refusal(Stage.LIMIT, errno.EINVAL, text)
    return final


def load(path: str | None, seen: set[str]) -> Policy:
    """The policy of `path`, else of DEFAULT_PATH, else the built-in one. Raises SetupError."""
    if not path and not os.path.lexists(DEFAULT_PATH):  # a link to nowhere is an error, below
        return parse(BUILT_IN, "")
    chosen = os.path.realpath(path or DEFAULT_PATH)  # what is checked is what is opened
    try:
        trusted(chosen, seen)
        with open(chosen, "rb") as file:
            text = file.read(_MAX_FILE + 1)
        if len(text) > _MAX_FILE:
            raise SetupError(f"{chosen} has over {_MAX_FILE} bytes")
        rules = parse(chosen, text.decode())
        for device in rules.io_devices:
            if not stat.S_ISBLK(os.stat(device).st_mode):
                raise SetupError(f"{chosen}: io_devices: {device} is not a block device")
        return rules
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"the policy cannot be read: {error}") from None


def trusted(path: str, seen: set[str]) -> None:
    """Raises SetupError unless `path` and all its parents are root's and nobody else can write them.

    A sticky directory counts: others cannot rename what root has in it. `seen` saves repeated work.
    """
    path = os.path.realpath(path)
    while path not in seen:
        status = os.lstat(path)
        sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        if status.st_uid != 0 or (status.st_mode & 0o022 and not sticky):
            found = f"uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):o}"
            raise SetupError(f"{path} is not root's alone ({found}): chown root:root and chmod go-w")
        seen.add(path)
        path = os.path.dirname(path)


def trusted_code(seen: set[str]) -> None:
    """Checks the interpreter, the helper's own files and every imported one the same way (S11)."""
    own = [os.path.join(_HERE, name) for name in os.listdir(_HERE)]
    files = [getattr(module, name, None) for module in [*sys.modules.values()] for name in ("__file__", "__cached__")]
    for path in [sys.executable, *own, *filter(None, files)]:
        if os.path.exists(path):
            trusted(path, seen)
