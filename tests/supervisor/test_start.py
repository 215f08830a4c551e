"""A server that starts says what it does, and one that cannot says why, once, with exit code 125."""

import datetime
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.certificates import issue
from support.cgroups import missing_controllers
from support.checkout import ROOT
from support.servers import Server, free_address
from support.wait import wait_until

from telehandler.common import errors


def _ends(server: Server, status: int = errors.EXIT_OURS, timeout_s: float = 30) -> str:
    """What it says until it has ended."""
    arguments = [*server.command, *server.server_arguments()]
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=timeout_s, check=False, **{"cwd": ROOT, **server.popen}
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert "listening" not in done.stderr
    return str(done.stderr)


@pytest.fixture
def own_ssl(place: Path, ssl: Path) -> Path:
    directory = Path(tempfile.mkdtemp(prefix="ssl-", dir=place))
    directory.chmod(0o755)
    shutil.copytree(ssl, directory, dirs_exist_ok=True)
    return directory


@pytest.mark.parametrize(
    ("start", "usage", "told"),
    [
        (-6, ExtendedKeyUsageOID.SERVER_AUTH, "has expired or is not valid yet"),
        (1, ExtendedKeyUsageOID.SERVER_AUTH, "has expired or is not valid yet"),
        (-1, ExtendedKeyUsageOID.CLIENT_AUTH, "is not for servers"),
    ],
    ids=["expired", "not-yet", "usage"],
)
@pytest.mark.parametrize("readable", [False, True], ids=["roots-alone", "readable"])
def test_a_certificate_that_no_client_would_take_is_an_error(
    as_root: None, place: Path, own_ssl: Path, policy: Path, start: float, usage: object, told: str, readable: bool
) -> None:
    issue(own_ssl, own_ssl / "server", "localhost", usage=usage, start=start)  # type: ignore[arg-type]
    (own_ssl / "server-key.pem").chmod(0o644 if readable else 0o600)
    said = _ends(Server(place, own_ssl, policy))
    assert f"telehandler: {own_ssl}/server.pem {told}" in said
    assert said.count("server.pem") == 1


def test_an_api_that_starts_anew_goes_on_with_a_certificate_that_has_expired(
    make_server: Callable[..., Server], place: Path, own_ssl: Path
) -> None:
    """An end of the server would be the end of its jobs."""
    start = 5.0 / 86400 - 5  # of a certificate that is good for five more seconds
    issue(own_ssl, own_ssl / "server", "localhost", usage=ExtendedKeyUsageOID.SERVER_AUTH, start=start)
    server = make_server(ssl=own_ssl, listen=free_address())
    name = server.detach("sleep", "1000")
    end = datetime.datetime.now() + datetime.timedelta(seconds=6)
    wait_until("the certificate has expired", lambda: datetime.datetime.now() > end)
    api = server.children()["api"]
    os.kill(api, 9)
    wait_until("another api serves", lambda: server.log_text().count("listening on") == 2)
    assert server.process is not None
    assert server.process.poll() is None
    assert name
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("", "[::]:{} (every address)"),
        ("[::]", "[::]:{} (every address)"),
        ("0.0.0.0", "0.0.0.0:{} (every IPv4 address)"),
    ],
)
def test_it_says_where_it_listens(make_server: Callable[..., Server], host: str, shown: str) -> None:
    server = make_server(listen=f"{host}:0")
    assert f"telehandler: listening on {shown.format(server.port)}\n" in server.log_text()
    assert server.stop() == 0


@pytest.mark.parametrize("listen", ["\udcff:0", "localhost:x", "no.such.host.invalid:0", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_one_error(place: Path, ssl: Path, policy: Path, as_root: None, listen: str) -> None:
    said = _ends(Server(place, ssl, policy, listen=listen))
    assert said.count("cannot listen on") == 1


@pytest.fixture
def unreadable(as_root: None) -> Iterator[Path]:
    """A directory that only root may enter."""
    with tempfile.TemporaryDirectory(prefix="telehandler-test-", dir="/var/tmp") as name:
        yield Path(name)


def test_a_python_that_its_user_cannot_execute_is_one_error(
    unreadable: Path, place: Path, ssl: Path, policy: Path
) -> None:
    python = unreadable / "python3"
    shutil.copy("/usr/bin/python3", python)
    path = f"{ROOT}:{next(path for path in sys.path if path.endswith('site-packages'))}"
    server = Server(
        place, ssl, policy, command=[str(python), "-m", "telehandler"], env=os.environ | {"PYTHONPATH": path}
    )
    said = _ends(server)
    assert said.count("the api cannot be started") == 1
    assert "must be able to execute this Python" in said


def test_code_that_its_user_cannot_read_is_one_error(unreadable: Path, place: Path, ssl: Path, policy: Path) -> None:
    site = unreadable / "site"
    shutil.copytree(ROOT / "telehandler", site / "telehandler")
    shutil.copytree(ROOT / "helper", site / "helper")
    (site / "telehandler" / "api").chmod(0o700)
    path = f"{site}:{next(path for path in sys.path if path.endswith('site-packages'))}"
    environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    said = _ends(Server(place, ssl, policy, env=environment, cwd="/"))
    assert said.count("the server's user cannot load the api's code") == 1


def test_limits_that_are_not_in_force_are_told_once(make_server: Callable[..., Server]) -> None:
    server = make_server(listen=free_address())
    told = f"limits that the controllers {', '.join(missing_controllers())} would enforce are not in force"
    expected = 1 if missing_controllers() else 0
    assert server.log_text().count(told) == expected
    os.kill(server.children()["api"], 9)
    wait_until("another api serves", lambda: server.log_text().count("listening on") == 2)
    assert server.log_text().count("would enforce are not in force") == expected
    assert server.stop() == 0
