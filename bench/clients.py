"""The same fan-out to real gRPC clients: grpcio as users write it, and this project's client library.

They share the machine's cores with the server, and cost more than it: so the rate is theirs, the cost is told apart.
"""

import json
import os
import statistics
from typing import Any

from support.library_client import client_of
from support.servers import Server

from bench.ground import GIB, MIB, Ground, cpu_s, end, finished_job, read, start, tell

KINDS = ("grpcio", "library")


def run(ground: Ground, watchers: list[int], total: int, largest: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each number of watchers and kind of client: random data, about `total` bytes over all."""
    rows = []
    with ground.server() as server:
        client = client_of(server)
        for count in watchers:
            size = max(MIB, min(largest, total // count))
            job, _ = finished_job(client, ["head", "-c", str(size), "/dev/urandom"])
            found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
            for _ in range(rounds):
                for kind, measures in found.items():
                    measures.append(_measure(ground, server, kind, count, job, size))
            for kind, measures in found.items():
                middle = {key: statistics.median(measure[key] for measure in measures) for key in measures[0]}
                rows.append({"client": kind, "watchers": count, "job_mib": size / MIB} | middle)
                print(
                    f"  {count:5} watchers, {kind}: {middle['mib_s']:.0f} MiB/s; CPU-s/GiB: server "
                    f"{middle['cpu_s_per_gib']:.2f}, clients {middle['client_cpu_s_per_gib']:.2f}",
                    flush=True,
                )
        client.close()
    return rows


def _measure(ground: Ground, server: Server, kind: str, count: int, job: str, size: int) -> dict[str, float]:
    """From the word to begin until the last watcher has everything, in a process for each core."""
    processes = min(count, os.cpu_count() or 1)
    spec = ground.pair("client") | {"kind": kind, "port": server.port, "name": job}
    shares = [count // processes + (number < count % processes) for number in range(processes)]
    readers = [start("bench.grpc_reader", spec | {"connections": share}) for share in shares]
    try:
        for reader in readers:
            read(reader)
        before = cpu_s(server.children()["api"])
        for reader in readers:
            tell(reader, "")
        answers = [json.loads(read(reader)) for reader in readers]
        used = cpu_s(server.children()["api"]) - before
    finally:
        end(*readers)
    if any(received != size for answer in answers for received in answer["bytes"]):
        raise AssertionError(f"a {kind} client did not get the {size} bytes of the job")
    delivered = size * count
    return {
        "mib_s": delivered / MIB / max(answer["seconds"] for answer in answers),
        "cpu_s_per_gib": used / (delivered / GIB),
        "client_cpu_s_per_gib": sum(answer["cpu_s"] for answer in answers) / (delivered / GIB),
    }
