"""Why a server cannot be reached: each cause is named, found out and never guessed, in one line."""

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.certificates import issue, make_certificates
from support.checkout import ROOT
from support.command_line import COMMAND
from support.servers import Server

import telehandler.client.diagnosis as diagnosis


def _client(address: str, pair: Path, root: Path, *words: str) -> str:
    """What a client says that cannot reach a server: its one line."""
    files = ["-c", f"{pair}.pem", "-k", f"{pair}-key.pem", "-r", str(root)]
    command = [*COMMAND, "client", *(words or ("ls",))]
    command[5:5] = ["-s", address, *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)
    (line,) = done.stderr.decode().splitlines()
    assert (done.returncode, done.stdout) == (125, b"")
    assert line.startswith("telehandler: ")
    return line.removeprefix("telehandler: ")


@pytest.mark.parametrize("verb", [["ls"], ["run", "--", "true"], ["watch", "users/a/jobs/" + "0" * 36]])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"start": -30}, "your certificate {pair}.pem expired on ", id="expired"),
        pytest.param({"start": 2}, "your certificate {pair}.pem is not valid before ", id="not yet valid"),
        pytest.param(
            {"usage": ExtendedKeyUsageOID.SERVER_AUTH}, "your certificate {pair}.pem is not for clients", id="use"
        ),
        pytest.param({"signer": "self"}, "refused your certificate {pair}.pem, which is from CN=", id="another root"),
    ],
)
def test_our_own_certificate(
    server: Server, ssl: Path, tmp_path: Path, options: dict[str, object], words: str, verb: list[str]
) -> None:
    pair = issue(ssl, tmp_path / "own", "tele-tester", **options)  # type: ignore[arg-type]
    began = time.monotonic()
    line = _client(f"localhost:{server.port}", pair, ssl / "root.pem", *verb)
    assert words.format(pair=pair) in line
    assert time.monotonic() - began < 10  # and is not tried again and again


def test_the_servers_root_is_another(server: Server, ssl: Path, tmp_path: Path) -> None:
    make_certificates(tmp_path / "other")
    line = _client(f"localhost:{server.port}", ssl / "client", tmp_path / "other" / "root.pem")
    assert f"is not from this root (-r {tmp_path}/other/root.pem)" in line


class Tls:
    """Something with a certificate of our root that ends each handshake."""

    def __init__(self, ssl: Path, pair: Path) -> None:
        import ssl as tls

        self._context = tls.SSLContext(tls.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(f"{pair}.pem", f"{pair}-key.pem")
        self._context.set_alpn_protocols(["h2"])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
                plain.settimeout(10)
                with self._context.wrap_socket(plain, server_side=True) as wrapped:
                    wrapped.recv(1)
            except (OSError, ValueError):
                if self._listener.fileno() < 0:
                    return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def tls(ssl: Path) -> Iterator[Callable[[Path], Tls]]:
    made: list[Tls] = []

    def make(pair: Path) -> Tls:
        made.append(Tls(ssl, pair))
        return made[-1]

    yield make
    for server in made:
        server.close()


def _server_pair(ssl: Path, target: Path, start: int, usage: x509.ObjectIdentifier, *names: x509.GeneralName) -> Path:
    """A server's, of our root, for these names, good for five days from day `start`."""
    issue(ssl, target, "server", start=start, usage=usage)
    leaf = x509.load_pem_x509_certificate(target.with_name(f"{target.name}.pem").read_bytes())
    key = load_pem_private_key((ssl / "root-key.pem").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    builder = x509.CertificateBuilder(
        leaf.issuer,
        leaf.subject,
        leaf.public_key(),
        leaf.serial_number,
        leaf.not_valid_before_utc,
        leaf.not_valid_after_utc,
    )
    builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), False)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
    from cryptography.hazmat.primitives.serialization import Encoding

    target.with_name(f"{target.name}.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    return target


SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
HERE = x509.IPAddress(__import__("ipaddress").ip_address("127.0.0.1"))


@pytest.mark.parametrize(
    ("start", "usage", "name", "words"),
    [
        pytest.param(-30, SERVER, HERE, "the certificate of {address} has expired", id="expired"),
        pytest.param(3, SERVER, HERE, "the certificate of {address} is not valid yet", id="not yet valid"),
        pytest.param(-1, CLIENT, HERE, "the certificate of {address} is not for servers", id="use"),
        pytest.param(
            -1, SERVER, x509.DNSName("build.example"),
            "the certificate of {address} is not for 127.0.0.1 but for build.example", id="name",
        ),
        pytest.param(-1, SERVER, HERE, "{address} ended the TLS handshake and says nothing more", id="no grpc"),
    ],
)  # fmt: skip
def test_the_servers_certificate(
    ssl: Path, tmp_path: Path, tls: Callable[[Path], Tls], start: int, usage: x509.ObjectIdentifier,
    name: x509.GeneralName, words: str, request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    server = tls(_server_pair(ssl, tmp_path / "server", start, usage, name))
    if "no grpc" in request.node.name:  # grpc itself waits for twenty seconds: what it asks is asked here
        target = diagnosis.Target(server.address, f"{ssl}/client.pem", f"{ssl}/client-key.pem", f"{ssl}/root.pem")
        line = diagnosis.cause(target, "")
    else:
        line = _client(server.address, ssl / "client", ssl / "root.pem")
    assert words.format(address=server.address) in line


def test_a_host_that_is_not_known(ssl: Path) -> None:
    for verb in (["ls"], ["run", "--", "true"]):
        line = _client("no-such-host.invalid:6443", ssl / "client", ssl / "root.pem", *verb)
        assert line == "the host of no-such-host.invalid:6443 is not known: name another with -s"


def test_what_is_no_telehandler_server(ssl: Path) -> None:
    """One that says nothing, one that closes at once, one that speaks something else."""
    target = ssl / "client.pem", ssl / "client-key.pem", ssl / "root.pem"
    answers = {b"": "closed the connection before", b"220 smtp\r\n" * 9: "does not speak TLS", None: "says nothing"}
    for answer, words in answers.items():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = f"127.0.0.1:{listener.getsockname()[1]}"

            def serve(listener: socket.socket = listener, answer: bytes | None = answer) -> None:
                connection, _ = listener.accept()
                if answer is None:
                    time.sleep(diagnosis.PROBE_S + 1)  # silence
                else:
                    connection.sendall(answer)
                    connection.recv(1 << 16)
                connection.close()

            thread = threading.Thread(target=serve)
            thread.start()
            line = diagnosis.cause(diagnosis.Target(address, *map(str, target)), "")
            thread.join()
        assert words in line
        assert address in line


def test_a_silent_server_is_told_as_such(ssl: Path) -> None:
    """By the whole client, within the time of a handshake and of the look at it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        line = _client(f"127.0.0.1:{silent.getsockname()[1]}", ssl / "client", ssl / "root.pem")
    assert "accepts connections and says nothing" in line
