"""Tar streams of a hostile job: what `client cp` unpacks stays where it was asked for."""

import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from telehandler.client.untar import TarStream, Unpacker
from telehandler.common.errors import TelehandlerError


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b"", mode: int = 0o644) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, link, len(data), mode
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


_TOP = _member("x", tarfile.DIRTYPE, mode=0o755)
_HUGE = tarfile.TarInfo("x/huge")
_HUGE.size = 1 << 62
_LONG = tarfile.TarInfo("././@LongLink")
_LONG.type, _LONG.size = tarfile.GNUTYPE_LONGNAME, 1 << 40


@pytest.mark.parametrize(
    ("stream", "text"),
    [
        (_member("/outside", data=b"evil"), "leads out"),
        (_member("x/../../outside", data=b"evil"), "leads out"),
        (_member("outside", data=b"evil"), "not asked for"),
        (_member("x/l", tarfile.SYMTYPE, "/"), "a link out"),
        (_member("x/l", tarfile.SYMTYPE, "../.."), "a link out"),
        (_member("x/d", tarfile.DIRTYPE) + _member("x/d/l", tarfile.SYMTYPE, "../l/../.."), "a link out"),
        (_member("x/l", tarfile.SYMTYPE, ".") + _member("x/l/outside", data=b"evil"), "Not a directory"),
        (_member("x/h", tarfile.LNKTYPE, "../outside"), "leads out"),
        (_member("x/h", tarfile.LNKTYPE, "x"), "no file"),
        (_HUGE.tobuf(tarfile.GNU_FORMAT) + b"little", "ends too early"),
        (_LONG.tobuf(tarfile.GNU_FORMAT), "a header of"),
        (_member("x/t", data=b"a" * 600)[:-512], "ends too early"),
        (_member("x/t").replace(b"x/t", b"x/u"), "checksum"),
    ],
)
def test_s55_a_hostile_stream_stays_inside(tmp_path: Path, stream: bytes, text: str) -> None:
    told, failure = _unpack(tmp_path, _TOP + stream)
    assert text in f"{told} {failure}"
    assert not list(tmp_path.rglob("outside"))
    assert not list(tmp_path.rglob(".telehandler*"))


def _unpack(place: Path, stream: bytes) -> tuple[list[str], BaseException | None]:
    """Below `place`/to, in small pieces: what was told, and the failure."""
    told: list[str] = []
    (place / "to").mkdir(exist_ok=True)
    fd = os.open(place / "to", os.O_RDONLY)
    unpacker = Unpacker(fd, b"x", told.append)
    try:
        unpacker.unpack(TarStream(_pieces(stream)), b"x")
    except (TelehandlerError, OSError) as error:
        return told, error
    finally:
        os.close(fd)
    return told, None


def _pieces(stream: bytes) -> Iterator[bytes]:
    for at in range(0, len(stream), 97):
        yield stream[at : at + 97]


def test_s55_what_must_not_be_made_is_not(tmp_path: Path) -> None:
    stream = _TOP + _member("x/dev", tarfile.CHRTYPE) + _member("x/pipe", tarfile.FIFOTYPE)
    stream += _member("x/root", mode=0o6777, data=b"1") + _member("x/twice", data=b"1") + _member("x/twice", data=b"2")
    told, failure = _unpack(tmp_path, stream + bytes(1024))
    assert failure is None
    assert [line.endswith("skipped") for line in told] == [True, True]
    assert sorted(path.name for path in (tmp_path / "to" / "x").iterdir()) == ["root", "twice"]
    assert stat.S_IMODE((tmp_path / "to" / "x" / "root").stat().st_mode) == 0o755
    assert (tmp_path / "to" / "x" / "twice").read_text() == "2"


def test_s55_links_that_are_there_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "to" / "x").mkdir(parents=True)
    (tmp_path / "away").mkdir()
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "to" / "x" / "d").symlink_to(tmp_path / "away")
    (tmp_path / "to" / "x" / "f").symlink_to(tmp_path / "kept")
    assert _unpack(tmp_path, _TOP + _member("x/f", data=b"new") + bytes(1024)) == ([], None)
    assert (tmp_path / "kept").read_text() == "kept"
    assert (tmp_path / "to" / "x" / "f").read_text() == "new"
    _, failure = _unpack(tmp_path, _TOP + _member("x/d/f", data=b"new") + bytes(1024))
    assert isinstance(failure, OSError)
    assert not list((tmp_path / "away").iterdir())


def test_pax_headers_are_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x/" + "n" * 200)
    info.size, info.mtime = 3, 1_600_000_000.5
    stream = _TOP + info.tobuf(tarfile.PAX_FORMAT) + b"abc" + bytes(509 + 1024)
    assert _unpack(tmp_path, stream) == ([], None)
    found = tmp_path / "to" / "x" / ("n" * 200)
    assert (found.read_text(), found.stat().st_mtime) == ("abc", 1_600_000_000.5)
