"""`telehandler client cp`: files into a job that runs, and out of it.

A `tar` in the job packs and unpacks there, with the job's uid, in its sandbox: neither api nor helper sees a file.
"""

import os
import posixpath
import select
import signal
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from telehandler.cli import job_names, options, terminal
from telehandler.common.errors import Interrupted, TelehandlerError
from telehandler.common.streams import STDIN_FD

if TYPE_CHECKING:
    from telehandler.client.connection import Client

_PIECE_BYTES = 1 << 18
_SHOWN_EVERY_S = 0.2
_MAX_NOTES = 20  # of one kind; then they are counted
_NOT_ALL = "not everything was copied: what is missing is named above"


@click.command()
@options.connection
@click.argument("source")
@click.argument("destination")
def command(source: str, destination: str, **given: Any) -> None:
    """Copy files between here and a JOB that runs.

    \b
    cp PATH JOB:PATH    into the job
    cp JOB:PATH PATH    out of it
    cp - JOB:DIR        unpack a tar stream from stdin there
    cp JOB:PATH -       write one to stdout

    As in docker cp: a destination that is a directory gets SOURCE in it, else it is the new name; SOURCE/. is what is
    in a directory. A path in the job begins at its root. A local path with a colon is written ./PATH. The job needs
    `tar` and `test` in its PATH.
    """
    settings = options.settings(given)
    from_job, to_job = _split(source), _split(destination)
    if (from_job is None) == (to_job is None):
        raise TelehandlerError("one of the two must be JOB:PATH, and the other a local path")
    client = job_names.connect(settings)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupted)
    progress = _Progress()
    try:
        if from_job:
            _out(client, job_names.find(from_job[0], settings, client), from_job[1], os.fsencode(destination), progress)
        elif to_job:
            _into(client, job_names.find(to_job[0], settings, client), os.fsencode(source), to_job[1], progress)
    finally:
        progress.clear()


def _interrupted(number: int, _: object) -> None:
    raise Interrupted(number)


def _split(text: str) -> tuple[str, bytes] | None:
    """Job and path, of JOB:PATH; the path begins with a slash. None for a local path."""
    job, colon, path = text.partition(":")
    if not colon or text.startswith((".", "/")):
        return None
    if not job or not path:
        raise TelehandlerError(f"{text!r} is no JOB:PATH; a local path with a colon is written ./PATH")
    return job, b"/" + os.fsencode(path).lstrip(b"/")


def _last(path: bytes) -> tuple[bytes, bytes]:
    """A path's directory and last name, which is `.` for what is in a directory, as in SOURCE/. and /."""
    bare = path.rstrip(b"/") or b"/"
    directory, name = posixpath.split(bare)
    if name in (b"", b".", b".."):
        return bare, b"."
    return directory or b".", name


class _Progress:
    """Notes, a number of them at most, and a line on a terminal that says how far it is."""

    def __init__(self) -> None:
        self._bytes, self._told, self._begun = 0, 0, time.monotonic()
        self._next, self._on, self._shown = self._begun + _SHOWN_EVERY_S, sys.stderr.isatty(), False

    def note(self, text: str) -> None:
        self.clear()
        self._told += 1
        if self._told <= _MAX_NOTES:
            terminal.note(text)
        elif self._told == _MAX_NOTES + 1:
            terminal.note("and more")

    def through(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._bytes += len(piece)
            if self._on and (now := time.monotonic()) >= self._next:
                self._next, self._shown = now + _SHOWN_EVERY_S, True
                rate = self._bytes / (now - self._begun) / 1e6
                print(f"\r{self._bytes / 1e6:.0f} MB, {rate:.0f} MB/s\033[K", end="", file=sys.stderr, flush=True)
            yield piece

    def clear(self) -> None:
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self._shown = False


def _out(client: "Client", job: str, path: bytes, destination: bytes, progress: _Progress) -> None:
    from telehandler.client.job_files import InJob
    from telehandler.client.untar import TarStream, Unpacker

    directory, name = _last(path)
    argv = [b"tar", b"-cf", b"-", b"-C", directory, b"--", name]
    parent_fd, top = -1, b""
    if destination != b"-":
        parent_fd, top = _place(destination, name)
    with InJob(client, job, argv, progress.note) as tar:
        pieces = progress.through(tar.stdout())
        if destination == b"-":
            for piece in pieces:
                terminal.write(False, piece)
            _check(tar.code(), tar.complaint())
            return
        unpacker = Unpacker(parent_fd, top, progress.note)
        try:
            first = next((piece for piece in pieces if piece), None)
            if first is None:
                _check(tar.code(), tar.complaint())
                raise TelehandlerError("`tar` in the job sent nothing")
            unpacker.unpack(TarStream(_with(first, pieces)), name)
        except OSError as error:
            where = f"{os.fsdecode(error.filename)}: " if error.filename else "here: "
            raise _partly(TelehandlerError(f"{where}{error.strerror}"), unpacker.count) from None
        except Interrupted:
            raise
        except TelehandlerError as error:
            text = _why(tar) if tar.has_ended() else ""
            raise _partly(TelehandlerError(text or str(error)), unpacker.count) from None
        try:
            _check(tar.code(), tar.complaint())
        except TelehandlerError as error:
            raise _partly(error, unpacker.count) from None
        if unpacker.left_out:
            raise TelehandlerError(_NOT_ALL)


def _why(tar: Any) -> str:
    """What `tar` in the job, rather than its stream, says about a failure."""
    try:
        return tar.complaint() if tar.code() else ""
    except TelehandlerError as error:
        return str(error)


def _with(first: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from pieces


def _partly(error: TelehandlerError, count: int) -> TelehandlerError:
    there = f"; {count} files and directories are there, each file whole" if count else "; nothing was copied"
    return TelehandlerError(f"{error}{there}")


def _check(code: int, complaint: str) -> None:
    if code:
        raise TelehandlerError(f"in the job: {complaint}")


def _place(destination: bytes, name: bytes) -> tuple[int, bytes]:
    """The directory, open, that gets what is copied, and the name that it gets there; empty: none."""
    if os.path.isdir(destination):
        parent, top = destination, b"" if name == b"." else name
    else:
        parent, top = _last(destination)
        if (destination.endswith(b"/") and name != b".") or top == b".":
            raise TelehandlerError(f"{os.fsdecode(destination)}: no such directory")
    try:
        return os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), top
    except OSError as error:
        raise TelehandlerError(f"{os.fsdecode(parent)}: {error.strerror}") from None


def _stdin() -> Iterator[bytes]:
    """Its bytes; none now and then, for whoever has to notice that the job takes no more."""
    while True:
        if not select.select([STDIN_FD], [], [], _SHOWN_EVERY_S)[0]:
            yield b""
        elif data := os.read(STDIN_FD, _PIECE_BYTES):
            yield data
        else:
            return


def _into(client: "Client", job: str, source: bytes, path: bytes, progress: _Progress) -> None:
    from telehandler.client.job_files import InJob, run
    from telehandler.client.pack import Packer

    packer = Packer(progress.note)
    is_directory = not run(client, job, [b"test", b"-d", path], progress.note)
    if source == b"-":
        if not is_directory:
            raise TelehandlerError(f"in the job: {os.fsdecode(path)}: no such directory")
        directory, pieces = path, _stdin()
    else:
        _, name = _last(source)
        tree = os.path.isdir(source) and (name == b"." or source.endswith(b"/") or not os.path.islink(source))
        if not os.path.lexists(source):
            raise TelehandlerError(f"{os.fsdecode(source)}: no such file or directory")
        directory = path
        if not is_directory:
            directory, new = _last(path)
            if tree and not run(client, job, [b"test", b"-e", path], progress.note):
                raise TelehandlerError(
                    f"in the job: {os.fsdecode(path)}: not a directory, and {os.fsdecode(source)} is"
                )
            if new == b"." or (path.endswith(b"/") and not tree):
                raise TelehandlerError(f"in the job: {os.fsdecode(path)}: no such directory")
            name = new
        if tree:
            os.scandir(source).close()  # else nothing of it can be copied: told before anything is
        pieces = packer.pack(source.rstrip(b"/") or b"/", name)
    # -o: the files are the job's; -p: modes as they are, whatever its umask.
    argv = [b"tar", b"-x", b"-o", b"-p", b"-f", b"-", b"-C", directory]
    with InJob(client, job, argv, progress.note, stdin=True) as tar:
        try:
            tar.send(progress.through(pieces))
            _check(tar.code(), tar.complaint())
        except Interrupted:
            raise
        except (TelehandlerError, OSError) as error:
            text = str(error) if isinstance(error, TelehandlerError) else f"stdin: {error.strerror}"
            raise TelehandlerError(
                f"{text}; in the job is what came before that, the last file perhaps in part"
            ) from None
    if packer.left_out:
        raise TelehandlerError(_NOT_ALL)
