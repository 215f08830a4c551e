"""Settings of the client: flag, TELEHANDLER_* variable, config file, default, in this order.

`$XDG_CONFIG_HOME/telehandler/config.toml` has the keys of DEFAULTS, and named contexts that have them too:
`context = "work"` and a table `[contexts.work]`, chosen anew by TELEHANDLER_CONTEXT.
"""

import os
from typing import Any

from telehandler.common.errors import TelehandlerError

DEFAULTS = {
    "server": "localhost:6443",
    "cert": "ssl/client.pem",
    "key": "ssl/client-key.pem",
    "root": "ssl/root.pem",
    "jidfile": "job_id",
}


def path() -> str:
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(base, "telehandler", "config.toml")


def load() -> dict[str, str]:
    """The file's settings, its context's over its own. Raises TelehandlerError."""
    file = path()
    if not os.path.exists(file):
        return {}
    import tomllib  # only for those who have a file

    try:
        with open(file, encoding="utf-8") as stream:
            table: dict[str, Any] = tomllib.loads(stream.read())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TelehandlerError(f"{file}: {error}") from None
    contexts = table.pop("contexts", {})
    context = os.environ.get("TELEHANDLER_CONTEXT", table.pop("context", None))
    if context is not None:
        if context not in contexts:
            raise TelehandlerError(f"{file} has no context {context!r}; it has: {', '.join(contexts) or 'none'}")
        table |= contexts[context]
    for key, value in table.items():
        if key not in DEFAULTS or not isinstance(value, str):
            raise TelehandlerError(f"{file}: {key} must be one of {', '.join(DEFAULTS)}, each a string")
    return table


def resolve(given: dict[str, str | None]) -> dict[str, str]:
    """Every setting: what was given by flag or environment, else the file's, else the default."""
    return DEFAULTS | load() | {key: value for key, value in given.items() if value is not None}
