"""Why a server cannot be reached: found out by a connection of one's own, because grpc's error does not say it.

A server that refuses a certificate under TLS 1.3 does so after the client's own handshake, and grpc's closes without
an alert. What is left then are facts of the certificate itself.
"""

import datetime
import socket
import ssl
from collections.abc import Callable
from typing import Any, NamedTuple

from telehandler.common.errors import ServerUnavailable

PROBE_S = 3.0  # for each step
_EXPIRED, _NOT_YET_VALID, _PURPOSE, _HOST, _ADDRESS = 10, 9, 26, 62, 64  # X509_V_ERR_...: openssl-verify(1)
_OTHER_ROOT = (7, 18, 19, 20, 21)


class Target(NamedTuple):
    """A server, HOST:PORT, and the files of who asks it."""

    server: str
    cert: str
    key: str
    root: str

    @property
    def host(self) -> str:
        return self.server.rpartition(":")[0].removeprefix("[").removesuffix("]")

    @property
    def port(self) -> int:
        return int(self.server.rpartition(":")[2])


class Unreachable(ServerUnavailable):
    """Never reached. Its cause is looked for when somebody wants to read it: a retry that succeeds needs none."""

    def __init__(self, find: Callable[[], str]) -> None:
        super().__init__()
        self._find, self._text = find, ""

    def __str__(self) -> str:
        self._text = self._text or self._find()
        return self._text


def cause(target: Target, said: str) -> str:
    """One line of cause and remedy. `said` is grpc's own text, for what cannot be found out."""
    server = target.server
    try:
        refused: str | None = None
        for _ in range(2):  # a server that is just ending looks like one that refuses us: once
            with socket.create_connection((target.host, target.port), PROBE_S) as plain:
                text, refused = _of_tls(target, plain, said)
            if refused is None:
                return text
        return _of_our_certificate(target, refused or "")
    except socket.gaierror:
        return f"the host of {server} is not known: name another with -s"
    except ConnectionRefusedError:
        return f"nothing listens on {server}: start `telehandler server`, or name another with -s"
    except TimeoutError:
        return f"the host of {server} does not answer: no connection within {PROBE_S:g} s"
    except (OSError, UnicodeError) as error:  # such as a network that cannot be reached, a name that is none
        return f"{server} cannot be reached: {getattr(error, 'strerror', None) or error}"


def _of_tls(target: Target, plain: socket.socket, said: str) -> tuple[str, str | None]:
    """What was seen; or with what words, if any, the server ended a connection once it had our certificate."""
    server = target.server
    try:
        tls = _context(target).wrap_socket(plain, server_hostname=target.host)
    except ssl.SSLCertVerificationError as error:
        return _of_their_certificate(target, error), None
    except TimeoutError:
        return f"{server} accepts connections and says nothing: is it a telehandler server, and does it run?", None
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError):
        return f"{server} closed the connection before the TLS handshake: its log says why", None
    except ssl.SSLError as error:
        return f"{server} does not speak TLS as a telehandler server does: {_reason(error)}", None
    with tls:
        try:
            if tls.recv(1):
                return f"{server} answers now, and did not before: try again ({said})", None
            return "", ""
        except TimeoutError:
            return f"{server} ended the TLS handshake and says nothing more: is it a telehandler server?", None
        except ssl.SSLError as error:
            return "", _reason(error)
        except ConnectionError:
            return "", ""


def _context(target: Target) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(target.root)
    context.load_cert_chain(target.cert, target.key)
    context.set_alpn_protocols(["h2"])
    return context


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")


def _of_their_certificate(target: Target, error: ssl.SSLCertVerificationError) -> str:
    whose = f"the certificate of {target.server}"
    if error.verify_code in (_HOST, _ADDRESS):
        return f"{whose} is not for {target.host}{_their_names(target)}: name the server so with -s"
    if error.verify_code == _EXPIRED:
        return f"{whose} has expired: the server needs a new one"
    if error.verify_code == _NOT_YET_VALID:
        return f"{whose} is not valid yet, by this machine's clock"
    if error.verify_code == _PURPOSE:
        return f"{whose} is not for servers: its extended key usage lacks serverAuth"
    if error.verify_code in _OTHER_ROOT:
        return f"{whose} is not from this root (-r {target.root}): use the root that the server's is from"
    return f"{whose} cannot be verified: {error.verify_message}"


def _their_names(target: Target) -> str:
    """The names that the server's certificate is for, after it has been verified without."""
    context = _context(target)
    context.check_hostname = False
    try:
        with socket.create_connection((target.host, target.port), PROBE_S) as plain, context.wrap_socket(plain) as tls:
            certificate: dict[str, Any] = dict(tls.getpeercert() or {})
            names = [str(value) for _, value in certificate.get("subjectAltName", ())]
    except OSError:
        names = []
    return f" but for {', '.join(names)}" if names else ""


def _of_our_certificate(target: Target, refused: str) -> str:
    """The server has ended its handshake with us, and taken no call: it did not like who we are."""
    from cryptography import x509  # slow to import
    from cryptography.x509.oid import ExtendedKeyUsageOID

    with open(target.cert, "rb") as file:
        certificate = x509.load_pem_x509_certificate(file.read())
    whose, now = f"your certificate {target.cert}", datetime.datetime.now(datetime.UTC)
    if certificate.not_valid_after_utc <= now:
        return f"{whose} expired on {_date(certificate.not_valid_after_utc)}: get a new one, or name another with -c"
    if certificate.not_valid_before_utc > now:
        return (
            f"{whose} is not valid before {_date(certificate.not_valid_before_utc)}: wait, or set this machine's clock"
        )
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (ValueError, x509.ExtensionNotFound):
        usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])  # any use: the server would say more
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usages:
        return f"{whose} is not for clients: its extended key usage lacks clientAuth; name another with -c"
    issuer = certificate.issuer.rfc4514_string()
    why = f" ({refused})" if refused else ""
    return f"{target.server} refused {whose}, which is from {issuer}: it takes those of another root{why}"


def _date(when: datetime.datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M} UTC"
