"""What every part stands on: a place, certificates, a server with wide bounds, jobs, processes and what they cost."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.checkout import ROOT
from support.policies import policy_text, write_policy
from support.process_usage import cpu_ticks
from support.servers import Server
from support.wait import wait_until

from telehandler.certs.authority import make_all
from telehandler.client.connection import Client
from telehandler.pb import telehandler_pb2 as pb

MIB, GIB = 1 << 20, 1 << 30
FLAGS = ("--max-connections", "10000", "--max-calls-per-user", "10000")
_TICKS = os.sysconf("SC_CLK_TCK")
_JOB_DEADLINE_S = 600.0
_started: "set[subprocess.Popen[str]]" = set()


class Ground:
    """One directory for a whole run. `server()` gives a fresh server, whose memory no part before has used."""

    def __init__(self, place: Path) -> None:
        self.place, self.ssl = place, place / "ssl"
        make_all(self.ssl)
        self.policy = write_policy(place, "policy", policy_text())

    @contextmanager
    def server(self, policy: Path | None = None, *flags: str) -> Iterator[Server]:
        server = Server(self.place, self.ssl, policy or self.policy, options=(*FLAGS, *flags), process_group=0)
        try:
            server.start()
            yield server
        finally:
            end(*_started)  # before the server: they have nothing to say about its end
            server.stop()

    def pair(self, name: str) -> dict[str, str]:
        return {
            "cert": str(self.ssl / f"{name}.pem"),
            "key": str(self.ssl / f"{name}-key.pem"),
            "root": str(self.ssl / "root.pem"),
        }

    def reader(self, port: int, connections: int, message: bytes | None) -> "subprocess.Popen[str]":
        """A process of bench/reader.py, connected; `message` is the request, None for the raw sender."""
        spec = self.pair("client") | {"port": port, "connections": connections}
        process = start("bench.reader", spec | {"message": message.hex() if message is not None else None})
        if read(process) != "":
            raise AssertionError("the reader is not ready: its message is above")
        return process


@contextmanager
def ground() -> Iterator[Ground]:
    with tempfile.TemporaryDirectory(prefix="telehandler-bench-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Ground(Path(name))


def start(module: str, spec: dict[str, Any]) -> "subprocess.Popen[str]":
    """A process of one of our modules: its spec on stdin, which stays open, answers on stdout."""
    # Its own process group: a terminal's Ctrl-C is for us, who then end it.
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    _started.add(process)
    tell(process, json.dumps(spec))
    return process


def tell(process: "subprocess.Popen[str]", line: str) -> None:
    assert process.stdin
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def read(process: "subprocess.Popen[str]") -> str:
    """One line, without its end."""
    assert process.stdout
    line = process.stdout.readline()
    if not line:
        raise AssertionError(f"a process of the benchmark ended with {process.wait()}: its message is above")
    return line.removesuffix("\n")


def end(*processes: "subprocess.Popen[str]") -> None:
    for process in processes:
        _started.discard(process)
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()


def start_job(client: Client, argv: Sequence[str]) -> str:
    return client.start(pb.StartJobRequest(argv=[os.fsencode(argument) for argument in argv]))


def finished_job(client: Client, argv: Sequence[str]) -> tuple[str, int]:
    """A job that has ended well: its name, and the size of its output."""
    name = start_job(client, argv)
    status = wait_until("the job has ended", lambda: _ended(client, name), _JOB_DEADLINE_S)
    if status.state != pb.JOB_STATE_COMPLETED:
        raise AssertionError(f"the job {argv} ended with {status.exit_code}")
    return name, status.stdout_bytes + status.stderr_bytes


def _ended(client: Client, name: str) -> "pb.JobStatus | None":
    status = client.status(name)
    return status if status.HasField("end_time") else None


def watch_request(name: str, zstd: bool = False) -> bytes:
    return pb.WatchJobOutputRequest(name=name, accept_zstd=zstd).SerializeToString()


def cpu_s(pid: int) -> float:
    """User and system time of a process with all its threads."""
    return cpu_ticks(pid) / _TICKS


def cpu_model() -> str:
    """As it calls itself, and its model: many virtual ones go by the same name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = found.get("model name", "unknown").replace("(R)", "")
    return f"{name}, model {found['model']}" if "model" in found else name
