"""R19: SIGHUP starts a new api, with new certificates when they are good; no job stops."""

import os
import shutil
import signal
import socket
import ssl as tls
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from support import sudo_user
from support.certificates import make_certificates
from support.job_scripts import UNTIL_SIGUSR1
from support.library_client import signal_job
from support.processes import alive
from support.servers import Server, free_address
from support.wait import wait_until


def has_logged(server: Server, text: str, times: int = 1) -> bool:
    return server.log_text().count(text) == times


def wait_for_another_api(server: Server, before: int) -> None:
    """Waits for it to answer, and for the one before to have ended."""
    wait_until("another api is there", lambda: server.children().get("api", before) != before and not alive(before))
    wait_until("it answers", lambda: server.client("ls").returncode == 0)


def test_r19_sighup_upgrades_and_no_job_stops(make_server: Callable[..., Server]) -> None:
    server = make_server(listen=free_address())
    assert server.process is not None
    name = server.detach("bash", "-c", UNTIL_SIGUSR1)
    watcher = server.start_watcher(name)
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == b"up\n"
    before = server.children()
    for _ in range(2):
        api = server.children()["api"]
        server.process.send_signal(signal.SIGHUP)
        wait_for_another_api(server, api)
    assert server.children()["helper"] == before["helper"]
    signal_job(server, name, signal.SIGUSR1)
    output, errors = watcher.communicate(timeout=30)
    assert (watcher.returncode, output) == (5, b"end\n"), errors
    assert "died" not in server.log_text()
    assert "Traceback" not in server.log_text()
    assert server.runs_jobs()


def served_serial(server: Server) -> str:
    """The serial number of the certificate that the server shows."""
    context = tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(server.ssl / "root.pem")
    context.load_cert_chain(server.ssl / "client.pem", server.ssl / "client-key.pem")
    plain = socket.create_connection(("127.0.0.1", server.port), 10)
    with context.wrap_socket(plain, server_hostname="localhost") as connection:
        return str((connection.getpeercert() or {})["serialNumber"])


@pytest.fixture
def own_ssl(place: Path, ssl: Path) -> Path:
    """A set of certificates to spoil."""
    directory = Path(tempfile.mkdtemp(prefix="ssl-", dir=place))
    directory.chmod(0o755)
    shutil.copytree(ssl, directory, dirs_exist_ok=True)
    return directory


def new_pair(directory: Path) -> None:
    """Another certificate of the server's, of the same root."""
    for name in ("server.pem", "server-key.pem"):
        (directory / name).unlink()
    make_certificates(directory)


def test_r19_sighup_with_a_bad_certificate_keeps_the_api(place: Path, ssl: Path, as_root: None) -> None:
    with (
        sudo_user.installed(place, "install-sudoers") as options,
        Server(place, options.pop("ssl"), None, listen=free_address(), **options) as server,
    ):
        _rotate(server, server.ssl / "server.pem", options["user"])


def _rotate(server: Server, certificate: Path, uid: int) -> None:
    assert server.process is not None
    api, shown = server.children()["api"], served_serial(server)
    good, key = certificate.read_bytes(), server.ssl / "server-key.pem"
    for number, bad in enumerate((b"", good[:300], (server.ssl / "bubba.pem").read_bytes())):
        certificate.write_bytes(bad)
        server.process.send_signal(signal.SIGHUP)
        wait_until("it is has_logged", partial(has_logged, server, "the api before goes on", number + 1))
    certificate.write_bytes(good)
    # A pair that belongs together and that the api refuses.
    spoilt = key.read_bytes()
    make_rsa(certificate, key)
    server.process.send_signal(signal.SIGHUP)
    wait_until("it is has_logged", lambda: "the new api cannot start" in server.log_text())
    assert "not ECDSA P-256" in server.log_text()
    assert (server.children()["api"], served_serial(server)) == (api, shown)
    assert server.runs_jobs()
    certificate.write_bytes(good)
    key.write_bytes(spoilt)
    new_pair(server.ssl)
    os.chown(key, uid, uid)
    server.process.send_signal(signal.SIGHUP)
    wait_for_another_api(server, api)
    assert served_serial(server) != shown
    assert "Traceback" not in server.log_text()


def make_rsa(certificate: Path, key: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)


def test_r19_sighup_without_root_goes_on_with_the_copy(make_server: Callable[..., Server], own_ssl: Path) -> None:
    server = make_server(listen=free_address())
    server.stop()
    with Server(server.home.parent, own_ssl, server.policy, listen=free_address()) as server:
        assert server.process is not None
        api, shown = server.children()["api"], served_serial(server)
        new_pair(own_ssl)
        server.process.send_signal(signal.SIGHUP)
        wait_for_another_api(server, api)
        assert served_serial(server) == shown
        assert server.log_text().count("without root the certificate and its key cannot be read anew") == 1
