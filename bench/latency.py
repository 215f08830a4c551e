"""From a job's write to a watcher's hands: a job prints the time every few milliseconds, one watcher compares."""

import statistics
import time
from pathlib import Path
from typing import Any

import grpc
from support.library_client import client_of
from support.servers import Server

from bench.ground import Ground, start_job
from bench.reader import WATCH
from telehandler.pb import telehandler_pb2 as pb

PERIOD_MS = 5
_JOB = (
    "import time\n"
    "for _ in range({count}):\n"
    "    time.sleep({period})\n"
    "    print(time.time_ns(), flush=True)\n"
)  # fmt: skip


def run(ground: Ground, count: int) -> dict[str, Any]:
    with ground.server() as server:
        client = client_of(server)
        job = start_job(client, command(count))
        with channel(ground, server) as opened:
            row = measure(opened, job, count)
        client.close()
    print(f"  p50 {row['p50_ms']:.2f} ms, p99 {row['p99_ms']:.2f} ms of {count} lines", flush=True)
    return row


def command(count: int) -> list[str]:
    """Prints the time, so many times."""
    return ["/usr/bin/python3", "-c", _JOB.format(count=count, period=PERIOD_MS / 1000)]


def measure(opened: grpc.Channel, name: str, count: int) -> dict[str, Any]:
    """Of the job of `command`, as one connection gets it. Raises AssertionError when lines are missing."""
    taken = sorted(_watch(opened, name))
    if len(taken) != count:
        raise AssertionError(f"{len(taken)} lines came, {count} were written")
    row = {"lines": count, "period_ms": PERIOD_MS, "p50_ms": statistics.median(taken)}
    return row | {"p99_ms": taken[int(len(taken) * 0.99)], "max_ms": taken[-1]}


def _watch(opened: grpc.Channel, name: str) -> list[float]:
    """Milliseconds for each line. grpc alone: what a client does with the output is its own time."""
    method = opened.unary_stream(
        WATCH,
        request_serializer=pb.WatchJobOutputRequest.SerializeToString,
        response_deserializer=pb.JobOutput.FromString,
    )
    taken, rest = [], b""
    for output in method(pb.WatchJobOutputRequest(name=name)):
        now = time.time_ns()
        *lines, rest = (rest + output.data).split(b"\n")
        taken += [(now - int(line)) / 1e6 for line in lines]
    return taken


def channel(ground: Ground, server: Server) -> grpc.Channel:
    pair = ground.pair("client")
    root, key, certificate = (Path(pair[name]).read_bytes() for name in ("root", "key", "cert"))
    return grpc.secure_channel(f"localhost:{server.port}", grpc.ssl_channel_credentials(root, key, certificate))
