"""Every call has a bound, also one that hangs for a reason that nobody foresaw."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from support.raw_client import SERVICE, RawClient, Response
from support.servers import Server

from telehandler.api import tls
from telehandler.api.service import Service
from telehandler.common import bounds
from telehandler.jobs.manager import Jobs
from telehandler.pb import telehandler_pb2 as pb


def test_a_call_that_hangs_is_answered_when_its_time_is_up(ssl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(bounds, "HANDLING_TIMEOUT_S", 0.1)
    monkeypatch.setattr(Service, "start_job", hang)

    def ask(port: int) -> list[Response]:
        with RawClient(cast("Server", SimpleNamespace(port=port, ssl=ssl)), ssl / "client") as caller:
            return [caller.call(f"/{SERVICE}/StartJob", pb.StartJobRequest()) for _ in range(2)]

    async def run() -> list[Response]:
        # One call of a user at a time: the second would be refused if the first one still counted.
        service = Service(cast("Jobs", None), frozenset(), max_calls=1)
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(tuple(service.handlers()))
        files = tls.Files(*(str(ssl / name) for name in ("server.pem", "server-key.pem", "root.pem")))
        port = server.add_secure_port("localhost:0", tls.server_credentials(files, files)[0])
        await server.start()
        try:
            return await asyncio.to_thread(ask, port)
        finally:
            await server.stop(None)

    for answer in asyncio.run(run()):
        assert answer.code is grpc.StatusCode.DEADLINE_EXCEEDED, answer
        assert "did not get it done in time" in answer.details
