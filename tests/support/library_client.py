"""The client library, connected to a server of a test."""

from support.servers import Server
from telehandler.client.connection import Client


def client_of(server: Server) -> Client:
    """The client's own code, as a library."""
    files = [str(server.ssl / name) for name in ("client.pem", "client-key.pem", "root.pem")]
    return Client(f"localhost:{server.port}", files[0], files[1], files[2])


def signal_job(server: Server, name: str, number: int) -> None:
    """Sends a signal to a job."""
    client = client_of(server)
    client.signal(name, number)
    client.close()
