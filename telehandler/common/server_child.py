"""What the supervisor's children, api and stream workers, do first."""

import os
import resource
import signal

from telehandler.common import privileges, process_state
from telehandler.common.errors import TelehandlerError


def establish(what: str) -> None:
    """No root, no way back, no capability, no core dump, no debugger (S13), whoever started us; as many fds as may be.

    A signal to the whole process group or cgroup is the supervisor's to act on: were the api to end by it, there would
    be nobody to end the jobs in order (R25). Raises TelehandlerError for root.
    """
    process_state.establish()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if 0 in os.getresuid():
        raise TelehandlerError(f"{what} must not run as root; `telehandler server` starts it as another user")
    privileges.lock_down()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # each connection is an fd, each job four
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
