"""Reads certificates and keys, and refuses what grpc would abort the process for."""

import ssl

from telehandler.common.errors import TelehandlerError

_COMMON_NAME = bytes.fromhex("550403")  # 2.5.4.3, as DER has it
_ENCODINGS = {0x14: "latin-1", 0x1C: "utf-32-be", 0x1E: "utf-16-be"}  # of TeletexString and its kin; else UTF-8
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


def common_name(cert: str) -> str:
    """Of the subject of a certificate (RFC 5280, 4.1), in a tenth of the time that cryptography takes to be imported.

    Raises TelehandlerError.
    """
    try:
        text = _read(cert, "certificate").decode("ascii", "replace")
        pem = text[text.index(ssl.PEM_HEADER) : text.index(ssl.PEM_FOOTER) + len(ssl.PEM_FOOTER)]
        (_, certificate), *_ = _values(ssl.PEM_cert_to_DER_cert(pem))
        (_, body), *_ = _values(certificate)
        fields = [(tag, content) for tag, content in _values(body) if tag != 0xA0]  # but for the version
        for _, names in _values(fields[4][1]):  # behind serial, algorithm, issuer and validity
            for _, name in _values(names):
                (_, kind), (tag, value) = _values(name)
                if kind == _COMMON_NAME:
                    return value.decode(_ENCODINGS.get(tag, "utf-8"))
    except (ValueError, IndexError):
        pass
    raise TelehandlerError(f"{cert} is no certificate with a common name: give the job's whole name")


def _values(der: bytes) -> list[tuple[int, bytes]]:
    """The tag and the content of each value (X.690, 8.1). Raises IndexError where it is cut short."""
    found, at = [], 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            count = length & 0x7F
            length, at = int.from_bytes(der[at : at + count], "big"), at + count
        found.append((tag, der[at : at + length]))
        at += length
    return found


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
