"""Reads certificates and keys, and refuses what grpc would abort the process for."""

import ssl

from telehandler.common.errors import TelehandlerError

_REMEDY = "`make certs` makes a set under ssl/; -c, -k and -r name others"


def read_pair(cert: str, key: str, root: str) -> tuple[bytes, bytes, bytes]:
    """The bytes of certificate, key and root certificate, which belong together. Raises TelehandlerError."""
    pieces = _read(cert, "certificate"), _read(key, "key"), _read(root, "root certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=pieces[2].decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise TelehandlerError(f"the root certificate {root} is not a PEM certificate; {_REMEDY}") from None
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except (ssl.SSLError, ValueError, OSError):
        raise TelehandlerError(
            f"the certificate {cert} and the key {key} are not a PEM pair that belongs together, without a "
            f"password; {_REMEDY}"
        ) from None
    return pieces


def _no_password() -> bytes:
    """Instead of asking on the terminal."""
    return b""


def _read(path: str, what: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:  # a name with a NUL byte is a ValueError
        text = getattr(error, "strerror", None) or error
        raise TelehandlerError(f"the {what} {path} cannot be read: {text}; {_REMEDY}") from None
