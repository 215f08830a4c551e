"""Certificates of any kind, good and bad."""

import datetime
import subprocess
import sys
import warnings
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from support.checkout import ROOT

DAY = datetime.timedelta(days=1)


def make_certificates(directory: Path) -> None:
    """What `make certs` makes: root, server, client (tele-tester), bubba and admin. Keeps what is there."""
    subprocess.run([sys.executable, "-m", "telehandler.certs", str(directory)], cwd=ROOT, check=True)


def issue(
    ssl: Path,
    target: Path,
    *names: str,
    signer: str = "root",
    usage: x509.ObjectIdentifier | None = ExtendedKeyUsageOID.CLIENT_AUTH,
    start: float = -1,
    curve: ec.EllipticCurve | None = None,
) -> Path:
    """`target`.pem and -key.pem for the common `names`, good for five days from day `start`; P-256 without a `curve`.

    `signer`: root, or client (who may sign nothing), or self: a root of its own under the root's name.
    """
    key = ec.generate_private_key(curve or ec.SECP256R1())
    issuer = x509.load_pem_x509_certificate((ssl / f"{'root' if signer == 'self' else signer}.pem").read_bytes())
    issuer_key = key if signer == "self" else load_pem_private_key((ssl / f"{signer}-key.pem").read_bytes(), None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    begin = datetime.datetime.now(datetime.UTC) + start * DAY
    with warnings.catch_warnings(action="ignore"):  # of names that no good authority would sign
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name, _validate=False) for name in names])
    builder = (
        x509.CertificateBuilder(issuer.subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + 5 * DAY)
    )
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    chain = [builder.sign(issuer_key, hashes.SHA256()), *([issuer] if signer == "client" else [])]
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    target.with_name(f"{target.name}.pem").write_bytes(b"".join(piece.public_bytes(Encoding.PEM) for piece in chain))
    target.with_name(f"{target.name}-key.pem").write_bytes(pem)
    return target
