"""Packs files of the user's into a tar stream, a piece at a time; what cannot be read is told and left out."""

import os
import stat
import tarfile
from collections.abc import Callable, Iterator

from telehandler.common.errors import TelehandlerError

_PIECE_BYTES = 1 << 18
_BLOCK = 512
_END = bytes(20 * _BLOCK)  # a record of zeros


class Packer:
    """GNU's format: any bytes in names, any size. Memory: a directory's names, and those of hard links."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._seen: dict[tuple[int, int], bytes] = {}
        self.left_out = 0

    def pack(self, source: bytes, name: bytes) -> Iterator[bytes]:
        """`source` under the `name`; with `.`, what is in the directory `source`, without itself."""
        stack = self._children(source, b"") if name == b"." else [(source, name)]
        while stack:
            path, member = stack.pop()
            try:
                status = os.lstat(path)
                if stat.S_ISREG(status.st_mode):
                    yield from self._file(path, member)
                elif stat.S_ISDIR(status.st_mode):
                    inside = self._children(path, member + b"/")
                    yield self._header(member, status, tarfile.DIRTYPE)
                    stack += inside
                elif stat.S_ISLNK(status.st_mode):
                    yield self._header(member, status, tarfile.SYMTYPE, os.readlink(path))
                else:
                    self._note(f"{os.fsdecode(path)}: no file, directory or link: skipped")
            except OSError as error:
                self._leave_out(path, error)
        yield _END

    def _leave_out(self, path: bytes, error: OSError) -> None:
        self.left_out += 1
        self._note(f"{os.fsdecode(path)}: {error.strerror}: left out")

    def _children(self, path: bytes, prefix: bytes) -> list[tuple[bytes, bytes]]:
        return [(os.path.join(path, name), prefix + name) for name in sorted(os.listdir(path), reverse=True)]

    def _file(self, path: bytes, member: bytes) -> Iterator[bytes]:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            key = (status.st_dev, status.st_ino)
            if key in self._seen:
                yield self._header(member, status, tarfile.LNKTYPE, self._seen[key])
                return
            if not stat.S_ISREG(status.st_mode):
                raise TelehandlerError(f"{os.fsdecode(path)} became something else while it was copied")
            yield self._header(member, status, tarfile.REGTYPE)
            left = status.st_size
            while left:
                piece = os.read(fd, min(left, _PIECE_BYTES))
                if not piece:
                    raise TelehandlerError(f"{os.fsdecode(path)} became shorter while it was copied: copy it again")
                left -= len(piece)
                yield piece
            yield bytes(-status.st_size % _BLOCK)
            if status.st_nlink > 1:
                self._seen[key] = member
        except OSError as error:
            raise TelehandlerError(f"{os.fsdecode(path)} cannot be read: {error.strerror}") from None
        finally:
            os.close(fd)

    def _header(self, member: bytes, status: os.stat_result, kind: bytes, link: bytes = b"") -> bytes:
        info = tarfile.TarInfo(member.decode("utf-8", "surrogateescape"))
        info.type, info.mode, info.mtime = kind, status.st_mode & 0o777, int(status.st_mtime)
        info.size = status.st_size if kind == tarfile.REGTYPE else 0
        info.linkname = link.decode("utf-8", "surrogateescape")
        return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
