"""Server credentials: mTLS 1.3 and nothing below it, of files that may be replaced while the server runs.

grpc has no public way to set a least version. The only TLS 1.2 cipher that is left on needs an RSA key, and ours
is ECDSA P-256: a TLS 1.2 handshake finds no common cipher. Every call checks the version besides.
"""

import datetime
import os
import stat
import sys
import threading
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from telehandler.common.errors import TelehandlerError

# Must be set before grpc is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own lines are not ours: errors become one of ours
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"

import grpc

TLS_VERSION = b"TLSv1.3"
_MAX_FILE_BYTES = 1 << 20


class Files(NamedTuple):
    """Paths of the server's certificate (and its chain), of its key, and of the root or roots of clients."""

    cert: str
    key: str
    root: str


class _Pieces(NamedTuple):
    """What the files hold."""

    chain: bytes
    key: bytes
    roots: bytes

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(self.key, self.chain)], root_certificates=self.roots)


def server_credentials(files: Files, copies: Files, strict: bool = False) -> tuple[grpc.ServerCredentials, str]:
    """Credentials that demand a client certificate of the root, and follow `files` as they change.

    `copies`, made when the server started, are used as long as `files` are bad or are not this user's to read.
    In that case there is a line that says so, to be shown once the server listens. `strict`: what the server is started
    with must be good. Raises TelehandlerError.
    """
    if strict:
        _check(_pieces(copies, files), files)
    certificates = _Certificates(files, copies)
    credentials = grpc.dynamic_ssl_server_credentials(
        certificates.pieces.configuration(),
        certificates.fetch,  # type: ignore[arg-type]  # the stub forgets that None is allowed
        require_client_authentication=True,
    )
    return credentials, certificates.told


class _Certificates:
    """What new connections get; those that are there keep what they have."""

    def __init__(self, files: Files, copies: Files) -> None:
        self._files = files
        self._lock = threading.Lock()  # grpc asks from threads of its own
        self._state: list[tuple[int, ...]] = []
        self._good = False  # what is not is read again each time: it may be half written
        self.told = ""  # why the files are not in use
        self.pieces = self._new() or _pieces(copies)

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Before each handshake: what is new, None when nothing is."""
        with self._lock:
            told = self.told
            pieces = self._new()
            if self.told not in ("", told):
                tell(self.told)
            if pieces is None or pieces == self.pieces:
                return None
            self.pieces = pieces
            tell("new connections get the new certificates")
            return pieces.configuration()

    def _new(self) -> _Pieces | None:
        """The files, if they have changed and are good; `told` says why they are not."""
        state = [_state(path) for path in self._files]  # before they are read: a change meanwhile is seen next time
        if self._good and state == self._state:
            return None
        self._state = state
        try:
            pieces = _pieces(self._files)
            _check(pieces, self._files)
        except TelehandlerError as error:
            self._good = False
            self.told = f"{error}; the server goes on with those it has"
            return None
        self._good, self.told = True, ""
        return pieces


def tell(text: str) -> None:
    """A line of the server's log."""
    print(f"telehandler: {text}", file=sys.stderr, flush=True)


def _state(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(path: str) -> bytes:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise TelehandlerError(f"{path} is no regular file")
            return file.read(_MAX_FILE_BYTES)
    except OSError as error:
        text = f"{path} cannot be read by the server's user: {error.strerror}"
        raise TelehandlerError(f"{text}; until it can, new certificates need a restart") from None


def _pieces(files: Files, names: Files | None = None) -> _Pieces:
    """What grpc can use, key and certificate one pair. Raises TelehandlerError, which names `names` if given."""
    pieces = _Pieces(*(_read(path) for path in files))
    files = names or files
    for pem, path in ((pieces.chain, files.cert), (pieces.roots, files.root)):
        try:
            whole = len(x509.load_pem_x509_certificates(pem)) == pem.count(b"-----BEGIN")
        except ValueError:
            whole = False
        if not whole:
            raise TelehandlerError(f"{path} is not a PEM certificate, or not all of it is there")
    try:
        key = load_pem_private_key(pieces.key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise TelehandlerError(f"{files.key} is not a PEM key without a password") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TelehandlerError("the server's key is not ECDSA P-256, which TLS 1.3 alone depends on: see `make certs`")
    if _leaf(pieces).public_key() != key.public_key():
        raise TelehandlerError(f"{files.cert} and {files.key} do not belong together")
    return pieces


def _check(pieces: _Pieces, files: Files) -> None:
    """Whether clients would take them. Raises TelehandlerError."""
    leaf, now = _leaf(pieces), datetime.datetime.now(datetime.UTC)
    if not leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc:
        times = f"from {leaf.not_valid_before_utc:%Y-%m-%d} to {leaf.not_valid_after_utc:%Y-%m-%d}"
        raise TelehandlerError(f"{files.cert} has expired or is not valid yet: it is good {times}; get a new one")
    try:
        usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    except ValueError:
        raise TelehandlerError(f"{files.cert} has malformed extensions") from None
    if ExtendedKeyUsageOID.SERVER_AUTH not in usages:
        raise TelehandlerError(f"{files.cert} is not for servers: its extended key usage lacks serverAuth")


def _leaf(pieces: _Pieces) -> x509.Certificate:
    return x509.load_pem_x509_certificates(pieces.chain)[0]
