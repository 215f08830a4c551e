"""The soak's calls: asked again while there is no api, as a client does."""

import asyncio
from collections import Counter
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message
from support.servers import Server

CALL_S = 60.0  # for one answer, over all tries
AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)  # what a client tries again
_PATH = "/telehandler.v1.TelehandlerService/"
_PAIR = ("client-key.pem", "client.pem", "root.pem")


class CallFailed(Exception):
    """A call ended with a status that is no OK, and that a client does not try again."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        super().__init__(f"{error.code().name}: {error.details()}")
        self.code = error.code()


class Calls:
    """One connection for all; `done` counts operations."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.done: Counter[str] = Counter()
        self.open()

    def open(self) -> None:
        """A connection of its own."""
        key, chain, root = ((self.server.ssl / name).read_bytes() for name in _PAIR)
        credentials = grpc.ssl_channel_credentials(root, key, chain)
        options = (("grpc.max_reconnect_backoff_ms", 1000), ("grpc.use_local_subchannel_pool", 1))
        self._channel = grpc.aio.secure_channel(f"localhost:{self.server.port}", credentials, options)

    async def close(self) -> None:
        await self._channel.close()

    async def call(self, request: Message) -> bytes:
        """One answer, asked for again while the api is being started."""
        name = type(request).__name__.removesuffix("Request")
        async with asyncio.timeout(CALL_S):
            while True:
                try:
                    answer: bytes = await self.method(name)(request.SerializeToString())
                    return answer
                except grpc.aio.AioRpcError as error:
                    if error.code() not in AGAIN:
                        raise CallFailed(error) from None
                    self.done["calls again"] += 1
                    await asyncio.sleep(0.1)  # as long as it is not there

    def method(self, name: str, stream: bool = False) -> Any:
        kind: Any = self._channel.unary_stream if stream else self._channel.unary_unary
        return kind(_PATH + name)
