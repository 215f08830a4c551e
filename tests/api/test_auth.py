"""Who a certificate names, as the api itself reads it: TLS before it would refuse most of these, and might not once."""

import datetime
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.certificates import issue

from telehandler.api.auth import AuthError, Caller, caller_of, check_name

ADMINS = frozenset({"admin"})
A_SECOND = 1 / datetime.timedelta(days=1).total_seconds()


def _pem(ssl: Path, tmp_path: Path, *names: str, **options: object) -> bytes:
    return issue(ssl, tmp_path / "one", *names, **options).with_suffix(".pem").read_bytes()  # type: ignore[arg-type]


def _refused(pem: bytes, words: str) -> None:
    with pytest.raises(AuthError, match=words):
        caller_of(pem, ADMINS)


def test_s36_a_good_certificate_names_its_user(ssl: Path, tmp_path: Path) -> None:
    assert caller_of(_pem(ssl, tmp_path, "mallory"), ADMINS) == Caller("mallory", False)
    assert caller_of(_pem(ssl, tmp_path, "admin"), ADMINS) == Caller("admin", True)


@pytest.mark.parametrize("usage", [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CODE_SIGNING])
def test_s36_a_certificate_for_another_use_is_no_clients(ssl: Path, tmp_path: Path, usage: object) -> None:
    """OpenSSL refuses it at the handshake; the api does not depend on that."""
    _refused(_pem(ssl, tmp_path, "mallory", usage=usage), "lacks clientAuth")


def test_s36_a_certificate_without_a_use_is_no_clients(ssl: Path, tmp_path: Path) -> None:
    _refused(_pem(ssl, tmp_path, "mallory", usage=None), "malformed or has no extended key usage")


def test_s36_what_is_no_certificate_names_nobody() -> None:
    _refused(b"", "malformed")
    _refused(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "malformed")


@pytest.mark.parametrize(("days", "good"), [(-5 + 60 * A_SECOND, True), (-5 - A_SECOND, False), (-30, False)])
def test_s36_a_certificate_that_has_ended_names_nobody(ssl: Path, tmp_path: Path, days: float, good: bool) -> None:
    pem = _pem(ssl, tmp_path, "mallory", start=days)
    if good:
        assert caller_of(pem, ADMINS).name == "mallory"
    else:
        _refused(pem, "has expired since")


@pytest.mark.parametrize("names", [[], ["one", "two"], ["one", "one"]], ids=lambda names: " ".join(names) or "none")
def test_s36_a_certificate_has_one_name(ssl: Path, tmp_path: Path, names: list[str]) -> None:
    _refused(_pem(ssl, tmp_path, *names), f"has {len(names)} common names")


@pytest.mark.parametrize("name", ["a", "x" * 64, "é" * 32, "a.b", "a b", "-", "*"])
def test_s36_a_name_that_is_safe_is_taken_as_it_is(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "x" * 65, "é" * 32 + "x"])
def test_s36_a_name_has_1_to_64_bytes(name: str) -> None:
    with pytest.raises(AuthError, match="1 to 64 bytes"):
        check_name(name)


@pytest.mark.parametrize("name", ["a/b", "/", "..", "a..b", "a\0", "a\n", "\x1b[31m", "a\x9b", "a\u202eb", "a\u200bb"])
def test_s36_a_name_that_would_not_be_safe_is_refused(name: str) -> None:
    with pytest.raises(AuthError, match=r"without '/', '\.\.' and control characters"):
        check_name(name)


def test_s37_only_the_owner_and_an_admin_may_see() -> None:
    bob, admin = Caller("bob", False), Caller("boss", True)
    assert [bob.may_see(owner) for owner in ("bob", "bobby", "bo", "Bob", "")] == [True, False, False, False, False]
    assert admin.may_see("bob")
