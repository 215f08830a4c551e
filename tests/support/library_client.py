"""The client library, connected to a server of a test."""

import hashlib
import threading

from support.servers import Server
from telehandler.client.connection import Client, End
from telehandler.output.log import Stream
from telehandler.pb import telehandler_pb2 as pb


def client_of(server: Server) -> Client:
    """The client's own code, as a library."""
    files = [str(server.ssl / name) for name in ("client.pem", "client-key.pem", "root.pem")]
    return Client(f"localhost:{server.port}", files[0], files[1], files[2])


def signal_job(server: Server, name: str, number: int) -> None:
    """Sends a signal to a job."""
    client = client_of(server)
    client.signal(name, number)
    client.close()


class Watcher(threading.Thread):
    """Watches a job to its end as `client watch` does, in a thread; connected once it is made.

    `notes` is what it would have said; `error` is of what ended it before, a byte that is missing among it.
    """

    def __init__(self, server: Server, name: str) -> None:
        super().__init__(daemon=True)
        self._client = client_of(server)
        self._request = pb.WatchJobOutputRequest(name=name)
        self.hashes = {stream: hashlib.sha256() for stream in Stream}
        self.notes: list[str] = []
        self.ends: list[End] = []
        self.bytes = 0
        self.error = ""
        self.start()

    def run(self) -> None:
        try:
            for output in self._client.watch(self._request, True, self.ends, self.notes.append):
                assert not output.gap_bytes
                assert output.offset == self.bytes
                self.hashes[Stream(output.stream)].update(output.data)
                self.bytes += len(output.data)
        except Exception as error:
            self.error = repr(error)
        self._client.close()
