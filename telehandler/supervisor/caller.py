"""What of the state of whoever starts the server has no effect on it: limits, niceness, umask (R23).

Its fds, signals and working directory are common to all mains: common/process_state.py.
"""

import math
import os
import resource
from collections.abc import Callable

from telehandler.common import privileges
from telehandler.common.errors import TelehandlerError

_LEAST_FILES, _FILES = 256, 1 << 16
_LEAST_MEMORY_BYTES = 1 << 30
_LEAST_STACK_BYTES = 1 << 20
# What a server must not run into, as ulimit(1) names it, and how much is enough.
_WANTED: dict[int, tuple[str, float]] = {
    resource.RLIMIT_FSIZE: ("f", math.inf),
    resource.RLIMIT_CPU: ("t", math.inf),
    resource.RLIMIT_AS: ("v", _LEAST_MEMORY_BYTES),
    resource.RLIMIT_DATA: ("d", _LEAST_MEMORY_BYTES),
    resource.RLIMIT_NOFILE: ("n", _LEAST_FILES),
}


def establish() -> None:
    """Must come before root is given up. Raises TelehandlerError for a limit that only root could raise."""
    os.umask(0o077)
    is_root = os.geteuid() == 0
    for kind, (flag, least) in _WANTED.items():
        if _raised(kind, is_root) < least:
            enough = "unlimited" if least == math.inf else f"{least} or more"
            cause = "a limit of whoever starts the server is too low for it, and cannot be raised from here"
            raise TelehandlerError(f"{cause}: `ulimit -H{flag}` must be {enough}")
    for kind in (resource.RLIMIT_NPROC, resource.RLIMIT_SIGPENDING):
        _raised(kind, is_root)
    if is_root:
        _if_allowed(lambda: os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0)))
        if os.getpriority(os.PRIO_PROCESS, 0) > 0:
            _if_allowed(lambda: os.setpriority(os.PRIO_PROCESS, 0, 0))
    else:
        # Started as root, it gives up root and this with it. An api that was taken over must not reach into us.
        privileges.hide()


def _raised(kind: int, is_root: bool) -> float:
    """The limit, once it is as high as it may be; infinity for none."""
    soft, hard = resource.getrlimit(kind)
    if is_root and hard != resource.RLIM_INFINITY:
        most = max(hard, _FILES) if kind == resource.RLIMIT_NOFILE else resource.RLIM_INFINITY
        _if_allowed(lambda: resource.setrlimit(kind, (most, most)))
        soft, hard = resource.getrlimit(kind)
    if soft != hard and kind != resource.RLIMIT_NOFILE:  # the api raises that: poll and select are for few
        resource.setrlimit(kind, (hard, hard))
    return math.inf if hard == resource.RLIM_INFINITY else hard


def _if_allowed(change: Callable[[], object]) -> None:
    """A container's root may not be allowed to; then it is as it is."""
    try:
        change()
    except (OSError, ValueError):
        pass
