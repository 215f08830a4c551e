"""One process that serves streams beside two, in turns: throughput, cpu time, memory, and live latency by either."""

from contextlib import ExitStack
from typing import Any

import grpc
from support.library_client import client_of
from support.process_usage import memory_bytes
from support.servers import Server
from support.stream_workers import process_of_new, serving

from bench import latency
from bench.fanout import Measure, summary, text_command, timed
from bench.ground import MIB, Ground, finished_job, start_job, watch_request

COUNTS = (1, 2)  # processes
_READY_S = 10.0


def run(ground: Ground, watchers: list[int], total: int, rounds: int, lines: int) -> dict[str, Any]:
    """About `total` bytes over all watchers in each measure; `lines` of each live job."""
    rows: list[dict[str, Any]] = []
    for count in watchers:
        rows += _rows(ground, count, max(MIB, total // count), rounds)
    return {"rows": rows, "latency": _latency(ground, lines)}


def _rows(ground: Ground, count: int, size: int, rounds: int) -> list[dict[str, Any]]:
    """With servers of their own, so that their memory is these rows'; what else the machine does meets both."""
    found: dict[tuple[str, int], list[Measure]] = {}
    with ExitStack() as stack:
        servers = {number: stack.enter_context(_server(ground, number)) for number in COUNTS}
        jobs = {number: _jobs(server, size) for number, server in servers.items()}
        pids = {number: list(serving(server, number).values()) for number, server in servers.items()}
        for _ in range(rounds):
            for data in ("random", "text"):
                for number, server in servers.items():
                    name, bytes_ = jobs[number][data]
                    reader = ground.reader(server.port, count, watch_request(name, zstd=data == "text"))
                    measure = timed(reader, pids[number], bytes_, may_be_less=data == "text")
                    found.setdefault((data, number), []).append(measure)
        peaks = {number: sum(memory_bytes(pid, "VmHWM") for pid in pids[number]) / MIB for number in COUNTS}
    rows = []
    for (data, number), measures in found.items():
        row = {"watchers": count, "data": data, "processes": number, **summary(measures), "peak_mib": peaks[number]}
        print(
            f"  {count:4} watchers, {data}, {number} processes: {row['mib_s']:.0f} MiB/s, "
            f"{row['cpu_s_per_gib']:.2f} CPU-s/GiB, {row['peak_mib']:.0f} MiB",
            flush=True,
        )
        rows.append(row)
    return rows


def _server(ground: Ground, processes: int) -> Any:
    return ground.server(None, "--stream-workers", str(processes))


def _jobs(server: Server, size: int) -> dict[str, tuple[str, int]]:
    """A job of each kind of output, and how much it has printed."""
    client = client_of(server)
    random, _ = finished_job(client, ["head", "-c", str(size), "/dev/urandom"])
    text = finished_job(client, text_command(size))
    client.close()
    return {"random": (random, size), "text": text}


def _latency(ground: Ground, lines: int) -> list[dict[str, Any]]:
    rows = []
    with ExitStack() as stack:
        for processes in COUNTS:
            server = stack.enter_context(_server(ground, processes))
            for by in list(serving(server, processes)):
                row = {
                    "processes": processes,
                    "by": by.partition("-")[0],
                    **_lines(ground, server, processes, by, lines),
                }
                print(
                    f"  {processes} processes, by {by}: p50 {row['p50_ms']:.2f} ms, p99 {row['p99_ms']:.2f} ms",
                    flush=True,
                )
                rows.append(row)
    return rows


def _lines(ground: Ground, server: Server, processes: int, by: str, lines: int) -> dict[str, Any]:
    """A live job's lines, by a connection that this process serves."""
    pids = serving(server, processes)
    client = client_of(server)
    list(client.list_jobs("", (), 1))  # it is connected: the next connection is another one
    try:
        while True:
            with latency.channel(ground, server) as opened:
                name, _ = process_of_new(server, pids, lambda: _connect(opened))
                if name == by:
                    return latency.measure(opened, start_job(client, latency.command(lines)), lines)
    finally:
        client.close()


def _connect(channel: grpc.Channel) -> None:
    grpc.channel_ready_future(channel).result(_READY_S)
