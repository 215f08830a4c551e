"""A job's stdin, a pipe or its terminal, as the api has it: what was written to it, in the order of its bytes.

Input is counted from 0, and each byte is given to the job once, whoever writes and however often a connection breaks or
the api dies: how far it got is in the file `stdin` of the job's directory. Before a write it has what is about to be
written, and after it what was. So an api that was killed between the two leaves a few bytes of which nobody knows; the
next one counts them as taken, and says so: `unknown`.
"""

import asyncio
import errno
import os
import struct
from contextlib import suppress
from pathlib import Path

from telehandler.common import bounds
from telehandler.common.errors import HelperRefused
from telehandler.jobs.helper_link import HelperLink
from telehandler.output import terminal
from telehandler.output.pump import enlarge

# Offset, bytes that are being written behind it, ended, writer.
_STATE = struct.Struct(f"<QQ?{bounds.STDIN_WRITER_BYTES}s")
_LARGE_BYTES = 1 << 16  # pieces for which a larger pipe pays
_AT_ONCE = 1 << 18  # bytes of one write


class TakenOver(Exception):
    """Another writer writes now."""


class Turn:
    """A writer's, until `over`: another has come, or the job has ended."""

    def __init__(self) -> None:
        self.over = asyncio.Event()


class Stdin:
    """Owns the fd. One event loop, and one writer at a time: who comes last."""

    def __init__(self, fd: int, directory: Path, link: HelperLink, handle: int, terminal: bool) -> None:
        """`fd` -1: it has ended. Takes up what an api before this one has recorded."""
        self._fd, self._path, self._link, self._handle = fd, directory / "stdin", link, handle
        self.terminal = terminal
        self.closed = False  # with the job
        self.unknown = 0  # bytes before `offset` of which nobody knows whether the job got them
        self._turn = Turn()
        self._room: asyncio.Future[None] | None = None  # while somebody waits for it
        self._state_fd = -1
        self._helper_holds = True
        try:
            self.offset, self.unknown, self.ended, self._writer = _STATE.unpack(self._path.read_bytes())
        except (FileNotFoundError, struct.error):  # nothing was written, and nothing was begun
            self.offset, self.unknown, self.ended, self._writer = 0, 0, False, b""
        self.offset += self.unknown
        self.ended = self.ended or fd < 0
        if fd >= 0:
            os.set_blocking(fd, False)
        if self.ended:
            self._close_fd()

    def take(self, writer: bytes, resume: bool) -> Turn:
        """The turn of a writer; the one before loses its own. Raises TakenOver, and OSError where it is not kept."""
        if resume and writer != self._writer:
            raise TakenOver
        if writer != self._writer:
            self._save(self.offset - self.unknown, self.unknown, writer)
        self._turn.over.set()
        self._turn = Turn()
        return self._turn

    async def put(self, turn: Turn, data: bytes, offset: int) -> None:
        """Writes what is new of `data`; returns once the job's pipe or terminal has all of it, or has `ended`.

        Raises TakenOver, and OSError when the disk does not keep how far it got: then nothing more was written.
        """
        view = memoryview(data)[max(self.offset - offset, 0) :]
        if len(view) >= _LARGE_BYTES and not self.terminal and not self.ended:
            enlarge(self._fd)
        while view and not self.ended:
            if turn is not self._turn:
                raise TakenOver
            count = self._write(view[:_AT_ONCE])
            view = view[count:]
            if not count and not self.ended:
                await self._wait()

    async def end(self) -> None:
        """The job finds the end of its input. Raises HelperUnavailable when that is to be asked for again."""
        if not self.ended:
            self._save(self.offset, 0, self._writer, ended=True)
        self._finish()
        if self._helper_holds:
            with suppress(HelperRefused):  # the job has just ended
                await self._link.close_stdin(self._handle)
            self._helper_holds = False

    def resize(self, rows: int, columns: int) -> None:
        """Of a terminal."""
        if self._fd >= 0:
            terminal.resize(self._fd, rows, columns)

    def close(self) -> None:
        """The job has ended."""
        self.closed = True
        self._finish()
        self._turn.over.set()
        if self._state_fd >= 0:
            os.close(self._state_fd)
            self._state_fd = -1

    def _write(self, view: memoryview) -> int:
        """One write; 0 when there is no room, or the job reads no more. Raises OSError when the disk takes no note."""
        self._save(self.offset, len(view), self._writer)
        count = 0
        try:
            count = os.write(self._fd, view)
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # the other end is closed
                raise
            self._finish()
        self.offset += count
        self.unknown = 0
        with suppress(OSError):  # then the next api says that it does not know
            self._save(self.offset, 0, self._writer, self.ended)
        return count

    async def _wait(self) -> None:
        """Until there is room. Who is cancelled leaves the fd to be watched, perhaps for the next writer."""
        if self._room is None:
            loop = asyncio.get_running_loop()
            self._room = loop.create_future()
            loop.add_writer(self._fd, self._on_room)
        await asyncio.shield(self._room)

    def _on_room(self) -> None:
        asyncio.get_running_loop().remove_writer(self._fd)
        if self._room:
            self._room.set_result(None)
            self._room = None

    def _save(self, offset: int, writing: int, writer: bytes, ended: bool = False) -> None:
        if self._state_fd < 0:
            self._state_fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.pwrite(self._state_fd, _STATE.pack(offset, writing, ended, writer), 0) < _STATE.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._writer = writer

    def _finish(self) -> None:
        self.ended = True
        if self._room:
            self._on_room()
        self._close_fd()

    def _close_fd(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
