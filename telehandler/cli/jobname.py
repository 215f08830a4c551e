"""The job that a verb is about: by argument, else by the jidfile."""

from typing import TYPE_CHECKING

from telehandler.errors import TelehandlerError

if TYPE_CHECKING:
    from telehandler.client import Client

_MAX_NAME = 1024


def find(job: str | None, jidfile: str, certificate: str) -> str:
    """A job's whole name; a bare UUID is a job of the certificate's own user. Raises TelehandlerError."""
    if job is None:
        try:
            with open(jidfile, encoding="utf-8") as file:
                job = file.read(_MAX_NAME).strip()
        except (OSError, UnicodeDecodeError) as error:
            text = getattr(error, "strerror", None) or "it is not text"
            raise TelehandlerError(f"no JOB is given, and {jidfile} cannot be read: {text}") from None
    return job if "/" in job else f"users/{_common_name(certificate)}/jobs/{job}"


def _common_name(certificate: str) -> str:
    from cryptography import x509  # slow to import: only for a bare UUID
    from cryptography.x509.oid import NameOID

    try:
        with open(certificate, "rb") as file:
            subject = x509.load_pem_x509_certificate(file.read()).subject
        return str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    except (OSError, ValueError, IndexError):
        raise TelehandlerError(
            f"{certificate} is no certificate with a common name: give the job's whole name"
        ) from None


def connect(settings: dict[str, str]) -> "Client":
    from telehandler.client import Client

    return Client(settings["server"], settings["cert"], settings["key"], settings["root"])
