"""The common name of a certificate, as cryptography finds it."""

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID

from telehandler.certs.pem import common_name
from telehandler.common.errors import TelehandlerError

_KEY = ec.generate_private_key(ec.SECP256R1())
_ORGANISATION = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "o" * 60)


def _certificate(path: Path, *names: x509.NameAttribute[str]) -> str:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(
        issuer_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer"), _ORGANISATION]),
        subject_name=x509.Name(names),
        public_key=_KEY.public_key(),
        serial_number=1 << 150,
        not_valid_before=now,
        not_valid_after=now + datetime.timedelta(days=1),
    )
    pem = builder.sign(_KEY, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    path.write_bytes(b"text before it\n" + pem + pem)
    return str(path)


@pytest.mark.parametrize("name", ["a", "tele-tester", "Zoë Ω 🦀", "x" * 64])
@pytest.mark.parametrize("kind", [_ASN1Type.UTF8String, _ASN1Type.BMPString, _ASN1Type.UniversalString])
def test_the_common_name_is_read(tmp_path: Path, name: str, kind: _ASN1Type) -> None:
    if kind is _ASN1Type.BMPString:
        name = name.replace("🦀", "")  # of the first plane alone
    attribute = x509.NameAttribute(NameOID.COMMON_NAME, name, kind)
    assert common_name(_certificate(tmp_path / "c.pem", _ORGANISATION, attribute)) == name


def test_one_without_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TelehandlerError, match="no certificate with a common name"):
        common_name(_certificate(tmp_path / "c.pem", _ORGANISATION))


@pytest.mark.parametrize("cut", [1, 20, 100, 200])
def test_what_is_no_certificate_is_refused(tmp_path: Path, cut: int) -> None:
    path = Path(_certificate(tmp_path / "c.pem", x509.NameAttribute(NameOID.COMMON_NAME, "a")))
    before, begin, rest = path.read_text().partition("-----BEGIN CERTIFICATE-----\n")
    body, end, _ = rest.partition("-----END CERTIFICATE-----")
    path.write_text(before + begin + body[: cut // 4 * 4] + "\n" + end)
    with pytest.raises(TelehandlerError, match="no certificate with a common name"):
        common_name(str(path))
