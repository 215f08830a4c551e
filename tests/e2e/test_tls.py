"""What the api's edge refuses: TLS 1.2, no certificate, another root's, a server's, names that are no user."""

import datetime
import os
import socket
import ssl as tls
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from servers import COMMAND, ROOT, Server

from telehandler.auth import AuthError, check_name

DAY = datetime.timedelta(days=1)


def _context(ssl: Path, user: str | None) -> tls.SSLContext:
    context = tls.create_default_context(cafile=str(ssl / "root.pem"))
    context.set_alpn_protocols(["h2"])
    if user:
        context.load_cert_chain(ssl / f"{user}.pem", ssl / f"{user}-key.pem")
    return context


def _handshake(server: Server, context: tls.SSLContext) -> str | None:
    """The version that was agreed on, after the server has had its say."""
    plain = socket.create_connection(("127.0.0.1", server.port), 10)
    with plain, context.wrap_socket(plain, server_hostname="localhost") as wrapped:
        # With TLS 1.3 a refused client certificate shows only at the first read.
        if not wrapped.recv(1):
            raise ConnectionError("closed by the server")
        return wrapped.version()


def test_tls_1_3_with_a_certificate_is_served(server: Server, ssl: Path) -> None:
    assert _handshake(server, _context(ssl, "client")) == "TLSv1.3"


def test_tls_1_2_is_refused(server: Server, ssl: Path) -> None:
    context = _context(ssl, "client")
    context.maximum_version = tls.TLSVersion.TLSv1_2
    with pytest.raises((tls.SSLError, ConnectionError)):
        _handshake(server, context)


def test_no_certificate_is_refused(server: Server, ssl: Path) -> None:
    with pytest.raises((tls.SSLError, ConnectionError)):
        _handshake(server, _context(ssl, None))


def _issue(
    ssl: Path, target: Path, names: list[str], *, own_root: bool = False, client: bool = True, start: int = -1
) -> None:
    """target.pem and target-key.pem for `names`, from the session's root or from one of their own."""
    key = ec.generate_private_key(ec.SECP256R1())
    root_key = key if own_root else load_pem_private_key((ssl / "root-key.pem").read_bytes(), None)
    assert isinstance(root_key, ec.EllipticCurvePrivateKey)
    root = x509.load_pem_x509_certificate((ssl / "root.pem").read_bytes())
    begin = datetime.datetime.now(datetime.UTC) + start * DAY
    usage = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names]))
        .issuer_name(root.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + 5 * DAY)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .sign(root_key, hashes.SHA256())
    )
    target.with_name(f"{target.name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    fd = os.open(target.with_name(f"{target.name}-key.pem"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(fd, "wb") as file:
        file.write(pem)


def _run(server: Server, ssl: Path, pair: Path) -> "subprocess.CompletedProcess[bytes]":
    files = ["-c", f"{pair}.pem", "-k", f"{pair}-key.pem", "-r", str(ssl / "root.pem"), "-j", f"{pair}.job"]
    command = [*COMMAND, "client", "run", "-s", f"localhost:{server.port}", *files, "--", "id"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (["mallory"], {"own_root": True}),
        (["mallory"], {"start": -30}),
        (["mallory"], {"start": 10}),
        (["mallory"], {"client": False}),
        (["one", "two"], {}),
        ([], {}),
        (["a/b"], {}),
        ([".."], {}),
        (["a\nb"], {}),
        (["a\u200bb"], {}),
    ],
    ids=["wrong root", "expired", "not yet valid", "a server's", "two names", "no name", "slash", "dots", "newline",
         "zero width"],
)  # fmt: skip
def test_certificates_that_name_no_user_are_refused(
    server: Server, ssl: Path, tmp_path: Path, names: list[str], options: dict[str, int]
) -> None:
    pair = tmp_path / "pair"
    _issue(ssl, pair, names, **options)  # type: ignore[arg-type]  # flags and one int
    done = _run(server, ssl, pair)
    assert (done.returncode, done.stdout) == (125, b"")
    assert done.stderr.startswith(b"telehandler: ")
    assert b"Traceback" not in done.stderr


def test_a_good_certificate_of_this_maker_is_served(server: Server, ssl: Path, tmp_path: Path) -> None:
    """So that the refusals above are for what is wrong with them."""
    _issue(ssl, tmp_path / "pair", ["x" * 64])
    done = _run(server, ssl, tmp_path / "pair")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"uid=")


def test_a_name_over_64_bytes_is_refused() -> None:
    """Its own test: no common maker of certificates would write one."""
    assert check_name("é" * 32) == "é" * 32
    with pytest.raises(AuthError, match="64 bytes"):
        check_name("é" * 33)
