"""The soak's faults, by name: each is one thing that happens to a live server."""

import asyncio
import hashlib
import os
import random
import shutil
import signal
import ssl
import tempfile
import time
from collections import Counter
from pathlib import Path

from soak.load import Load
from support.certificates import make_certificates
from support.servers import Server

# helper: its jobs are LOST, and a new one must come. hup: an upgrade, jobs run on. certs: replaced in place.
NAMES = ("api", "hup", "helper", "certs")
DEFAULT = NAMES
PAUSE_S = (6.0, 30.0)  # between two faults
BACK_S = 30.0  # for a process to be there again, or a certificate to be in use


class Injector:
    """`done` counts faults by name."""

    def __init__(self, server: Server, load: Load, names: tuple[str, ...], rng: random.Random) -> None:
        self._server, self._load, self._names, self._rng = server, load, names, rng
        self.done: Counter[str] = Counter()

    async def run(self) -> None:
        """Until it is cancelled."""
        while self._names:
            await asyncio.sleep(self._rng.uniform(*PAUSE_S))
            name = self._rng.choice(self._names)
            self._load.faults += 1
            self.done[name] += 1
            try:
                await {"api": self._api, "hup": self._hup, "helper": self._helper, "certs": self._certs}[name]()
            except (AssertionError, OSError) as error:
                self._load.violations.append(f"after fault {name}: {error}")

    async def _api(self) -> None:
        await self._replaced("api", signal.SIGKILL)

    async def _hup(self) -> None:
        process = self._server.process
        assert process
        await self._replaced("api", signal.SIGHUP, process.pid)

    async def _helper(self) -> None:
        self._load.losses += 1
        await self._replaced("helper", signal.SIGKILL)

    async def _replaced(self, name: str, number: signal.Signals, pid: int = 0) -> None:
        """Sends a signal, to process `name` itself unless told, and waits until another one is there for it."""
        end = time.monotonic() + BACK_S
        while not (old := self._pid(name)):
            assert time.monotonic() < end, f"there is no {name}"
            await asyncio.sleep(0.1)
        os.kill(pid or old, number)
        while self._pid(name) in (None, old):
            assert self._server.process
            assert self._server.process.poll() is None, "the server has ended"
            assert time.monotonic() < end, f"no new {name} within {BACK_S} s"
            await asyncio.sleep(0.1)

    def _pid(self, name: str) -> int | None:
        try:
            return self._server.children().get(name)
        except OSError:  # a process ended as it was looked at
            return None

    async def _certs(self) -> None:
        """A new pair of the server's, from the same root, and new connections get it."""
        await asyncio.to_thread(_renew, self._server.ssl, self._server.state.stat().st_uid)
        wanted = _digest((self._server.ssl / "server.pem").read_text())
        end = time.monotonic() + BACK_S
        while await asyncio.to_thread(self._shown) != wanted:
            assert time.monotonic() < end, f"the new certificate is not in use after {BACK_S} s"
            await asyncio.sleep(0.5)

    def _shown(self) -> str:
        """The certificate that a new connection gets; empty while there is no api."""
        try:
            return _digest(ssl.get_server_certificate(("localhost", self._server.port), timeout=5))
        except OSError:
            return ""


def _digest(pem: str) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem[: pem.index("-----END") + 25])).hexdigest()


def _renew(directory: Path, owner: int) -> None:
    """A new pair, which the server's user may read. Each file is whole at every moment; the two may be no pair."""
    with tempfile.TemporaryDirectory(dir=directory.parent) as name:
        fresh = Path(name) / "ssl"
        shutil.copytree(directory, fresh)
        for file in ("server.pem", "server-key.pem"):
            (fresh / file).unlink()
        make_certificates(fresh)
        for file in ("server-key.pem", "server.pem"):
            os.chown(fresh / file, owner, -1)
            (fresh / file).rename(directory / file)
