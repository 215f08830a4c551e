"""What run and local ask for: sizes, limits and variables, from the words of a command line."""

import os

from telehandler.errors import TelehandlerError

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def size(text: str, what: str) -> int:
    """Bytes of `512m`, `1.5g`, `1024`. Raises TelehandlerError."""
    digits = text.strip().lower().removesuffix("ib").rstrip("bkmgt")
    unit = text.strip().lower().removesuffix("ib")[len(digits) :]
    unit = unit[0] if len(unit) == 2 and unit[1] == "b" else unit
    try:
        value = int(float(digits) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        raise TelehandlerError(f"{what} {text!r} is not a size such as 512m or 2g") from None
    if not 0 < value < 1 << 62:
        raise TelehandlerError(f"{what} {text!r} must be more than 0")
    return value


def limits(
    cpus: float | None, memory: str | None, pids: int | None, read_bps: str | None, write_bps: str | None
) -> dict[str, int]:
    """Limits by the wire's names; what was not given is left out."""
    found: dict[str, int] = {}
    if cpus is not None:
        if not 0.01 <= cpus <= 10_000:
            raise TelehandlerError("--cpus must be from 0.01 up, such as 1.5")
        found["cpu_millis"] = round(cpus * 1000)
    for name, text, flag in (
        ("memory_bytes", memory, "--memory"),
        ("read_bps", read_bps, "--device-read-bps"),
        ("write_bps", write_bps, "--device-write-bps"),
    ):
        if text is not None:
            found[name] = size(text, flag)
    if pids is not None:
        if pids < 1:
            raise TelehandlerError("--pids-limit must be 1 or more")
        found["pids"] = pids
    return found


def environment(entries: tuple[str, ...], files: tuple[str, ...]) -> dict[bytes, bytes]:
    """Variables of NAME=VALUE, or NAME for this process's own value; files have one a line, # comments."""
    lines: list[str] = []
    for file in files:
        try:
            with open(file, encoding="utf-8", errors="surrogateescape") as stream:
                text = stream.read()
        except OSError as error:
            raise TelehandlerError(f"--env-file {file} cannot be read: {error.strerror}") from None
        lines += [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found: dict[bytes, bytes] = {}
    for entry in (*lines, *entries):
        name, equals, value = os.fsencode(entry).partition(b"=")
        if not name:
            raise TelehandlerError(f"--env {entry!r} has no name: write NAME=VALUE")
        if equals:
            found[name] = value
        elif name in os.environb:
            found[name] = os.environb[name]
    return found
