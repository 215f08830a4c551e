"""A job's kept output to many watchers at once, beside a raw TLS sender: throughput, and the server's cpu time."""

import json
import statistics
import subprocess
from typing import Any, NamedTuple

from support.library_client import client_of
from support.process_usage import memory_bytes
from support.servers import Server

from bench.ground import GIB, MIB, Ground, cpu_s, end, finished_job, read, start, tell, watch_request

# Lines as a program's log has them: numbers that differ, words that come again.
_TEXT = (
    "import random; chance = random.Random(1); n = 0\n"
    "words = 'GET POST connection user accepted refused timeout cache miss hit retry queue'.split()\n"
    "while n < {size}:\n"
    "    line = f'2026-01-01T{{n // 3600 % 24:02}}:{{n // 60 % 60:02}}:{{n % 60:02}} {{chance.choice(words)}} '\n"
    "    line += f'id={{chance.getrandbits(32):08x}} {{chance.choice(words)}} took {{chance.random() * 9:.3f}} ms'\n"
    "    n += len(line) + 1; print(line)\n"
)


_FRAMING = 1.02


class Measure(NamedTuple):
    """`bytes`: of output, delivered over all watchers; on the wire they may be fewer."""

    bytes: int
    seconds: float
    cpu_s: float
    reader_cpu_s: float
    wire_bytes: int


def text_command(size: int) -> list[str]:
    """Prints `size` bytes of log lines, or a line more."""
    return ["/usr/bin/python3", "-c", _TEXT.format(size=size)]


def run(ground: Ground, watchers: list[int], total: int, largest: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each number of watchers: about `total` bytes over all, jobs of at most `largest` bytes."""
    return [_row(ground, count, max(MIB, min(largest, total // count)), rounds) for count in watchers]


def _row(ground: Ground, count: int, size: int, rounds: int) -> dict[str, Any]:
    """With a server of its own, so that its memory is this row's."""
    with ground.server() as server:
        client = client_of(server)
        random_job, _ = finished_job(client, ["head", "-c", str(size), "/dev/urandom"])
        text_job, text_size = finished_job(client, text_command(size))
        client.close()
        # Side by side and in turns: what else the machine does meets all of them.
        found: dict[str, list[Measure]] = {"raw": [], "random": [], "text": [], "text_plain": []}
        for _ in range(rounds):
            found["raw"].append(raw(ground, count, size))
            found["random"].append(grpc(ground, server, count, random_job, size, zstd=True))
            found["text"].append(grpc(ground, server, count, text_job, text_size, zstd=True))
            found["text_plain"].append(grpc(ground, server, count, text_job, text_size, zstd=False))
        peak = memory_bytes(server.children()["api"], "VmHWM")
    row: dict[str, Any] = {"watchers": count, "job_mib": size / MIB, "peak_mib": peak / MIB}
    row |= {name: summary(measures) for name, measures in found.items()}
    row |= {f"{name}_to_raw": row[name]["mib_s"] / row["raw"]["mib_s"] for name in ("random", "text")}
    print(
        f"  {count:5} watchers: raw TLS {row['raw']['mib_s']:.0f} MiB/s, random {row['random']['mib_s']:.0f} "
        f"({row['random_to_raw']:.2f} of raw), text {row['text']['mib_s']:.0f} ({row['text_to_raw']:.2f}); "
        f"api {row['peak_mib']:.0f} MiB",
        flush=True,
    )
    return row


def summary(measures: list[Measure]) -> dict[str, float]:
    """The medians; `spread` is the highest rate over the lowest."""
    rates = [measure.bytes / measure.seconds / MIB for measure in measures]
    return {
        "mib_s": statistics.median(rates),
        "cpu_s_per_gib": statistics.median(measure.cpu_s / (measure.bytes / GIB) for measure in measures),
        "reader_cpu_s_per_gib": statistics.median(m.reader_cpu_s / (m.bytes / GIB) for m in measures),
        "wire_share": measures[0].wire_bytes / measures[0].bytes,
        "spread": max(rates) / min(rates),
    }


def raw(ground: Ground, count: int, size: int) -> Measure:
    sender = start("bench.sender", ground.pair("server") | {"connections": count, "size": size})
    try:
        reader = ground.reader(int(read(sender)), count, None)
        return timed(reader, [sender.pid], size)
    finally:
        end(sender)


def grpc(ground: Ground, server: Server, count: int, name: str, size: int, zstd: bool) -> Measure:
    reader = ground.reader(server.port, count, watch_request(name, zstd))
    return timed(reader, [server.children()["api"]], size, may_be_less=zstd)


def timed(reader: "subprocess.Popen[str]", pids: list[int], size: int, may_be_less: bool = False) -> Measure:
    """From the word to begin until all have everything. Raises AssertionError when one has not. `pids`: the senders."""
    try:
        before = sum(map(cpu_s, pids))
        tell(reader, "")
        answer = json.loads(read(reader))
        used = sum(map(cpu_s, pids)) - before
    finally:
        end(reader)
    counts: list[int] = answer["bytes"]
    # What frames the chunks is counted too, and their size may change while watchers join: a little more for some.
    # Where it may be less, each watcher gets chunks compressed or plain, by what its own connection gains.
    least = 1 if may_be_less else size
    if min(counts) < least or max(counts) > max(size, least) * _FRAMING:
        raise AssertionError(f"the readers got from {min(counts)} to {max(counts)} bytes of {size}")
    return Measure(size * len(counts), answer["seconds"], used, answer["cpu_s"], sum(counts))
