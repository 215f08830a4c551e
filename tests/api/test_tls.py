"""Which files the server takes as certificate, key and roots, and what it goes on with else (S36, R16)."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.certificates import issue

from telehandler.api import tls
from telehandler.common.errors import TelehandlerError

SERVER = ExtendedKeyUsageOID.SERVER_AUTH
A_SECOND = 1 / 86400
GOES_ON = "; the server goes on with those it has"
NEW = "telehandler: new connections get the new certificates\n"
FILE_BYTES = 1 << 20


@pytest.fixture
def files(ssl: Path, tmp_path: Path) -> tls.Files:
    """A good pair and root that a test may replace."""
    for name in ("server.pem", "server-key.pem", "root.pem"):
        shutil.copy(ssl / name, tmp_path / name)
    return _files(tmp_path)


@pytest.fixture
def copies(files: tls.Files, tmp_path: Path) -> tls.Files:
    (tmp_path / "copies").mkdir()
    for path in files:
        shutil.copy(path, tmp_path / "copies")
    return _files(tmp_path / "copies")


def _files(directory: Path) -> tls.Files:
    return tls.Files(*(str(directory / name) for name in ("server.pem", "server-key.pem", "root.pem")))


def _put(path: str, data: bytes) -> None:
    """As one replaces a file that is in use."""
    Path(f"{path}.new").write_bytes(data)
    os.replace(f"{path}.new", path)


def _put_pair(files: tls.Files, pair: Path) -> None:
    _put(files.cert, pair.with_suffix(".pem").read_bytes())
    _put(files.key, pair.with_name(f"{pair.name}-key.pem").read_bytes())


def _in_use(certificates: tls._Certificates) -> list[bytes]:
    return list(certificates.pieces)


def _read(files: tls.Files) -> list[bytes]:
    return [Path(path).read_bytes() for path in files]


def test_good_files_are_in_use_and_nothing_is_told(
    files: tls.Files, copies: tls.Files, capfd: pytest.CaptureFixture[str]
) -> None:
    certificates = tls._Certificates(files, copies)
    assert _in_use(certificates) == _read(files)
    assert certificates.told == ""
    assert certificates.fetch() is None
    assert certificates.fetch() is None
    assert capfd.readouterr().err == ""
    assert tls.server_credentials(files, copies)[1] == ""


def test_new_files_are_taken_once_and_told_once(
    ssl: Path, files: tls.Files, copies: tls.Files, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    certificates = tls._Certificates(files, copies)
    _put_pair(files, issue(ssl, tmp_path / "new", "localhost", usage=SERVER))
    assert certificates.fetch() is not None
    assert _in_use(certificates) == _read(files)
    assert certificates.fetch() is None
    assert capfd.readouterr().err == NEW


@pytest.mark.parametrize("which", [0, 1, 2], ids=tls.Files._fields)
def test_a_file_that_is_gone_changes_nothing_and_is_told_once(
    files: tls.Files, copies: tls.Files, which: int, capfd: pytest.CaptureFixture[str]
) -> None:
    certificates = tls._Certificates(files, copies)
    before = _in_use(certificates)
    content = Path(files[which]).read_bytes()
    os.unlink(files[which])
    for _ in range(3):
        assert certificates.fetch() is None
    assert _in_use(certificates) == before
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"telehandler: {files[which]} cannot be read by the server's user: No such file")
    assert said.endswith(f"new certificates need a restart{GOES_ON}\n")
    _put(files[which], content)  # what was there before: there is nothing to tell
    assert certificates.fetch() is None
    assert (certificates.told, capfd.readouterr().err) == ("", "")


def test_what_was_half_written_is_read_again(
    ssl: Path, files: tls.Files, copies: tls.Files, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A file that is bad now may be good the next time, with nothing that a stat shows to be new."""
    certificates = tls._Certificates(files, copies)
    new = issue(ssl, tmp_path / "new", "localhost", usage=SERVER)
    _put(files.cert, new.with_suffix(".pem").read_bytes())
    assert certificates.fetch() is None
    assert "do not belong together" in capfd.readouterr().err
    _put(files.key, (tmp_path / "new-key.pem").read_bytes())
    assert certificates.fetch() is not None
    assert capfd.readouterr().err == NEW


def test_what_is_bad_is_read_again_though_no_stat_shows_a_change(
    files: tls.Files, copies: tls.Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two writes within one tick of the file system's clock look alike."""
    ticks = [1]
    monkeypatch.setattr(tls, "_state", lambda _: tuple(ticks))
    good = Path(files.cert).read_bytes()
    _put(files.cert, b"half")
    certificates = tls._Certificates(files, copies)
    for tick in (1, 2):  # at the start, and once they were good
        ticks[0] = tick
        _put(files.cert, b"half")
        assert certificates.fetch() is None
        assert "not all of it is there" in certificates.told
        _put(files.cert, good)
        assert certificates.fetch() is None  # the same as the copies
        assert certificates.told == ""


def test_what_is_good_is_not_read_again_while_no_stat_shows_a_change(
    files: tls.Files, copies: tls.Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be for each handshake."""
    certificates = tls._Certificates(files, copies)
    reads: list[str] = []
    read = tls._read

    def counted(path: str) -> bytes:
        reads.append(path)
        return read(path)

    monkeypatch.setattr(tls, "_read", counted)
    for _ in range(3):
        assert certificates.fetch() is None
    assert reads == []
    os.utime(files.root)
    assert certificates.fetch() is None
    assert reads == list(files)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"start": -30}, "has expired"), ({"usage": ExtendedKeyUsageOID.CLIENT_AUTH}, "lacks serverAuth")],
    ids=["expired", "for clients"],
)
def test_files_that_clients_would_refuse_keep_those_of_before(
    ssl: Path, files: tls.Files, copies: tls.Files, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    certificates = tls._Certificates(files, copies)
    _put_pair(files, issue(ssl, tmp_path / "new", "localhost", **({"usage": SERVER} | options)))
    assert certificates.fetch() is None
    assert words in certificates.told
    assert certificates.told.endswith(GOES_ON)
    assert _in_use(certificates) == _read(copies)


def test_bad_files_at_the_start_leave_the_copies_in_use_and_are_told(files: tls.Files, copies: tls.Files) -> None:
    os.unlink(files.key)
    certificates = tls._Certificates(files, copies)
    assert _in_use(certificates) == _read(copies)
    note = tls.server_credentials(files, copies)[1]
    assert note == certificates.told
    assert "server-key.pem cannot be read" in note
    os.unlink(copies.key)
    with pytest.raises(TelehandlerError, match="copies/server-key"):
        tls.server_credentials(files, copies)


def _error(files: tls.Files) -> str:
    """Why the files are not taken; empty when they are."""
    try:
        tls._check(tls._pieces(files), files)
    except TelehandlerError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", ["cert", "root"])
@pytest.mark.parametrize("kind", ["empty", "text", "half", "second half"])
def test_a_certificate_is_there_as_a_whole(files: tls.Files, name: str, kind: str) -> None:
    path: str = getattr(files, name)
    whole = Path(path).read_bytes()
    half = whole[: len(whole) // 2]
    _put(path, {"empty": b"", "text": b"hello\n", "half": half, "second half": whole + half}[kind])
    assert f"{path} is not a PEM certificate, or not all of it is there" in _error(files)


def test_chains_and_several_roots_are_taken(files: tls.Files) -> None:
    for path in (files.cert, files.root):
        _put(path, Path(path).read_bytes() + Path(files.root).read_bytes())
    assert _error(files) == ""


def _key(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, lock: KeySerializationEncryption) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: b"", "is not a PEM key"),
        (lambda: b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "is not a PEM key"),
        (lambda: _key(ec.generate_private_key(ec.SECP256R1()), BestAvailableEncryption(b"x")), "is not a PEM key"),
        (lambda: _key(ec.generate_private_key(ec.SECP384R1()), NoEncryption()), "is not ECDSA P-256"),
        (lambda: _key(rsa.generate_private_key(65537, 2048), NoEncryption()), "is not ECDSA P-256"),
        (lambda: _key(ec.generate_private_key(ec.SECP256R1()), NoEncryption()), "do not belong together"),
    ],
    ids="empty text password P-384 RSA another".split(),
)
def test_the_key_is_p_256_and_the_certificates(files: tls.Files, make: Callable[[], bytes], words: str) -> None:
    _put(files.key, make())
    assert words in _error(files)


@pytest.mark.parametrize(
    ("start", "words"),
    [(-5 + 60 * A_SECOND, ""), (-5 - A_SECOND, "has expired"), (60 * A_SECOND, "or is not valid yet")],
)
def test_the_certificate_is_good_now(ssl: Path, files: tls.Files, tmp_path: Path, start: float, words: str) -> None:
    _put_pair(files, issue(ssl, tmp_path / "new", "localhost", usage=SERVER, start=start))
    found = _error(files)
    assert bool(found) == bool(words)
    assert words in found


@pytest.mark.parametrize(
    ("usage", "words"), [(SERVER, ""), (None, ""), (ExtendedKeyUsageOID.CLIENT_AUTH, "lacks serverAuth")], ids=str
)
def test_the_certificate_is_for_servers(
    ssl: Path, files: tls.Files, tmp_path: Path, usage: x509.ObjectIdentifier | None, words: str
) -> None:
    _put_pair(files, issue(ssl, tmp_path / "new", "localhost", usage=usage))
    found = _error(files)
    assert bool(found) == bool(words)
    assert words in found


def test_extensions_that_cannot_be_read_are_an_error(ssl: Path, files: tls.Files, tmp_path: Path) -> None:
    """The bytes of a good certificate, with one of its extensions spoilt: nobody checks a signature of one's own."""
    pair = issue(ssl, tmp_path / "new", "localhost", usage=SERVER)
    der = x509.load_pem_x509_certificate(pair.with_suffix(".pem").read_bytes()).public_bytes(Encoding.DER)
    oid = bytes.fromhex("06082b06010505070301")  # serverAuth; its tag becomes an integer's
    assert der.count(oid) == 1
    spoilt = x509.load_der_x509_certificate(der.replace(oid, b"\x02" + oid[1:]))
    _put_pair(files, pair)
    _put(files.cert, spoilt.public_bytes(Encoding.PEM))
    assert "has malformed extensions" in _error(files)


@pytest.mark.parametrize("kind", ["directory", "fifo", "device"])
def test_only_a_regular_file_is_read(files: tls.Files, kind: str) -> None:
    """A FIFO that nobody writes to would hold every handshake up."""
    os.unlink(files.root)
    if kind == "directory":
        os.mkdir(files.root)
    elif kind == "fifo":
        os.mkfifo(files.root)
    else:
        os.symlink("/dev/zero", files.root)
    assert f"{files.root} is no regular file" in _error(files) or kind == "directory"
    assert _error(files).startswith(files.root)


@pytest.mark.parametrize(("before", "good"), [(0, True), (1, False)])
def test_so_much_of_a_file_is_read_and_no_more(files: tls.Files, before: int, good: bool) -> None:
    root = Path(files.root).read_bytes().rstrip()
    _put(files.root, b"\n" * (FILE_BYTES - len(root) + before) + root)
    assert (_error(files) == "") == good


def test_the_fds_of_files_that_are_read_are_closed(files: tls.Files, copies: tls.Files) -> None:
    certificates = tls._Certificates(files, copies)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        _put(files.root, b"")
        assert certificates.fetch() is None
    assert len(os.listdir("/proc/self/fd")) <= before


def test_the_keys_of_the_certificates_are_those_of_the_maker(files: tls.Files) -> None:
    """So that the tests above start from good files."""
    key = load_pem_private_key(Path(files.key).read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert _error(files) == ""
