"""Waiting for a condition, within a deadline."""

import os
import time
from collections.abc import Callable
from typing import Any

# Of what takes a moment, for a machine that is busy; emulated, as in tests/vm, it is ten times slower. Many mutants
# hang: tests/mutants sets a shorter one.
DEADLINE_S = float(os.environ.get("TELEHANDLER_DEADLINE_S", "240" if "TELEHANDLER_GUEST" in os.environ else "60"))


def wait_until(what: str, condition: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """The first true value of `condition`; fails after the deadline."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s} s: {what}")
        time.sleep(0.01)  # the pace of looking, not a guess at how long it takes
    return value
