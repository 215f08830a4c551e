"""`make certs`: what is made, that TLS accepts it, and that nothing there is written over."""

import os
import ssl
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from telehandler.certs import authority

NAMES = ("root", "server", "client", "bubba", "admin")
COMMON_NAMES = {"client": "tele-tester", "bubba": "bubba", "admin": "admin"}


@pytest.fixture(name="made")
def _made(tmp_path: Path) -> Path:
    directory = tmp_path / "ssl"
    authority.make_all(directory)
    return directory


def _load(directory: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((directory / f"{name}.pem").read_bytes())


def _contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_exactly_the_named_files_are_made(made: Path) -> None:
    assert sorted(_contents(made)) == sorted(f"{name}{part}.pem" for name in NAMES for part in ("", "-key"))


@pytest.mark.parametrize("name", NAMES)
def test_keys_are_p256_and_fit_their_certificates(made: Path, name: str) -> None:
    key = serialization.load_pem_private_key((made / f"{name}-key.pem").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP256R1)
    assert _load(made, name).public_key() == key.public_key()
    _load(made, name).verify_directly_issued_by(_load(made, "root"))


def test_s38_keys_are_0600_from_their_creation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really_open = os.open
    opened: dict[str, tuple[int, int]] = {}

    def spy(path: os.PathLike[str], flags: int, mode: int = 0o777) -> int:
        fd = really_open(path, flags, mode)
        opened[Path(path).name] = (flags, stat.S_IMODE(os.fstat(fd).st_mode))
        return fd

    monkeypatch.setattr(os, "open", spy)
    old_mask = os.umask(0)
    try:
        authority.make_all(tmp_path)
    finally:
        os.umask(old_mask)
    for name in NAMES:
        flags, mode = opened[f"{name}-key.pem"]
        assert flags & os.O_CREAT
        assert flags & os.O_EXCL
        assert mode == 0o600
        assert stat.S_IMODE((tmp_path / f"{name}-key.pem").stat().st_mode) == 0o600


def test_the_root_signs_and_does_nothing_else(made: Path) -> None:
    extensions = _load(made, "root").extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    assert (usage.critical, usage.value.key_cert_sign, usage.value.digital_signature) == (True, True, False)


@pytest.mark.parametrize("name", NAMES[1:])
def test_leaves_have_one_purpose_each(made: Path, name: str) -> None:
    extensions = _load(made, name).extensions
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if name == "server" else ExtendedKeyUsageOID.CLIENT_AUTH
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    root_id = _load(made, "root").extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [purpose]
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert (usage.critical, usage.value.digital_signature, usage.value.key_cert_sign) == (True, True, False)
    assert extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == root_id
    assert extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


@pytest.mark.parametrize(("name", "common_name"), COMMON_NAMES.items())
def test_clients_are_told_apart_by_their_common_name(made: Path, name: str, common_name: str) -> None:
    subject = _load(made, name).subject
    assert [attribute.value for attribute in subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [common_name]


def _handshake(directory: Path, client_name: str | None, host: str) -> str | None:
    """The TLS version agreed on, by memory alone."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=directory / "root.pem")
    server.load_cert_chain(directory / "server.pem", directory / "server-key.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cafile=directory / "root.pem")
    for context in (server, client):
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    if client_name:
        client.load_cert_chain(directory / f"{client_name}.pem", directory / f"{client_name}-key.pem")
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up, server_hostname=host), server.wrap_bio(up, down, server_side=True)]
    while ends:
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
                version = end.version()
            except ssl.SSLWantReadError:
                pass
    return version


@pytest.mark.parametrize("host", authority.SERVER_HOSTS)
def test_tls_accepts_every_client_at_every_name(made: Path, host: str) -> None:
    for name in COMMON_NAMES:
        assert _handshake(made, name, host) == "TLSv1.3"


@pytest.mark.parametrize("name", [None, "server"])
def test_tls_refuses_what_is_no_client(made: Path, name: str | None) -> None:
    with pytest.raises(ssl.SSLError):
        _handshake(made, name, "localhost")


def test_a_second_run_changes_nothing(made: Path) -> None:
    before = _contents(made)
    lines = authority.make_all(made)
    assert _contents(made) == before
    assert all("kept" in line for line in lines)


def test_a_missing_pair_is_made_anew_by_the_same_root(made: Path) -> None:
    before = _contents(made)
    for part in ("", "-key"):
        (made / f"bubba{part}.pem").unlink()
    authority.make_all(made)
    after = _contents(made)
    assert {name for name in after if after[name] != before[name]} == {"bubba.pem", "bubba-key.pem"}
    _load(made, "bubba").verify_directly_issued_by(_load(made, "root"))


def test_an_interrupted_run_is_continued_with_its_keys(made: Path) -> None:
    key = (made / "admin-key.pem").read_bytes()
    (made / "admin.pem").unlink()
    authority.make_all(made)
    assert (made / "admin-key.pem").read_bytes() == key
    _load(made, "admin").verify_directly_issued_by(_load(made, "root"))


def test_a_root_key_kept_elsewhere_is_not_missed(made: Path) -> None:
    (made / "root-key.pem").unlink()
    assert "elsewhere" in authority.make_all(made)[0]
    assert not (made / "root-key.pem").exists()


def test_further_server_names(tmp_path: Path) -> None:
    authority.make_all(tmp_path, ["build.example", "10.0.0.7"])
    assert _handshake(tmp_path, "client", "build.example") == "TLSv1.3"
    assert _handshake(tmp_path, "client", "10.0.0.7") == "TLSv1.3"


def _other_root(directory: Path) -> None:
    authority.make_all(directory.parent / "other")
    for part in ("", "-key"):
        (directory / f"root{part}.pem").write_bytes((directory.parent / "other" / f"root{part}.pem").read_bytes())


def _remove(*names: str) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        for name in names:
            (directory / name).unlink()

    return damage


def _overwrite(name: str) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        (directory / name).write_text("nonsense\n")

    return damage


def _expire(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(authority, "ROOT_DAYS", 0)
        authority.make_all(directory)


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (_other_root, "server.pem was not signed by root.pem"),
    (_remove("root.pem"), "no root.pem"),
    (_remove("root-key.pem", "bubba.pem"), "in use but root-key.pem is not there"),
    (_remove("server-key.pem"), "has no server-key.pem"),
    (lambda directory: (directory / "admin-key.pem").chmod(0o644), "others may read"),
    (_overwrite("server.pem"), "is not a PEM certificate"),
    (_overwrite("client-key.pem"), "is not a PEM key"),
    (_expire, "root.pem expired on"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=[message for _, message in DAMAGES])
def test_what_is_in_use_is_never_written_over(
    made: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], message: str
) -> None:
    damage(made)
    before = _contents(made)
    assert authority.main([str(made)]) == authority.EXIT_FAILED
    assert message in capsys.readouterr().err
    assert _contents(made) == before


def test_a_key_of_another_pair_is_noticed(made: Path) -> None:
    (made / "admin-key.pem").write_bytes((made / "bubba-key.pem").read_bytes())
    with pytest.raises(authority.CertificateError, match="for another key"):
        authority.make_all(made)


@pytest.mark.parametrize(
    ("host", "message"), [("new.example", "is not for new.example"), ("münchen", "neither an address")]
)
def test_a_name_the_server_lacks(made: Path, host: str, message: str) -> None:
    with pytest.raises(authority.CertificateError, match=message):
        authority.make_all(made, [host])


def test_a_directory_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert authority.main([str(tmp_path / "file")]) == authority.EXIT_FAILED
    error = capsys.readouterr().err
    assert error.startswith("certs: ")
    assert error.count("\n") == 1
