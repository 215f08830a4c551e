"""R16: certificates are replaced under a running server: no restart, no stream dropped; bad ones change nothing."""

import os
import shutil
import signal
import socket
import ssl as tls
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from pwd import getpwnam

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.certificates import issue, make_certificates
from support.checkout import ROOT
from support.processes import alive
from support.raw_client import RawClient
from support.servers import Server, free_address
from support.wait import wait_until

OK, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE
USER = "nobody"
IN_USE = "telehandler: new connections get the new certificates"
# Counts until it is stopped.
COUNT = (
    "trap 'echo end; exit 7' TERM; mkfifo /tmp/f; exec 3<>/tmp/f; while :; do echo $((i += 1)); read -t 0.01 -u 3; done"
)


def authority(place: Path) -> Path:
    """A certificate authority of its own, with its pairs."""
    directory = Path(tempfile.mkdtemp(prefix="ca-", dir=place))
    directory.chmod(0o755)
    make_certificates(directory)
    return directory


def put(path: Path, data: bytes) -> None:
    """As one replaces a file that is in use: whole, by rename, and the server's user may read it."""
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(data)
    new.chmod(0o600 if "-key" in path.name else 0o644)
    os.chown(new, getpwnam(USER).pw_uid, -1)
    new.replace(path)


class RotatingServer:
    """A server whose files can be replaced; its clients trust those of `roots`."""

    def __init__(
        self, make_server: Callable[..., Server], place: Path, first: Path, roots: list[Path], owner: str = USER
    ) -> None:
        self.files = Path(tempfile.mkdtemp(prefix="rotating-", dir=place))
        self.files.chmod(0o755)
        self.put_pair(first)
        self.put_roots(first)
        if owner != USER:
            os.chown(self.files / "server-key.pem", getpwnam(owner).pw_uid, -1)
        self.server = make_server(ssl=self.files, options=("--user", USER), listen=free_address())
        self.server.ssl = Path(tempfile.mkdtemp(dir=place))
        (self.server.ssl / "root.pem").write_bytes(b"".join((source / "root.pem").read_bytes() for source in roots))
        self.as_user_of(first)
        self.lines_seen = len(self.lines())

    def as_user_of(self, source: Path) -> None:
        """The client's pair from then on."""
        for name in ("client.pem", "client-key.pem"):
            shutil.copy(source / name, self.server.ssl)

    def put_pair(self, source: Path, name: str = "server") -> None:
        put(self.files / "server.pem", (source / f"{name}.pem").read_bytes())
        put(self.files / "server-key.pem", (source / f"{name}-key.pem").read_bytes())

    def put_roots(self, *sources: Path) -> None:
        put(self.files / "root.pem", b"".join((source / "root.pem").read_bytes() for source in sources))

    def lines(self) -> list[str]:
        return self.server.log_text().splitlines()

    def new_lines(self) -> list[str]:
        """What the server's log has got since the last time."""
        lines = self.lines()[self.lines_seen :]
        self.lines_seen += len(lines)
        return lines

    def served(self) -> str:
        """The certificate that a new connection gets."""
        return tls.get_server_certificate(("127.0.0.1", self.server.port), timeout=10)

    def serves(self, source: Path) -> bool:
        return self.served().strip() == (source / "server.pem").read_text().strip()

    def code(self, pair: Path) -> grpc.StatusCode:
        """Of a call on a new connection, of a user who is let in."""
        with RawClient(self.server, pair) as caller:
            code = caller.call_method("ListJobs", "tele-tester").code
        assert isinstance(code, grpc.StatusCode)
        return code


@pytest.fixture(scope="module")
def first(place: Path) -> Path:
    return authority(place)


@pytest.fixture(scope="module")
def second(place: Path) -> Path:
    return authority(place)


@pytest.fixture(scope="module")
def rotating(make_server: Callable[..., Server], place: Path, first: Path, second: Path) -> RotatingServer:
    """For tests that leave the files of `first` behind."""
    return RotatingServer(make_server, place, first, [first, second])


def test_r16_a_roll_over_to_another_authority_while_a_watcher_streams(
    make_server: Callable[..., Server], place: Path, first: Path, second: Path
) -> None:
    rotating = RotatingServer(make_server, place, first, [first, second])
    server = rotating.server
    pids = server.children()
    name = server.detach("bash", "-c", COUNT)
    command = server.client_command("watch", "--raw", name)
    with subprocess.Popen(command, 0, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watcher:
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == b"1\n"
        assert rotating.serves(first)
        assert rotating.code(second / "client") is UNAVAILABLE

        rotating.put_roots(first, second)
        assert rotating.code(second / "client") is OK
        assert rotating.code(first / "client") is OK
        assert rotating.new_lines() == [IN_USE]

        put(rotating.files / "server.pem", (second / "server.pem").read_bytes())
        assert rotating.serves(first)  # the key is not there yet
        assert [
            line.endswith("do not belong together; the server goes on with those it has")
            for line in rotating.new_lines()
        ] == [True]
        put(rotating.files / "server-key.pem", (second / "server-key.pem").read_bytes())
        assert rotating.serves(second)
        assert [rotating.code(authority / "client") for authority in (first, second)] == [OK, OK]
        assert rotating.new_lines() == [IN_USE]

        with RawClient(server, first / "client") as there_before:
            assert there_before.status(name).code is OK
            rotating.put_roots(second)
            assert rotating.code(second / "client") is OK
            assert rotating.code(first / "client") is UNAVAILABLE
            assert there_before.status(name).code is OK  # a connection lives on with what it was made with
        assert rotating.new_lines() == [IN_USE]
        _check_tls_1_3_only(rotating, second)

        rotating.as_user_of(second)
        assert server.client("stop", name).returncode == 0
        output, errors = watcher.communicate(timeout=30)
    counted = output.splitlines()
    assert errors == b"telehandler: the job was stopped (exit code 7)\n"
    assert (watcher.returncode, counted[-1]) == (7, b"end")
    assert [int(line) for line in counted[:-1]] == list(range(2, len(counted) + 1))
    assert server.children() == pids


def _check_tls_1_3_only(rotating: RotatingServer, source: Path) -> None:
    context = tls.create_default_context(cafile=str(source / "root.pem"))
    context.load_cert_chain(source / "client.pem", source / "client-key.pem")
    address = ("127.0.0.1", rotating.server.port)
    with context.wrap_socket(socket.create_connection(address, 10), server_hostname="localhost") as secure:
        assert secure.version() == "TLSv1.3"
    context.maximum_version = tls.TLSVersion.TLSv1_2
    with socket.create_connection(address, 10) as plain, pytest.raises(tls.SSLError):
        context.wrap_socket(plain, server_hostname="localhost")


def _p384(source: Path, place: Path) -> None:
    """A good certificate of a curve with which TLS 1.2 could not be shut out."""
    issue(source, place / "server", "localhost", usage=ExtendedKeyUsageOID.SERVER_AUTH, curve=ec.SECP384R1())


BAD = {
    "half a certificate": "is not a PEM certificate, or not all of it is there",
    "half a key": "is not a PEM key without a password",
    "no certificate": "cannot be read by the server's user: No such file or directory",
    "no key to read": "cannot be read by the server's user: Permission denied",
    "a key of another": "do not belong together",
    "expired": "has expired or is not valid yet",
    "not yet valid": "has expired or is not valid yet",
    "for clients": "is not for servers: its extended key usage lacks serverAuth",
    "another curve": "the server's key is not ECDSA P-256",
    "no roots": "root.pem is not a PEM certificate",
    "half of two roots": "root.pem is not a PEM certificate, or not all of it is there",
    "a fifo": "is no regular file",
}


def _spoil(fault: str, rotating: RotatingServer, second: Path, place: Path) -> None:
    """The files of `second` take the place of those in use, with one fault."""
    cert, key, root = (rotating.files / name for name in ("server.pem", "server-key.pem", "root.pem"))
    made = Path(tempfile.mkdtemp(dir=place))
    server_auth = ExtendedKeyUsageOID.SERVER_AUTH
    rotating.put_pair(second)
    match fault:
        case "half a certificate":
            put(cert, cert.read_bytes()[:300])
        case "half a key":
            put(key, key.read_bytes()[:100])
        case "no certificate":
            cert.unlink()
        case "no key to read":
            os.chown(key, 0, 0)
        case "a key of another":
            put(key, (second / "bubba-key.pem").read_bytes())
        case "expired":
            rotating.put_pair(issue(second, made / "server", "localhost", usage=server_auth, start=-9).parent)
        case "not yet valid":
            rotating.put_pair(issue(second, made / "server", "localhost", usage=server_auth, start=9).parent)
        case "for clients":
            rotating.put_pair(second, "client")
        case "another curve":
            _p384(second, made)
            rotating.put_pair(made)
        case "no roots":
            put(root, b"")
        case "half of two roots":
            whole = (second / "root.pem").read_bytes()
            put(root, whole + whole[:200])
        case "a fifo":
            cert.unlink()
            os.mkfifo(cert)


@pytest.mark.parametrize("fault", BAD)
def test_r16_bad_files_keep_those_of_before_and_are_told_once(
    rotating: RotatingServer, place: Path, first: Path, second: Path, fault: str
) -> None:
    rotating.lines_seen = len(rotating.lines())
    _spoil(fault, rotating, second, place)
    for _ in range(3):
        assert rotating.serves(first)
        assert rotating.code(first / "client") is OK
    (line,) = rotating.new_lines()
    assert BAD[fault] in line
    rotating.put_roots(first, second)
    rotating.put_pair(second)
    assert rotating.serves(second)
    assert rotating.new_lines() == [IN_USE]
    rotating.put_pair(first)
    rotating.put_roots(first)
    assert rotating.serves(first)
    assert rotating.code(second / "client") is UNAVAILABLE


def test_r16_an_api_that_starts_anew_meets_bad_files(rotating: RotatingServer, first: Path, second: Path) -> None:
    """The copies that were made at the server's start serve until the files are good again; the jobs run on."""
    server = rotating.server
    name = server.detach("sleep", "1000")
    put(rotating.files / "server.pem", (second / "server.pem").read_bytes())
    rotating.lines_seen = len(rotating.lines())
    api = server.children()["api"]
    os.kill(api, signal.SIGKILL)
    wait_until("the api has ended", lambda: not alive(api))
    wait_until("a new one answers", lambda: rotating.code(first / "client") is OK)
    assert rotating.serves(first)
    assert "do not belong together; the server goes on with those it has" in "\n".join(rotating.new_lines())
    rotating.put_roots(first, second)
    put(rotating.files / "server-key.pem", (second / "server-key.pem").read_bytes())
    assert rotating.serves(second)
    rotating.put_pair(first)
    rotating.put_roots(first)
    assert server.client("rm", "-f", name).returncode == 0


def test_r16_a_key_that_is_roots_alone_is_told_at_the_start(
    make_server: Callable[..., Server], place: Path, first: Path, second: Path
) -> None:
    rotating = RotatingServer(make_server, place, first, [first, second], owner="root")
    key = rotating.files / "server-key.pem"
    (line,) = [line for line in rotating.lines() if "cannot be read" in line]
    assert line == (
        f"telehandler: {key} cannot be read by the server's user: Permission denied; until it can, new certificates "
        "need a restart; the server goes on with those it has"
    )
    rotating.put_roots(first, second)
    rotating.put_pair(second)
    os.chown(key, 0, 0)
    for _ in range(2):
        assert rotating.serves(first)
        assert rotating.code(second / "client") is UNAVAILABLE
    assert rotating.new_lines() == []
    os.chown(key, getpwnam(USER).pw_uid, -1)
    assert rotating.serves(second)
    assert rotating.new_lines() == [IN_USE]
