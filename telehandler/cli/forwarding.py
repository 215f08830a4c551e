"""Signals to `client run` that are the job's: passed on to it, also when this process is about to end.

A handler must not call grpc, nor print: it notes the number, and a thread does the rest.
"""

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

from telehandler.cli import terminal
from telehandler.common.errors import EXIT_INTERRUPTED, TelehandlerError

if TYPE_CHECKING:
    from telehandler.client.connection import Client

START_S = 5.0  # for the answer to a start, once a signal has come
PASS_S = 5.0  # for signals under way when there is nothing else left to do
_READER_S = 0.2  # a Ctrl-C that has ended our reader has reached us, too, or is about to


class Forwarding:
    """SIGINT, SIGTERM and SIGHUP go to the job, a second SIGINT kills it, SIGQUIT leaves it. From `__init__` on.

    What was ignored when we were started stays ignored.
    """

    def __init__(self, client: "Client", raw: bool = False) -> None:
        """`raw`: the user's keys reach the job as bytes, so that a signal is ours: it detaches."""
        self._raw = raw
        self._client, self._name = client, ""
        self._pipe_fds = os.pipe()  # of numbers, a byte each
        self._received = self._done = self._interrupts = 0
        self._named = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def to(self, name: str) -> None:
        """The job runs, under this name."""
        self._name = name
        self._named.set()

    def settle(self, reader_gone: bool = False) -> None:
        """Returns once what has come is passed on, or PASS_S are over. `reader_gone`: waits for one to come."""
        begun = time.monotonic()
        while reader_gone and not self._received and time.monotonic() - begun < _READER_S:
            time.sleep(0.01)
        while self._done < self._received and time.monotonic() - begun < PASS_S:
            time.sleep(0.01)

    def _on_signal(self, number: int, _: object) -> None:
        self._received += 1
        os.write(self._pipe_fds[1], bytes([number]))
        if not self._named.is_set() and self._received > 1:
            terminal.leave(128 + number)

    def _run(self) -> None:
        while True:
            number = os.read(self._pipe_fds[0], 1)[0]
            if not self._named.wait(START_S):
                terminal.note("the start is not confirmed, and a job may run: `telehandler client ls` lists yours")
                terminal.leave(128 + number)
            try:
                self._pass(number)
            except TelehandlerError as error:
                terminal.note(f"{signal.Signals(number).name} is not passed to the job: {error}")
            except BaseException as error:  # nobody else would hear of it
                terminal.note(f"{signal.Signals(number).name} is not passed to the job: {type(error).__name__}")
            self._done += 1

    def _pass(self, number: int) -> None:
        """Says what has been done once it has been done."""
        if self._raw:
            terminal.note(f"detached; the job runs on: {terminal.come_back(self._name, attached=True)}")
            terminal.leave(128 + number)
        if number == signal.SIGQUIT:
            terminal.note(f"detached; the job runs on: {terminal.come_back(self._name)}")
            terminal.leave(EXIT_INTERRUPTED)
        if number != signal.SIGINT:
            self._client.signal(self._name, number)
            return terminal.note(f"{signal.Signals(number).name} passed to the job")
        self._interrupts += 1
        if self._interrupts > 1:
            self._client.stop(self._name, signal.SIGTERM, 0)
            return terminal.note("the job is killed")
        self._client.signal(self._name, number)
        back = terminal.come_back(self._name)
        terminal.note(f"interrupt passed to the job; once more kills it; Ctrl-\\ detaches, and {back}")
