"""The root-owned policy: who may ask, which uids, which limits, which views of the file system.

Read once, before the first request. policy.toml beside this file is the built-in policy and the
schema: a file of the administrator's may set its keys anew, and no others.
"""

import os
import re
import stat
import sys
import tomllib
from types import SimpleNamespace
from typing import Any

from helper.wire import Limit

BUILT_IN = os.path.join(os.path.dirname(os.path.realpath(__file__)), "policy.toml")
DEFAULT_PATH = "/etc/telehandler/policy.toml"
CONTROLLERS = ("cpu", "memory", "io", "pids")
_MAX_FILE = 1 << 20
_PATHS = ("cgroup_root", "root", "io_devices", "hidden")


class SetupError(Exception):
    """The helper cannot start; the message says why and what to do."""


class Policy(SimpleNamespace):
    """policy.toml's keys; `default` and `maximum` by Limit; `profiles`: a Profile each, by name."""


class Profile(SimpleNamespace):
    """A view of the file system and the network: the keys of [profile.host] and its `name`."""


class _Source:
    """One TOML text, for errors that name the file, line and key."""

    def __init__(self, path: str, text: str) -> None:
        self.path, self.text = path, text
        try:
            self.tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise SetupError(f"{path}: {error}") from None

    def error(self, key: str, wanted: str) -> SetupError:
        name = re.escape(key.rpartition(".")[2])
        found = re.search(rf"^[\[\s\w.]*\b{name}\b", self.text, re.MULTILINE)
        line = self.text.count("\n", 0, found.end()) + 1 if found else 1
        return SetupError(f"{self.path}, line {line}: {key} must be {wanted}")

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
        if key in _PATHS and not all(isinstance(item, str) and _normal(item) for item in items):
            raise self.error(name, "an absolute path without . and ..")
        if key in ("read_only", "writable") and not all(isinstance(item, str) and _bind(item) for item in items):
            raise self.error(name, 'a list of "/source:/target"')
        if key == "network" and value not in ("none", "host"):
            raise self.error(name, '"none" or "host"')
        if key == "allow_missing_controllers" and not all(item in CONTROLLERS for item in items):
            raise self.error(name, f"a list of: {', '.join(CONTROLLERS)}")
        if key == "allowed_uids" and not all(type(item) is int for item in items):
            raise self.error(name, "a list of numbers")
        if type(value) is int and not 1 <= value < 1 << 62:
            raise self.error(name, "a number of 1 or more")


def _normal(path: str) -> bool:
    return path.startswith("/") and os.path.normpath(path) == path


def _bind(text: str) -> bool:
    source, _, target = text.partition(":")
    return _normal(source) and _normal(target)


def parse(path: str, text: str) -> Policy:
    """The built-in policy with `text` in it; `path` is for messages. Raises SetupError."""
    source = _Source(path, text)
    with open(BUILT_IN, encoding="utf-8") as file:
        top = source.merge(_Source(BUILT_IN, file.read(_MAX_FILE)).tables, source.tables, "")
    default, maximum = top["limits"]["default"], top["limits"]["maximum"]
    default["memory_high_bytes"] = default["memory_high_bytes"] or default["memory_bytes"] * 3 // 4
    for key, value in default.items():
        if value > maximum[key]:
            raise source.error(f"limits.maximum.{key}", "at least the default")
    first, count = top["job_uids"]["first"], top["job_uids"]["count"]
    if first < 1000 or first + count > 1 << 31 or count < top["max_jobs"]:
        raise source.error("job_uids", "from 1000 to 2^31 - 1 and hold max_jobs")
    top |= {key: {Limit[name.upper()]: value for name, value in table.items()} for key, table in top["limits"].items()}
    profiles = {name: Profile(name=name, **table) for name, table in top["profile"].items()}
    return Policy(profiles=profiles, uid_first=first, uid_count=count, **top)


def load(path: str | None, seen: set[str]) -> Policy:
    """The policy of `path`, else of DEFAULT_PATH, else the built-in one. Raises SetupError."""
    chosen = path or DEFAULT_PATH
    trusted(BUILT_IN, seen)
    if not path and not os.path.exists(chosen):
        return parse(BUILT_IN, "")
    try:
        trusted(chosen, seen)
        with open(chosen, encoding="utf-8") as file:
            return parse(chosen, file.read(_MAX_FILE))
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
    """Checks the interpreter and every imported file the same way (S11)."""
    modules = list(sys.modules.values())
    files = [getattr(module, name, None) for module in modules for name in ("__file__", "__cached__")]
    for path in [sys.executable, *filter(None, files)]:
        if os.path.exists(path):
            trusted(path, seen)
