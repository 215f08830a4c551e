"""`make certs`: a small certificate authority for one installation, and pairs for its server and users.

P-256 throughout: grpcio cannot use Ed25519 leaves, and with an ECDSA server key alone TLS 1.2 can be
shut out (see telehandler/api/tls.py). Nothing that is there already is ever written over.
"""

import argparse
import datetime
import ipaddress
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from telehandler.common import streams
from telehandler.common.errors import OutputFailed

ROOT_DAYS = 3650
LEAF_DAYS = 825
# Clocks of other machines may be behind this one's.
BACKDATE = datetime.timedelta(hours=1)
SERVER_HOSTS = ("localhost", "127.0.0.1", "::1")
EXIT_FAILED = 125


class CertificateError(Exception):
    """A pair can be neither kept nor made; the message says why and what to do."""


class Leaf(NamedTuple):
    """A pair to have: `NAME.pem` and `NAME-key.pem`."""

    name: str
    common_name: str
    usage: x509.ObjectIdentifier
    hosts: tuple[str, ...] = ()


class Pair(NamedTuple):
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


CLIENTS = (
    Leaf("client", "tele-tester", ExtendedKeyUsageOID.CLIENT_AUTH),
    Leaf("bubba", "bubba", ExtendedKeyUsageOID.CLIENT_AUTH),
    Leaf("admin", "admin", ExtendedKeyUsageOID.CLIENT_AUTH),
)


def make_all(directory: Path, hosts: Iterable[str] = ()) -> list[str]:
    """Makes what is missing in `directory`; one line for each file pair says what was done.

    `hosts`: further names and addresses for the server's certificate. Raises CertificateError, OSError.
    """
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    leaves = [Leaf("server", "localhost", ExtendedKeyUsageOID.SERVER_AUTH, (*SERVER_HOSTS, *hosts)), *CLIENTS]
    missing = [leaf for leaf in leaves if not _path(directory, leaf.name).exists()]
    root_path = _path(directory, "root")
    root_known = root_path.exists()
    if not root_known and len(missing) < len(leaves):
        raise CertificateError(
            f"{directory} has certificates but no root.pem: put the root that signed them back, "
            "or move them away to begin anew"
        )
    if root_known and not missing and not _key_path(directory, "root").exists():
        # A root key kept elsewhere is good practice; there is nothing to sign.
        root = _read_certificate(root_path)
        lines = ["root: kept (its key is elsewhere)"]
    else:
        pair = _root(directory)
        root = pair.certificate
        lines = [f"root: {'kept' if root_known else 'made'}"]
    for leaf in leaves:
        if leaf in missing:
            _make_leaf(directory, leaf, pair)
        else:
            _check_leaf(directory, leaf, root)
        lines.append(f"{leaf.name}: {'made' if leaf in missing else 'kept'} (CN {leaf.common_name})")
    return lines


def _root(directory: Path) -> Pair:
    path = _path(directory, "root")
    if not path.exists():
        key = _key(directory, "root")
        name = _name("telehandler root")
        builder = _builder(name, name, key.public_key(), key.public_key(), ROOT_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
        certificate = builder.sign(key, hashes.SHA256())
        _write_new(path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        return Pair(certificate, key)
    if not _key_path(directory, "root").exists():
        raise CertificateError(
            f"{path} is in use but root-key.pem is not there, so nothing more can be signed with it: "
            "bring its key, or move the whole directory away to begin anew"
        )
    pair = Pair(_read_certificate(path), _key(directory, "root"))
    _check(path, pair, pair.certificate)
    return pair


def _make_leaf(directory: Path, leaf: Leaf, root: Pair) -> None:
    key = _key(directory, leaf.name)
    builder = _builder(
        _name(leaf.common_name), root.certificate.subject, key.public_key(), root.key.public_key(), LEAF_DAYS
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([leaf.usage]), critical=False)
    if leaf.hosts:
        names = x509.SubjectAlternativeName([_general_name(host) for host in dict.fromkeys(leaf.hosts)])
        builder = builder.add_extension(names, critical=False)
    certificate = builder.sign(root.key, hashes.SHA256())
    _write_new(_path(directory, leaf.name), certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _check_leaf(directory: Path, leaf: Leaf, root: x509.Certificate) -> None:
    path = _path(directory, leaf.name)
    if not _key_path(directory, leaf.name).exists():
        raise CertificateError(f"{path} has no {leaf.name}-key.pem: bring its key, or remove it for a new pair")
    pair = Pair(_read_certificate(path), _key(directory, leaf.name))
    _check(path, pair, root)
    if not leaf.hosts:
        return
    try:
        names = pair.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        present = set(names)
    except x509.ExtensionNotFound:
        present = set()
    absent = [host for host in leaf.hosts if _general_name(host) not in present]
    if absent:
        raise CertificateError(
            f"{path} is not for {', '.join(absent)}: remove it and {leaf.name}-key.pem for a new pair"
        )


def _check(path: Path, pair: Pair, root: x509.Certificate) -> None:
    """Raises CertificateError unless the certificate is root's, in date, and for this key."""
    remedy = "move it and its key away for a new pair"
    try:
        pair.certificate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        raise CertificateError(f"{path} was not signed by root.pem: {remedy}") from None
    if pair.certificate.not_valid_after_utc <= datetime.datetime.now(datetime.UTC):
        raise CertificateError(f"{path} expired on {pair.certificate.not_valid_after_utc:%Y-%m-%d}: {remedy}")
    if pair.certificate.public_key() != pair.key.public_key():
        raise CertificateError(f"{path} is for another key than {path.stem}-key.pem: {remedy}")


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    days: int,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=public_key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - BACKDATE).not_valid_after(now + datetime.timedelta(days=days))
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key)
    return builder.add_extension(authority, critical=False)


def _key_usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError:
        raise CertificateError(f"{host!r} is neither an address nor an ASCII host name") from None


def _path(directory: Path, name: str) -> Path:
    return directory / f"{name}.pem"


def _key_path(directory: Path, name: str) -> Path:
    return directory / f"{name}-key.pem"


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError:
        raise CertificateError(f"{path} is not a PEM certificate: move it away for a new one") from None


def _key(directory: Path, name: str) -> ec.EllipticCurvePrivateKey:
    """The pair's key, made when it is missing. A key without a certificate is an interrupted run's: it is used."""
    path = _key_path(directory, name)
    if not path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        _write_new(path, pem, 0o600)
        return key
    if path.stat().st_mode & 0o077:
        raise CertificateError(f"others may read {path}: chmod 600 {path}")
    try:
        found = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError):
        raise CertificateError(f"{path} is not a PEM key without a password: move it away for a new one") from None
    if not isinstance(found, ec.EllipticCurvePrivateKey) or not isinstance(found.curve, ec.SECP256R1):
        raise CertificateError(f"{path} is not a P-256 key: move it and its certificate away for a new pair")
    return found


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """`path` with `mode` from its first instant, so that a key is never readable by others; never over a file."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
    except BaseException:
        path.unlink()
        raise


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0, or 125 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="telehandler.certs", description="Make the certificates of one installation.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--host", action="append", default=[], help="a further name or address of the server")
    options = parser.parse_args(arguments)
    try:
        lines = make_all(options.directory, options.host)
    except CertificateError as error:
        print(f"certs: {error}", file=sys.stderr)
        return EXIT_FAILED
    except OSError as error:
        print(f"certs: {error.filename or options.directory}: {error.strerror}", file=sys.stderr)
        return EXIT_FAILED
    try:
        streams.write(streams.STDOUT_FD, "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape"))
    except OutputFailed as error:  # the pairs are made
        if str(error):
            print(f"certs: {error}", file=sys.stderr)
        return error.exit_code
    return 0
