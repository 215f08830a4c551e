"""Server credentials: mTLS 1.3 and nothing below it.

grpc has no public way to set a least version. The only TLS 1.2 cipher that is left on needs an RSA key, and ours
is ECDSA P-256: a TLS 1.2 handshake finds no common cipher. Every call checks the version besides.
"""

import os

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from telehandler.errors import TelehandlerError
from telehandler.pem import read_pair

# Must be set before grpc is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own lines are not ours: errors become one of ours
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"

import grpc

TLS_VERSION = b"TLSv1.3"


def server_credentials(certificate: str, key: str, root: str) -> grpc.ServerCredentials:
    """Credentials that demand a client certificate of `root`. Raises TelehandlerError."""
    chain, key_pem, roots = read_pair(certificate, key, root)
    private = load_pem_private_key(key_pem, password=None)
    if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
        raise TelehandlerError("the server's key is not ECDSA P-256, which TLS 1.3 alone depends on: see `make certs`")
    return grpc.ssl_server_credentials([(key_pem, chain)], root_certificates=roots, require_client_auth=True)
