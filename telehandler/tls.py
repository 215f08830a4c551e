"""Server credentials: mTLS 1.3 and nothing below it.

grpc has no public way to set a least version. The only TLS 1.2 cipher that is left on needs an RSA key, and ours
is ECDSA P-256: a TLS 1.2 handshake finds no common cipher. Every call checks the version besides.
"""

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from telehandler.errors import TelehandlerError

# Must be set before grpc is imported.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"

import grpc

TLS_VERSION = b"TLSv1.3"


def read(path: str, what: str) -> bytes:
    """A file's bytes. Raises TelehandlerError with a remedy."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise TelehandlerError(
            f"the {what} {path} cannot be read: {error.strerror}; `make certs` makes a set under ssl/"
        ) from None


def server_credentials(certificate: str, key: str, root: str) -> grpc.ServerCredentials:
    """Credentials that demand a client certificate of `root`. Raises TelehandlerError."""
    key_pem = read(key, "key")
    try:
        private = load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError):
        raise TelehandlerError(f"the key {key} is not an unencrypted PEM private key") from None
    if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
        raise TelehandlerError(f"the key {key} is not ECDSA P-256, which TLS 1.3 alone depends on: see `make certs`")
    chain = read(certificate, "certificate")
    roots = read(root, "root certificate")
    return grpc.ssl_server_credentials([(key_pem, chain)], root_certificates=roots, require_client_auth=True)
