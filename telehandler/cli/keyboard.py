"""What a user types, or pipes, to a job of a server: `run -i`, `run -it` and `attach`.

A thread reads stdin and another makes the calls, while the main one prints the job's output. A failure of either, and
the detach keys, end the process: nobody waits for the other threads.
"""

import fcntl
import os
import select
import signal
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from telehandler.cli import raw_mode, terminal
from telehandler.common.errors import EXIT_OURS, TelehandlerError
from telehandler.common.streams import STDIN_FD

if TYPE_CHECKING:
    from telehandler.client.connection import Client

_PIECE_BYTES = 1 << 18
_PIPE_BYTES = 1 << 20
_DEFAULT_SIZE = (24, 80)


def check_terminal() -> None:
    """Raises TelehandlerError when stdin is none."""
    if not os.isatty(STDIN_FD):
        raise TelehandlerError("the input device is not a TTY")


def size() -> tuple[int, int]:
    """Rows and columns of the user's terminal; a usual size where there is none."""
    import termios

    with suppress(OSError):
        rows, columns, _, _ = struct.unpack("4H", fcntl.ioctl(STDIN_FD, termios.TIOCGWINSZ, bytes(8)))
        if rows and columns:
            return rows, columns
    return _DEFAULT_SIZE


def terminal_variables() -> dict[bytes, bytes]:
    """What the job has to know of the user's terminal."""
    return {b"TERM": os.environb[b"TERM"]} if os.environb.get(b"TERM") else {}


def detach_keys(text: str) -> bytes:
    """The bytes of keys such as `ctrl-p,ctrl-q`; none for an empty text. Raises TelehandlerError."""
    keys = b""
    for key in text.split(",") if text else []:
        letter = key.removeprefix("ctrl-")
        if len(letter) != 1 or not "!" <= letter <= "~" or (letter != key and not "@" <= letter.upper() <= "_"):
            raise TelehandlerError(f"--detach-keys {text!r} are no keys such as ctrl-p,ctrl-q")
        keys += bytes([ord(letter.upper()) & 0x1F if letter != key else ord(letter)])
    return keys


class Keyboard:
    """stdin of this process, to a job; `begin` starts it."""

    def __init__(self, client: "Client", name: str, typed: bool, keys: bytes) -> None:
        """`typed`: stdin is a terminal, and so is the job's; `keys` are those that detach."""
        self._name, self._typed, self._keys = name, typed, keys
        self._stdin = client.stdin(name, terminal.note, goes_on=typed)
        self._held = b""  # the first of the detach keys
        self._resized, self._resizing = os.pipe()

    def begin(self, redraw: bool = False) -> None:
        """`redraw`: another size first, so that a program that was there before draws itself anew."""
        if self._typed:
            rows, columns = size()
            if redraw:
                self._stdin.resize(rows + 1, columns)
            raw_mode.enter(STDIN_FD)
            os.set_blocking(self._resizing, False)
            signal.signal(signal.SIGWINCH, self._on_resize)
            self._on_resize()
        for work in (self._read, self._stdin.run):
            threading.Thread(target=self._guarded, args=(work,), daemon=True).start()

    def _on_resize(self, *_: object) -> None:
        with suppress(BlockingIOError):
            os.write(self._resizing, b"x")

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except TelehandlerError as error:
            self._fail(str(error))
        except BaseException as error:  # nobody else would hear of it
            self._fail(f"the input cannot be passed on: {getattr(error, 'strerror', '') or type(error).__name__}")

    def _fail(self, text: str) -> None:
        raw_mode.leave()
        terminal.note(text)
        terminal.note(f"the job runs on: {terminal.come_back(self._name, attached=True)}")
        terminal.leave(EXIT_OURS)

    def _detach(self) -> None:
        raw_mode.leave()
        terminal.note(f"detached; the job runs on: {terminal.come_back(self._name, attached=True)}")
        terminal.leave(0)

    def _read(self) -> None:
        with suppress(OSError):  # no pipe, or over the user's share
            fcntl.fcntl(STDIN_FD, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        poll = select.poll()
        for fd in (STDIN_FD, self._resized):
            poll.register(fd, select.POLLIN)
        while True:
            if self._resized in {fd for fd, _ in poll.poll()}:
                os.read(self._resized, 1024)
                self._stdin.resize(*size())
                continue
            try:
                data = os.read(STDIN_FD, _PIECE_BYTES)
            except BlockingIOError:  # somebody has made it so
                continue
            if not data:
                return self._detach() if self._typed else self._stdin.end()
            data = self._without_keys(data)
            if data and not self._stdin.write(data):
                return

    def _without_keys(self, data: bytes) -> bytes:
        """What is the job's; the first of the keys wait until it is known what follows them."""
        if not self._keys or not self._typed:
            return data
        data, self._held = self._held + data, b""
        if self._keys in data:
            self._detach()
        most = min(len(self._keys) - 1, len(data))
        count = next((count for count in range(most, 0, -1) if data.endswith(self._keys[:count])), 0)
        self._held = data[len(data) - count :]
        return data[: len(data) - count]
