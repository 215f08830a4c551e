"""How often, and how soon, a client tries again what a broken connection has interrupted."""

import math
import time
from collections.abc import Callable

from telehandler.common.errors import ServerUnavailable

RECONNECT_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 5.0, 5.0)  # waits before each try


class Retries:
    """The tries of one call. A first try that finds no server is not repeated, unless `connected` says there is one.

    Whoever was connected for longer than the longest wait begins anew, as does who calls `progress`; but nothing is
    tried again later than `patience_s` after the beginning.
    """

    def __init__(self, note: Callable[[str], None], connected: bool = False, patience_s: float = math.inf) -> None:
        self._note, self._connected = note, connected
        self._end = time.monotonic() + patience_s
        self.progress()

    def progress(self) -> None:
        """The call has got somewhere: what comes later is another fault."""
        self._left = iter(RECONNECT_S)
        self._began = time.monotonic()

    def wait(self, error: ServerUnavailable, what: str) -> None:
        """Says what has happened and waits for the next try; raises `error` when there is none."""
        if error.sent and time.monotonic() - self._began > RECONNECT_S[-1]:
            self.progress()
        self._connected = self._connected or error.sent
        pause = next(self._left, None)
        if pause is None or not self._connected or time.monotonic() + pause > self._end:
            raise error
        self._note(what.format(pause=f"{pause:g} s"))
        time.sleep(pause)
        self._began = time.monotonic()
