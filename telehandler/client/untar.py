"""Unpacks a tar stream that a job wrote, which may be hostile, below one place of the user's.

Not by `tarfile`: it would take headers of any length into memory, follow links that are there, and differs from one
Python to the next in what its filters refuse. Formats: POSIX ustar and pax (IEEE 1003.1), and GNU's long names.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from telehandler.common.errors import TelehandlerError

_BLOCK = 512
_MAX_HEADER_BYTES = 1 << 20  # of a long name, or of a pax header
_MAX_DEPTH = 200  # each directory on the way is held open
_MODE = 0o755  # what is kept of a mode: no setuid, and nobody else may write
_ENTER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE, _LINK, _SYMLINK, _DIRECTORY = b"0", b"1", b"2", b"5"
_SPECIAL = {b"3": "a device", b"4": "a device", b"6": "a named pipe"}


class Member(NamedTuple):
    """What a header says."""

    name: bytes
    kind: bytes
    mode: int
    size: int
    mtime_ns: int
    link: bytes


def _broken(text: str) -> TelehandlerError:
    return TelehandlerError(f"what the job sent is no tar stream that can be unpacked: {text}")


class TarStream:
    """Members, and their data, of a stream that comes in pieces; memory is bounded whatever it says."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._kept = pieces, b""

    def data(self, size: int) -> Iterator[bytes]:
        """The next `size` bytes, in pieces, and past their padding. Raises TelehandlerError when they do not come."""
        padding = -size % _BLOCK
        while size:
            piece = self._piece()
            self._kept = piece[size:]
            piece = piece[:size]
            size -= len(piece)
            yield piece
        while padding:
            piece = self._piece()
            self._kept = piece[padding:]
            padding -= min(padding, len(piece))

    def _piece(self) -> bytes:
        piece, self._kept = self._kept, b""
        while not piece:
            found = next(self._pieces, None)
            if found is None:
                raise _broken("it ends too early")
            piece = found
        return piece

    def next(self) -> Member | None:
        """None at the end; what follows that is read, too."""
        pax: dict[bytes, bytes] = {}
        long: dict[bytes, bytes] = {}
        while True:
            block = b"".join(self.data(_BLOCK))
            if not any(block):
                for _ in self._pieces:
                    pass
                return None
            if (sum(block) - sum(block[148:156]) + 8 * 32) != _number(block[148:156]):
                raise _broken("a header's checksum is wrong")
            kind, size = block[156:157], _number(block[124:136])
            if kind in b"LKxg":
                if size > _MAX_HEADER_BYTES:
                    raise _broken(f"a header of {size} bytes")
                text = b"".join(self.data(size))
                if kind == b"x":
                    pax = _pax(text)
                elif kind != b"g":
                    long[kind] = text.partition(b"\0")[0]
                continue
            return _member(block, kind, size, pax, long)


def _member(block: bytes, kind: bytes, size: int, pax: dict[bytes, bytes], long: dict[bytes, bytes]) -> Member:
    name, link = (_text(block[:100]), _text(block[157:257]))
    if block[257:263] == b"ustar\0" and (prefix := _text(block[345:500])):
        name = prefix + b"/" + name
    name = pax.get(b"path", long.get(b"L", name))
    link = pax.get(b"linkpath", long.get(b"K", link))
    if kind == b"S" or any(key.startswith(b"GNU.sparse") for key in pax):
        raise _broken("it has sparse members")
    try:
        size = int(pax.get(b"size", size))
        mtime_ns = int(float(pax[b"mtime"]) * 1e9) if b"mtime" in pax else _number(block[136:148]) * 10**9
    except (ValueError, OverflowError):
        raise _broken("a number in a header is none") from None
    if not 0 <= size < 1 << 63 or abs(mtime_ns) >= 1 << 63:
        raise _broken("a number in a header is too large")
    kind = _FILE if kind in (b"\0", b"7") else kind
    if kind == _FILE and name.endswith(b"/"):
        kind = _DIRECTORY
    if kind in (_LINK, _SYMLINK, _DIRECTORY):
        size = 0
    return Member(name, kind, _number(block[100:108]) & 0o7777, size, mtime_ns, link)


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes) -> int:
    """Octal digits, or GNU's binary form for what is too large for them."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big") if field[0] == 0x80 else -1
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise _broken("a number in a header is none") from None


def _pax(text: bytes) -> dict[bytes, bytes]:
    found = {}
    while text:
        digits = text.partition(b" ")[0]
        if not digits.isdigit() or len(digits) > 7 or not len(digits) + 2 < int(digits) <= len(text):
            raise _broken("a pax header is none")
        key, _, found_value = text[len(digits) + 1 : int(digits) - 1].partition(b"=")
        found[key] = found_value
        text = text[int(digits) :]
    return found


class Unpacker:
    """Writes members below `top` in the directory `parent_fd`, and follows no link there.

    A file has a name of its own until it is whole. `count` of files, links and directories are there; `left_out` are
    not, each of which `note` was told of. Raises TelehandlerError and OSError; then what is there is whole.
    """

    def __init__(self, parent_fd: int, top: bytes, note: Callable[[str], None]) -> None:
        """`top`: the name for what is copied; empty: into the directory itself."""
        self._root_fd, self._top, self._note = parent_fd, top, note
        self._names: list[bytes] = []  # of the directories that are open, from the root on
        self._open: list[tuple[int, Member | None]] = []  # and what they get once they are full
        self.count = self.left_out = 0

    def unpack(self, stream: TarStream, source: bytes) -> None:
        """`source`: the name of the first member, which all others are below."""
        try:
            while member := stream.next():
                self._put(member, self._inside(member.name, source), stream, source)
        finally:
            self._leave(0)

    def _inside(self, name: bytes, source: bytes) -> list[bytes]:
        parts = [part for part in name.split(b"/") if part not in (b"", b".")]
        if name.startswith(b"/") or b".." in parts or b"\0" in name:
            raise TelehandlerError(f"the job sent the name {name[:200]!r}, which leads out of the destination")
        if source != b".":
            if parts[:1] != [source]:
                raise TelehandlerError(f"the job sent the name {name[:200]!r}, which was not asked for")
            parts = parts[1:]
        if len(parts) > _MAX_DEPTH:
            raise TelehandlerError(f"the job sent a tree of more than {_MAX_DEPTH} directories in each other")
        return [self._top, *parts] if self._top else parts

    def _put(self, member: Member, path: list[bytes], stream: TarStream, source: bytes) -> None:
        if member.kind == _DIRECTORY:
            self._enter(path, member)
            self.count += 1
            return
        if not path:
            raise TelehandlerError("the job sent a file where a directory was asked for")
        shown = os.fsdecode(b"/".join(path))
        at = self._enter(path[:-1])
        if member.kind == _FILE:
            self._write(at, path[-1], member, stream)
        elif member.kind == _LINK:
            target = self._inside(member.link, source)
            self._link(target, at, path)
        elif member.kind == _SYMLINK and self._stays(member.link, len(path) - 1 - bool(self._top)):
            self._replace(at, path[-1], lambda name: os.symlink(member.link, name, dir_fd=at))
            with suppress(OSError):
                os.utime(path[-1], ns=(member.mtime_ns,) * 2, dir_fd=at, follow_symlinks=False)
        else:
            for _ in stream.data(member.size):
                pass
            if member.kind == _SYMLINK:
                self.left_out += 1
                self._note(f"{shown}: a link out of what is copied, to {os.fsdecode(member.link)}: left out")
            else:
                self._note(f"{shown}: {_SPECIAL.get(member.kind, 'no file')}: skipped")
            return
        self.count += 1

    @staticmethod
    def _stays(link: bytes, depth: int) -> bool:
        """Whether a symlink in a directory so deep leads to a place inside.

        `..` only in front: behind a name, it would be the parent of what that name is a link to.
        """
        parts = [part for part in link.split(b"/") if part not in (b"", b".")]
        ups = next((count for count, part in enumerate(parts) if part != b".."), len(parts))
        return not link.startswith(b"/") and ups <= max(depth, 0) and b".." not in parts[ups:]

    def _enter(self, path: list[bytes], member: Member | None = None) -> int:
        """The fd of a directory, made if it is not there; never through a link."""
        same = 0
        while same < min(len(path), len(self._names)) and path[same] == self._names[same]:
            same += 1
        self._leave(same)
        for name in path[same:]:
            at = self._open[-1][0] if self._open else self._root_fd
            made = False
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=at)
                made = True
            fd = os.open(name, _ENTER, dir_fd=at)
            self._names.append(name)
            self._open.append((fd, Member(name, _DIRECTORY, _MODE, 0, -1, b"") if made else None))
        if member and self._open:
            self._open[-1] = (self._open[-1][0], member)
        return self._open[-1][0] if self._open else self._root_fd

    def _leave(self, depth: int) -> None:
        """Directories get their mode and time once what is in them is there."""
        while len(self._open) > depth:
            fd, member = self._open.pop()
            self._names.pop()
            try:
                if member:
                    os.fchmod(fd, member.mode & _MODE)
                    if member.mtime_ns != -1:
                        os.utime(fd, ns=(member.mtime_ns,) * 2)
            finally:
                os.close(fd)

    def _write(self, at: int, name: bytes, member: Member, stream: TarStream) -> None:
        def make(temporary: bytes) -> None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(temporary, flags, 0o600, dir_fd=at)
            try:
                for piece in stream.data(member.size):
                    view = memoryview(piece)
                    while view:
                        view = view[os.write(fd, view) :]
                os.fchmod(fd, member.mode & _MODE)
                os.utime(fd, ns=(member.mtime_ns,) * 2)
            finally:
                os.close(fd)

        self._replace(at, name, make)

    def _link(self, target: list[bytes], at: int, path: list[bytes]) -> None:
        fd = os.dup(self._root_fd)
        try:
            for name in target[:-1]:
                inner = os.open(name, _ENTER, dir_fd=fd)
                os.close(fd)
                fd = inner
            if not target or not stat.S_ISREG(os.stat(target[-1], dir_fd=fd, follow_symlinks=False).st_mode):
                raise TelehandlerError(f"the job sent a hard link to {b'/'.join(target)[:200]!r}, which is no file")
            if target != path:
                source = target[-1]
                self._replace(
                    at,
                    path[-1],
                    lambda name: os.link(source, name, src_dir_fd=fd, dst_dir_fd=at, follow_symlinks=False),
                )
        finally:
            os.close(fd)

    def _replace(self, at: int, name: bytes, make: Callable[[bytes], None]) -> None:
        temporary = b".telehandler-cp-" + os.urandom(8).hex().encode()
        try:
            make(temporary)
            os.rename(temporary, name, src_dir_fd=at, dst_dir_fd=at)
        finally:
            with suppress(OSError):  # rename leaves it where both are links to one file
                os.unlink(temporary, dir_fd=at)
