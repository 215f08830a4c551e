"""The service looks at the version of TLS itself: no call is served over an older one, whatever let it in (S36)."""

import asyncio
import datetime
import socket
import ssl as tls
from collections.abc import Callable
from pathlib import Path
from typing import cast

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID
from support.certificates import DAY
from support.raw_client import SERVICE

from bench import http2
from telehandler.api.service import Service
from telehandler.jobs.manager import Jobs
from telehandler.pb import telehandler_pb2 as pb

CALL = http2.opening() + http2.request(
    f"/{SERVICE}/GetJobStatus", "localhost", pb.GetJobStatusRequest(name="no name").SerializeToString()
)


def _rsa_pair(ssl: Path) -> tuple[bytes, bytes]:
    """Key and certificate of a server with which TLS 1.2 would work: telehandler's own take no RSA."""
    root = x509.load_pem_x509_certificate((ssl / "root.pem").read_bytes())
    root_key = load_pem_private_key((ssl / "root-key.pem").read_bytes(), None)
    assert isinstance(root_key, ec.EllipticCurvePrivateKey)
    key, now = rsa.generate_private_key(65537, 2048), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    certificate = (
        x509.CertificateBuilder(root.subject, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(root_key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem, certificate.public_bytes(Encoding.PEM)


def _answer(ssl: Path, port: int, version: tls.TLSVersion) -> bytes:
    """What one call gets by that version of TLS: the frames, to the end of the call."""
    context = tls.create_default_context(cafile=str(ssl / "root.pem"))
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(ssl / "client.pem", ssl / "client-key.pem")
    reader, answer = http2.Http2(), b""
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as sock,
    ):
        assert sock.version() == version.name.replace("_", ".")
        sock.sendall(CALL)
        while not reader.ended:
            piece = sock.recv(1 << 16)
            assert piece, answer
            answer += piece
            sock.sendall(reader.feed(memoryview(piece)))
    return answer


def _served(ssl: Path, client: Callable[[int], bytes]) -> bytes:
    async def run() -> bytes:
        server = grpc.aio.server()
        service = Service(cast("Jobs", None), frozenset(), max_calls=1)
        server.add_generic_rpc_handlers(tuple(service.handlers()))
        credentials = grpc.ssl_server_credentials([_rsa_pair(ssl)], (ssl / "root.pem").read_bytes(), True)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        try:
            return await asyncio.to_thread(client, port)
        finally:
            await server.stop(None)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("version", "status", "words"),
    [
        (tls.TLSVersion.TLSv1_2, b"16", b"TLS 1.3 and a client certificate are needed"),
        (tls.TLSVersion.TLSv1_3, b"3", b"a job's name is users/"),  # the same call is looked at
    ],
    ids=["1.2", "1.3"],
)
def test_s36_no_call_is_served_over_an_older_tls(
    ssl: Path, version: tls.TLSVersion, status: bytes, words: bytes
) -> None:
    answer = _served(ssl, lambda port: _answer(ssl, port, version))
    # HPACK literals: grpc sends them without Huffman's code.
    assert b"grpc-status" + bytes([len(status)]) + status in answer
    assert words in answer
