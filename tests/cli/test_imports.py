"""What a verb of the client does not need is not loaded: it would be most of the time that it takes."""

import os
import subprocess
import sys

import pytest
from support.checkout import ROOT
from support.servers import Server
from support.wait import DEADLINE_S

SLOW = ("asyncio.events", "grpc.aio._channel", "google.protobuf.text_format", "cryptography", "sqlite3")


def _loaded(server: Server, verb: str, *words: str) -> set[str]:
    _, *flags = server.client_command(verb, *words)
    command = [sys.executable, "-X", "importtime", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


@pytest.mark.parametrize("verb", ["run", "run -d", "ls", "status", "stop", "wait", "watch", "rm"])
def test_verbs_load_nothing_slow(server: Server, verb: str) -> None:
    name = server.detach("true")
    server.client("wait", name)
    words = ["--", "true"] if verb.startswith("run") else [] if verb == "ls" else [name]
    loaded = _loaded(server, *verb.split(), *words)
    assert "grpc._channel" in loaded
    assert not loaded & set(SLOW)


@pytest.mark.parametrize("length", [36, 8])
def test_nor_do_they_for_a_uuid(server: Server, length: int) -> None:
    name = server.detach("true")
    uuid = name.rpartition("/")[2]
    assert not _loaded(server, "status", uuid[:length]) & set(SLOW)


def test_what_is_lazy_works_when_it_is_used() -> None:
    """As in a program of a user's own that imports the command line."""
    program = """if 1:
    import telehandler.cli
    from telehandler.client.connection import Client
    import sys
    assert "asyncio.events" not in sys.modules
    assert "grpc.aio._channel" not in sys.modules
    import asyncio, grpc.aio
    async def main():
        await asyncio.sleep(0)
        assert isinstance(grpc.aio.insecure_channel("localhost:1"), grpc.aio.Channel)
    asyncio.run(main())
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], env=env, timeout=DEADLINE_S, check=True)
