"""Keeps a server's helper and api running, upgrades the api, and ends both in order.

One loop over signals, ends of processes, messages of the api, and times at which something is due.
"""

import math
import os
import select
import signal
import time
from collections import deque
from typing import Any

from telehandler.common import capacity
from telehandler.common.errors import EXIT_OURS, HelperNotNow, HelperUnavailable, TelehandlerError
from telehandler.supervisor.api_process import Api, Files
from telehandler.supervisor.helper_process import Helpers
from telehandler.supervisor.log_line import say
from telehandler.supervisor.stream_workers import StreamWorkers

KILL_S = 10.0  # for the api to kill every job and tell its watchers
# timeout(1) signals its child, and then its group: the child gets one order twice.
ONE_ORDER_S = 0.2
EXIT_HELPER = 1
MAX_API_FAILURES, MAX_HELPER_DEATHS, WINDOW_S = 10, 5, 60.0
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.1, 5.0
_MAX_WAIT_S = 3600.0


class Restarts:
    """The deaths of the last WINDOW_S: how long to wait before the next start, and when to give up."""

    def __init__(self) -> None:
        self._deaths: deque[tuple[float, bool]] = deque()

    def pause_s(self, counts: bool = True) -> float:
        """A death is added; `counts`: towards `failures`."""
        now = time.monotonic()
        self._deaths.append((now, counts))
        while now - self._deaths[0][0] > WINDOW_S:
            self._deaths.popleft()
        return min(_FIRST_PAUSE_S * len(self._deaths), _MAX_PAUSE_S)

    @property
    def failures(self) -> int:
        return sum(counts for _, counts in self._deaths)


class Supervisor:
    """The state of a running server. `_next` is the api of an upgrade, until it takes the place of `_api`."""

    def __init__(
        self,
        spec: dict[str, Any],
        names: tuple[str, str, str],
        files: Files,
        paths: list[int],
        helpers: Helpers,
        drain_s: float | None,
    ) -> None:
        """`names` are those of `files`. `paths`: the api's code, for a server that was root."""
        self._spec, self._names, self._files, self._paths = spec, names, files, paths
        self._helpers, self._drain_s = helpers, drain_s
        self._wake_fd = _catch_signals()
        self._api: Api | None = None
        self._next: Api | None = None
        self._status: int | None = None  # of the server, once it is to end
        self._draining = self._killing = False
        self._drained_since, self._drain_order = -math.inf, 0
        self._api_restarts, self._helper_restarts = Restarts(), Restarts()
        self._workers = StreamWorkers(spec, paths, Restarts())
        self._link_lives = True
        self._was_ready = False  # an api was: what keeps another from it may pass
        # Times by the monotonic clock.
        self._api_due, self._helper_due, self._ending_due = time.monotonic(), math.inf, math.inf

    def run(self) -> int:
        """The exit status."""
        try:
            while self._status is None:
                self._do_what_is_due()
                self._wait()
            return self._status
        finally:
            self._workers.end()
            for api in self._apis():
                api.kill()
                api.wait()

    def _apis(self) -> list[Api]:
        return [api for api in (self._api, self._next) if api]

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        for api in self._apis():
            if api.deadline <= now:
                api.kill()
        if self._ending_due <= now:
            if not self._killing:
                say("the time for draining is over: the jobs that still run are killed")
            self._kill()
        if self._helper_due <= now:
            self._start_helper()
        if self._api_due <= now:
            self._api_due = math.inf
            self._start_api()
        self._workers.do_what_is_due(now)

    def _wait(self) -> None:
        """For the next event, and acts on it."""
        if self._status is not None:
            return
        poll = select.poll()
        poll.register(self._wake_fd, select.POLLIN)
        for api in self._apis():
            poll.register(api.pidfd, select.POLLIN)
            if not api.deaf:
                poll.register(api.channel, select.POLLIN)
        for fd in self._workers.fds():
            poll.register(fd, select.POLLIN)
        if self._link_lives:
            poll.register(self._helpers.link, 0)  # for POLLHUP: its messages are the api's
        dues = self._api_due, self._helper_due, self._ending_due, self._workers.due
        due = min(*dues, *(api.deadline for api in self._apis()))
        timeout_s = min(max(due - time.monotonic(), 0), _MAX_WAIT_S)
        ready = [fd for fd, _ in poll.poll(math.ceil(timeout_s * 1000))]
        if self._wake_fd in ready:
            for number in os.read(self._wake_fd, 64):
                self._on_signal(number)
        self._workers.on_ready(ready)
        for api in self._apis():
            if api.pidfd in ready:
                self._on_api_end(api)
            elif api.channel.fileno() in ready:
                self._on_message(api)
        if self._link_lives and self._helpers.link.fileno() in ready:
            self._on_helper_end()

    # Events

    def _on_signal(self, number: int) -> None:
        now = time.monotonic()
        if number == signal.SIGHUP:
            self._upgrade()
        elif self._drain_s is None or (self._draining and self._drain_order != number):
            self._kill()
        elif self._draining:
            if now - self._drained_since > ONE_ORDER_S:
                self._kill()
        else:
            self._draining, self._drained_since, self._drain_order = True, now, number
            self._ending_due = time.monotonic() + self._drain_s
            say(f"draining: no new jobs, and at most {self._drain_s:g} s for those that run")
            if self._api and self._api.ready:
                self._api.tell("drain")

    def _on_message(self, api: Api) -> None:
        kind = api.hear()
        if kind == "serving" and api is self._api:
            self._workers.serve(api)
        if kind != "ready":
            return
        self._was_ready = True
        if api is self._api:
            self._give_link(api)
        elif self._api:
            self._api.hand_over()  # the place is free once it has ended

    def _on_api_end(self, api: Api) -> None:
        status = api.wait()
        if api is self._next:
            self._next = None
            return say("the new api cannot start, for the reason above: the one before goes on")
        self._api = None
        self._workers.end()  # they are that api's, and the place to listen must be free for the next
        if self._killing or (self._draining and status == 0 and not api.handing_over):
            self._status = 0
        elif self._next:
            self._take_place(self._next)
        elif status == EXIT_OURS:
            self._status = EXIT_OURS  # it has said why
        elif status > 0 and not (api.ready or self._was_ready):
            say(
                f"the api did not start (status {status}), for the reason above: the server's user must be able to "
                "run this Python with all of its modules; install telehandler where that user can read it"
            )
            self._status = EXIT_OURS
        else:
            self._api_due = time.monotonic() + self._api_restarts.pause_s(not api.serving)
            if self._api_restarts.failures < MAX_API_FAILURES:
                return say(f"the api died (status {status}); starting it again")
            say(f"{MAX_API_FAILURES} apis died before they served, in {WINDOW_S:.0f} s: giving up")
            self._status = EXIT_OURS

    def _on_helper_end(self) -> None:
        self._link_lives = False
        say("the root helper has died, and its jobs with it")
        if self._draining or self._killing:
            return
        self._helper_due = time.monotonic() + self._helper_restarts.pause_s()
        if self._helper_restarts.failures >= MAX_HELPER_DEATHS:
            say(f"the root helper died {MAX_HELPER_DEATHS} times in {WINDOW_S:.0f} s: giving up")
            self._status = EXIT_HELPER

    # Actions

    def _give_link(self, api: Api) -> None:
        """Also that to a helper that has died: the jobs that the api finds recorded are lost then."""
        api.tell("link", fd=self._helpers.link.fileno())
        if self._draining:
            api.tell("drain")

    def _start_api(self) -> None:
        try:
            # An expired certificate is no reason to give up jobs that run, but to start none.
            self._api = Api(
                self._spec | {"first": not self._was_ready, "strict": not self._was_ready}, self._files, self._paths
            )
        except OSError as error:  # such as no process to be had: the jobs are none the worse for it
            passes = error.errno in capacity.ERRORS
            self._api_due = time.monotonic() + self._api_restarts.pause_s(not passes)
            if passes or (self._was_ready and self._api_restarts.failures < MAX_API_FAILURES):
                return say(f"the api cannot be started now: {error}")
            say(
                f"the api cannot be started: {error}: the server's user must be able to execute this Python and to "
                "enter its directories; install telehandler where that user can read it, or name another --user"
            )
            self._status = EXIT_OURS

    def _start_helper(self) -> None:
        self._helper_due = math.inf
        try:
            self._helpers.start()
        except (OSError, HelperNotNow) as error:
            say(f"the root helper cannot be started now, and is tried again: {error}")
            self._helper_due = time.monotonic() + self._helper_restarts.pause_s(False)
            return
        except HelperUnavailable as error:
            say(str(error))
            self._status = EXIT_HELPER
            return
        self._link_lives = True
        say("a new root helper runs")
        if self._api and self._api.ready:
            self._give_link(self._api)

    def _upgrade(self) -> None:
        """A new api, from the code and the certificates there are now; the one before goes on until it is ready."""
        if self._draining or self._killing or self._next:
            return say("SIGHUP: the server is ending, or another upgrade is under way")
        files = self._files
        try:
            if self._paths and not all(os.access(name, os.R_OK) for name in self._names):
                say("SIGHUP: without root the certificate and its key cannot be read anew: the copies before stay")
            else:
                files = Files(*self._names)
            if self._api:
                self._next = Api(self._spec | {"first": False, "strict": True}, files, self._paths)
            else:
                self._files, self._api_due = files, time.monotonic()
        except (TelehandlerError, OSError) as error:
            say(f"SIGHUP: {error}; the api before goes on, with the certificate before")

    def _take_place(self, api: Api) -> None:
        self._api, self._next, self._files = api, None, api.files
        if api.ready:
            self._give_link(api)

    def _kill(self) -> None:
        """Every job is killed by the api, which sees their ends, if it can; at last by the helper."""
        if self._killing or self._api is None or not self._api.ready:
            self._status = 0
            return
        self._killing = True
        self._ending_due = time.monotonic() + KILL_S
        self._api.tell("end")


def _catch_signals() -> int:
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(write_fd)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return read_fd
