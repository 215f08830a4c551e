"""Who calls: the one common name of a verified client certificate, and what that user may do."""

import datetime
import unicodedata
from typing import NamedTuple

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

MAX_NAME_BYTES = 64


class AuthError(Exception):
    """The certificate names no user that we accept; the message says why."""


class Caller(NamedTuple):
    name: str
    admin: bool

    def may_see(self, owner: str) -> bool:
        """An exact compare: `bob` is not `bobby`."""
        return self.admin or self.name == owner


def check_name(name: str) -> str:
    """A user name that is safe in a job's name and on a terminal. Raises AuthError."""
    if not 1 <= len(name.encode()) <= MAX_NAME_BYTES:
        raise AuthError(f"the common name must have 1 to {MAX_NAME_BYTES} bytes")
    if "/" in name or ".." in name or any(unicodedata.category(letter).startswith("C") for letter in name):
        raise AuthError("the common name must be without '/', '..' and control characters")
    return name


def caller_of(pem: bytes, admins: frozenset[str]) -> Caller:
    """The user of a client certificate that TLS has verified. Raises AuthError.

    The certificate is parsed here, because grpc shows only the first of several common names.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (ValueError, x509.ExtensionNotFound):
        raise AuthError("the client certificate is malformed or has no extended key usage") from None
    # TLS looks at it once, and a connection may stay for months.
    if certificate.not_valid_after_utc <= datetime.datetime.now(datetime.UTC):
        raise AuthError("the client certificate has expired since the connection was made: get a new one")
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usages:
        raise AuthError("the certificate is not for clients: its extended key usage lacks clientAuth")
    if len(names) != 1:
        raise AuthError(f"the client certificate has {len(names)} common names; it must have one")
    name = check_name(str(names[0].value))
    return Caller(name, name in admins)
