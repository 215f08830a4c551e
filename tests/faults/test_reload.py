"""R19: SIGHUP starts a new api, with new certificates when they are good; no job stops."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support import sudo_user
from support.checkout import ROOT
from support.library_client import client_of
from support.processes import alive
from support.servers import Server, free_address
from support.wait import wait_until


def watch(server: Server, name: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        server.client_command("watch", name), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def works(server: Server) -> bool:
    return server.client("run", "--", "true").returncode == 0


def told(server: Server, text: str, times: int = 1) -> bool:
    return log(server).count(text) == times


def another_api(server: Server, before: int) -> None:
    """Waits for it to answer, and for the one before to have ended."""
    wait_until("another api is there", lambda: server.children().get("api", before) != before and not alive(before))
    wait_until("it answers", lambda: server.client("ls").returncode == 0)


def log(server: Server) -> str:
    return server.log.read_text()


@pytest.fixture
def fresh(make_server: Callable[..., Server]) -> Callable[..., Server]:
    def make(*options: str, **more: Any) -> Server:
        return make_server(listen=free_address(), options=options, **more)

    return make


# SIGUSR2 has it write a line, SIGUSR1 end.
WAITS = "trap 'echo still' USR2; trap 'echo end; exit 5' USR1; echo up; while :; do sleep 0.05; done"


def signal_job(server: Server, name: str, number: int) -> None:
    client = client_of(server)
    client.signal(name, number)
    client.close()


def test_r19_sighup_upgrades_and_no_job_stops(fresh: Callable[..., Server]) -> None:
    server = fresh()
    assert server.process is not None
    name = server.detach("bash", "-c", WAITS)
    watcher = watch(server, name)
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == b"up\n"
    before = server.children()
    for _ in range(2):
        api = server.children()["api"]
        server.process.send_signal(signal.SIGHUP)
        another_api(server, api)
    assert server.children()["helper"] == before["helper"]
    signal_job(server, name, signal.SIGUSR1)
    output, errors = watcher.communicate(timeout=30)
    assert (watcher.returncode, output) == (5, b"end\n"), errors
    assert "died" not in log(server)
    assert "Traceback" not in log(server)
    assert works(server)


def serial(server: Server) -> str:
    """Of the certificate that the server shows."""
    import socket
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(server.ssl / "root.pem")
    context.load_cert_chain(server.ssl / "client.pem", server.ssl / "client-key.pem")
    plain = socket.create_connection(("127.0.0.1", server.port), 10)
    with context.wrap_socket(plain, server_hostname="localhost") as tls:
        return str((tls.getpeercert() or {})["serialNumber"])


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
    subprocess.run([sys.executable, "-m", "telehandler.certs", str(directory)], cwd=ROOT, check=True)


def test_r19_sighup_with_a_bad_certificate_keeps_the_api(place: Path, ssl: Path, as_root: None) -> None:
    with sudo_user.installed(place, "install-sudoers") as options:
        server = Server(place, options.pop("ssl"), None, listen=free_address(), **options)
        server.start()
        try:
            _rotate(server, server.ssl / "server.pem", options["user"])
        finally:
            server.stop()


def _rotate(server: Server, certificate: Path, uid: int) -> None:
    assert server.process is not None
    api, shown = server.children()["api"], serial(server)
    good, key = certificate.read_bytes(), server.ssl / "server-key.pem"
    for number, bad in enumerate((b"", good[:300], (server.ssl / "bubba.pem").read_bytes())):
        certificate.write_bytes(bad)
        server.process.send_signal(signal.SIGHUP)
        wait_until("it is told", partial(told, server, "the api before goes on", number + 1))
    certificate.write_bytes(good)
    # A pair that belongs together and that the api refuses.
    spoilt = key.read_bytes()
    make_rsa(certificate, key)
    server.process.send_signal(signal.SIGHUP)
    wait_until("it is told", lambda: "the new api cannot start" in log(server))
    assert "not ECDSA P-256" in log(server)
    assert (server.children()["api"], serial(server)) == (api, shown)
    assert works(server)
    certificate.write_bytes(good)
    key.write_bytes(spoilt)
    new_pair(server.ssl)
    os.chown(key, uid, uid)
    server.process.send_signal(signal.SIGHUP)
    another_api(server, api)
    assert serial(server) != shown
    assert "Traceback" not in log(server)


def make_rsa(certificate: Path, key: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)


def test_r19_sighup_without_root_goes_on_with_the_copy(fresh: Callable[..., Server], own_ssl: Path) -> None:
    server = fresh()
    server.stop()
    server = Server(server.home.parent, own_ssl, server.policy, listen=free_address())
    server.start()
    try:
        assert server.process is not None
        api, shown = server.children()["api"], serial(server)
        new_pair(own_ssl)
        server.process.send_signal(signal.SIGHUP)
        another_api(server, api)
        assert serial(server) == shown
        assert log(server).count("without root the certificate and its key cannot be read anew") == 1
    finally:
        server.stop()
