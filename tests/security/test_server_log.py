"""What strangers do to the port leaves no line of a library in the server's log (S33)."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import grpc
from support.certificates import issue
from support.raw_client import RawClient
from support.servers import Server


def test_s33_failed_handshakes_leave_no_line_of_grpcs(
    make_server: Callable[..., Server], ssl: Path, tmp_path: Path
) -> None:
    """Also where whoever started the server has not told grpc to be silent."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    server = make_server(env=environment)
    before = server.log_text()
    for data in (b"", b"\x16\x03\x01\x00\x05hello", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 4096):
        with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):
                pass
    for pair in (None, issue(ssl, tmp_path / "foreign", "mallory", signer="self")):
        with RawClient(server, pair) as client:
            assert client.call_method("ListJobs", "mallory").code is grpc.StatusCode.UNAVAILABLE
    assert server.runs_jobs()
    assert server.log_text() == before
    assert server.stop() == 0
