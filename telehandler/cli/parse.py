"""What verbs ask for: sizes, limits, variables, signals and so on, from the words of a command line."""

import datetime
import os
import re
import signal
from collections.abc import Mapping
from typing import Any

import click

from telehandler.common.errors import TelehandlerError

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
# The wire's limits, and the flags or, as docker names them, ulimits that set them.
_SIZES = {"memory_bytes": "--memory", "read_bps": "--device-read-bps", "write_bps": "--device-write-bps"}
_SIZES |= {"memory_high_bytes": "--memory-reservation", "tmp_bytes": "--tmp-size", "shm_bytes": "--shm-size"}
_COUNTS = {"pids": "--pids-limit", "read_iops": "--device-read-iops", "write_iops": "--device-write-iops"}
UNREAD_S = 60.0  # run --rm removes its job itself; so long after its end the server does, if run has not
_MAX_SIGNAL = 64
_MAX_ENV_FILE = 1 << 20  # bytes
_ULIMITS = {"nofile": "open_files", "fsize": "file_bytes"}


def size(text: str, what: str) -> int:
    """Bytes of `512m`, `1.5g`, `1024`. Raises TelehandlerError."""
    digits = text.strip().lower().removesuffix("ib").rstrip("bkmgt")
    unit = text.strip().lower().removesuffix("ib")[len(digits) :]
    unit = unit[0] if len(unit) == 2 and unit[1] == "b" else unit
    try:
        value = int(float(digits) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        raise TelehandlerError(f"{what} {text!r} is not a size such as 512m or 2g") from None
    return _within(value, text, what)


def duration_ms(text: str, what: str) -> int:
    """Milliseconds of `90`, `1.5s`, `10m`, `2h`, `1d`. Raises TelehandlerError."""
    digits = text.strip().lower().rstrip("smhd")
    unit = text.strip().lower()[len(digits) :]
    try:
        value = round(float(digits) * _SECONDS[unit] * 1000)
    except (ValueError, KeyError, OverflowError):
        raise TelehandlerError(f"{what} {text!r} is not a time such as 90, 1.5s, 10m or 2h") from None
    return _within(value, text, what)


def _within(value: int, text: str, what: str) -> int:
    if not 0 < value < 1 << 62:
        raise TelehandlerError(f"{what} {text!r} must be {'less' if value > 0 else 'more than 0'}")
    return value


def limits(given: Mapping[str, Any]) -> dict[str, int]:
    """Limits by the wire's names, from the options of cli.options.sandbox; what was not given is left out."""
    found: dict[str, int] = {}
    if (cpus := given["cpus"]) is not None:
        if not 0.01 <= cpus <= 10_000:
            raise TelehandlerError("--cpus must be from 0.01 up, such as 1.5")
        found["cpu_millis"] = round(cpus * 1000)
    for name, flag in _SIZES.items():
        if (text := given[_parameter(flag)]) is not None:
            found[name] = size(text, flag)
    for name, flag in _COUNTS.items():
        if (count := given[_parameter(flag)]) is not None:
            if count < 1:
                raise TelehandlerError(f"{flag} must be 1 or more")
            found[name] = count
    if given["timeout"] is not None:
        found["timeout_ms"] = duration_ms(given["timeout"], "--timeout")
    for entry in given["ulimit"]:
        kind, _, number = entry.partition("=")
        if kind not in _ULIMITS or not number.isascii() or not number.isdigit() or not int(number):
            raise TelehandlerError(f"--ulimit {entry!r} must be {' or '.join(f'{name}=N' for name in _ULIMITS)}")
        found[_ULIMITS[kind]] = int(number)
    return found


def _parameter(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def environment(entries: tuple[str, ...], files: tuple[str, ...]) -> dict[bytes, bytes]:
    """Variables of NAME=VALUE, or NAME for this process's own value; files have one a line, # comments."""
    lines: list[bytes] = []
    for file in files:
        try:
            with open(file, "rb") as stream:
                text = stream.read(_MAX_ENV_FILE + 1)
        except OSError as error:
            raise TelehandlerError(f"--env-file {file} cannot be read: {error.strerror}") from None
        if len(text) > _MAX_ENV_FILE or b"\0" in text:
            raise TelehandlerError(f"--env-file {file} has a NUL byte, or is too long: it has variables, one a line")
        lines += [line.removesuffix(b"\r") for line in text.split(b"\n")]
    lines = [line for line in lines if line.strip() and not line.startswith(b"#")]
    found: dict[bytes, bytes] = {}
    for entry in (*lines, *map(os.fsencode, entries)):
        name, equals, value = entry.partition(b"=")
        if not name:
            raise TelehandlerError(f"--env {os.fsdecode(entry)!r} has no name: write NAME=VALUE")
        if equals:
            found[name] = value
        elif name in os.environb:
            found[name] = os.environb[name]
    return found


def utf8(text: bytes, what: str) -> str:
    """For a field of the wire that is text. Raises TelehandlerError."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise TelehandlerError(f"{what} must be UTF-8 for a server, and {text!r} is not") from None


def signal_number(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """A signal by name, with or without SIG, in any case, or by number: the callback of an option."""
    if value is None:
        return None
    name = value.upper().removeprefix("SIG")
    if name.isascii() and name.isdigit() and 1 <= int(name) <= _MAX_SIGNAL:
        return int(name)
    if f"SIG{name}" in signal.Signals.__members__:
        return int(signal.Signals[f"SIG{name}"])
    known = ", ".join(f"{int(number)} {number.name.removeprefix('SIG')}" for number in signal.Signals)
    raise click.BadParameter(f"{value!r} is no signal; there are {known}, and the numbers up to {_MAX_SIGNAL}")


def life(given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of StartJobRequest, from the options of cli.options.life. Raises TelehandlerError."""
    restart = re.fullmatch("(no)|on-failure(?::([1-9][0-9]{0,8}))?", given["restart"])
    if not restart:
        raise TelehandlerError(f"--restart {given['restart']!r} must be no, on-failure, or on-failure:N")
    fields: dict[str, Any] = {
        "given_name": utf8(os.fsencode(given["name"] or ""), "--name"),
        "labels": dict(utf8(os.fsencode(label), "--label").partition("=")[::2] for label in given["label"]),
        "stop_signal": given["stop_signal"],
    }
    if not restart[1]:
        fields |= {"restart_policy": "RESTART_POLICY_ON_FAILURE", "max_restarts": int(restart[2] or 0)}
    if given["stop_timeout"] is not None:
        fields["stop_grace"] = datetime.timedelta(seconds=given["stop_timeout"])
    if given["rm"]:
        if not restart[1]:
            raise TelehandlerError("--rm and --restart do not go together: each run of a job that is restarted is kept")
        fields["remove_after"] = datetime.timedelta(seconds=0 if given["detach"] else UNREAD_S)
    return fields
