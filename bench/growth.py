"""How figures grow: with the server's cores, with jobs that are live or kept, and with a job's bytes.

The server and all that it starts are held to its cores by sched_setaffinity(2), as taskset(1) does it; the clients have
the whole machine. `of_busiest` is what one thread of the api, or the helper, uses: it cannot be shared among cores, so
it is the bound that more cores leave.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from support.library_client import client_of
from support.policies import own_uids, policy_text, write_policy
from support.process_usage import memory_bytes
from support.raw_client import RawClient
from support.servers import Server

from bench import fanout, memory, starts
from bench.ground import GIB, MIB, Ground, cpu_s, finished_job

_TICKS = os.sysconf("SC_CLK_TCK")
_MANY_JOBS = "starts_per_second = 100000\nmax_jobs = {most}\n"


def run(
    ground: Ground, watchers: Sequence[int], total: int, rounds: int, jobs: Sequence[int], sizes: Sequence[int]
) -> dict[str, Any]:
    """About `total` bytes over all watchers, numbers of `jobs` that rise, `sizes` of a job's output in bytes."""
    most = min(2, len(os.sched_getaffinity(0)))
    return {
        "cores": _cores(ground, list(range(1, most + 1)), watchers, total, rounds),
        "jobs": _jobs(ground, jobs, 10 * rounds),
        "bytes": [memory.row(ground, size, 1, stopped=False) for size in sizes],
    }


@contextmanager
def pinned(cores: int) -> Iterator[None]:
    """What this thread starts meanwhile runs on so many cores, and stays there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _cores(
    ground: Ground, counts: Sequence[int], watchers: Sequence[int], total: int, rounds: int
) -> list[dict[str, Any]]:
    """Servers side by side, measured in turns: what else the machine does meets each."""
    rates: dict[tuple[int, int], list[float]] = {}
    busiest: dict[tuple[int, int], list[float]] = {}
    begun: dict[int, list[dict[str, float]]] = {cores: [] for cores in counts}
    idle: dict[int, float] = {}
    with ExitStack() as stack:
        servers: dict[int, Server] = {}
        for cores in counts:
            policy = write_policy(
                ground.place, f"cores{cores}", policy_text(_MANY_JOBS.format(most=1000)) + own_uids(1024)
            )
            with pinned(cores):
                servers[cores] = stack.enter_context(ground.server(policy))
            idle[cores] = memory_bytes(servers[cores].children()["api"], "VmRSS") / MIB
        for count in watchers:
            size = max(MIB, min(GIB, total // count))
            names = {cores: _random_job(server, size) for cores, server in servers.items()}
            for _ in range(rounds):
                for cores, server in servers.items():
                    api = server.children()["api"]
                    before = _threads_s(api)
                    got = fanout.grpc(ground, server, count, names[cores], size, zstd=False)
                    rates.setdefault((cores, count), []).append(got.bytes / got.seconds / MIB)
                    busiest.setdefault((cores, count), []).append(_busiest(before, _threads_s(api)) / got.bytes * GIB)
        for _ in range(rounds):
            for cores, server in servers.items():
                begun[cores].append(_start_rate(server, 20))
    rows = []
    for cores in counts:
        streams = [
            {
                "watchers": count,
                "mib_s": statistics.median(rates[cores, count]),
                "busiest_s_per_gib": statistics.median(busiest[cores, count]),
            }
            for count in watchers
        ]
        found = {key: statistics.median(row[key] for row in begun[cores]) for key in begun[cores][0]}
        rows.append({"cores": cores, "streams": streams, "idle_mib": idle[cores], **found})
        print(
            f"  server on {cores} cores: {', '.join(format(row['mib_s'], '.0f') for row in streams)} MiB/s, "
            f"{found['starts_s']:.0f} starts a second, idle {idle[cores]:.0f} MiB",
            flush=True,
        )
    return rows


def _random_job(server: Server, size: int) -> str:
    client = client_of(server)
    name, _ = finished_job(client, ["head", "-c", str(size), "/dev/urandom"])
    client.close()
    return name


def _threads_s(pid: int) -> dict[str, float]:
    """Processor time of each thread."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            fields = (task / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        found[task.name] = (int(fields[11]) + int(fields[12])) / _TICKS
    return found


def _busiest(before: dict[str, float], after: dict[str, float]) -> float:
    return max(used - before.get(thread, 0) for thread, used in after.items())


def _start_rate(server: Server, each: int) -> dict[str, float]:
    """StartJob by IN_FLIGHT clients: starts a second, and the processor time of a start's serial parts."""
    children = server.children()
    callers = [RawClient(server, server.ssl / "client") for _ in range(starts.IN_FLIGHT)]
    with ThreadPoolExecutor(starts.IN_FLIGHT) as pool:
        list(pool.map(lambda caller: caller.start("true"), callers))
        before, helper, began = _threads_s(children["api"]), cpu_s(children["helper"]), time.perf_counter()
        list(pool.map(lambda caller: [caller.start("true") for _ in range(each)], callers))
        seconds = time.perf_counter() - began
        helper = cpu_s(children["helper"]) - helper
        api = _busiest(before, _threads_s(children["api"]))
    for caller in callers:
        caller.channel.close()
    count = starts.IN_FLIGHT * each
    return {"starts_s": count / seconds, "api_ms": api / count * 1000, "helper_ms": helper / count * 1000}


def _jobs(ground: Ground, numbers: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """StartJob in turns at three servers: one without jobs, one with ended ones that it keeps, one with live ones."""
    most = max(numbers) + 100
    rows = []
    with ExitStack() as stack:
        callers: dict[str, RawClient] = {}
        apis: dict[str, int] = {}
        for name in ("none", "kept", "live"):
            policy = write_policy(
                ground.place, f"jobs-{name}", policy_text(_MANY_JOBS.format(most=most)) + own_uids(2048)
            )
            server = stack.enter_context(ground.server(policy, "--max-jobs-per-user", str(most)))
            callers[name] = stack.enter_context(RawClient(server, server.ssl / "client"))
            apis[name] = server.children()["api"]
        before = {name: memory_bytes(pid, "VmRSS") for name, pid in apis.items()}
        ways: dict[str, Callable[[], float]] = {
            name: lambda caller=caller: starts.ms(lambda: caller.start("true"))  # type: ignore[misc]
            for name, caller in callers.items()
        }
        there = 0
        for number in numbers:
            with ThreadPoolExecutor(starts.IN_FLIGHT) as pool:
                list(pool.map(lambda _: callers["kept"].start("true"), range(number - there)))
                list(pool.map(lambda _: callers["live"].start("sleep", "1000"), range(number - there)))
            there = number
            found = starts.medians(ways, rounds)
            for name in ("kept", "live"):
                row = {"jobs": number, "state": name, "start_ms": found[name], "none_ms": found["none"]}
                row |= {"ratio": found[name] / found["none"], "api_mib": memory_bytes(apis[name], "VmRSS") / MIB}
                row["kib_each"] = (memory_bytes(apis[name], "VmRSS") - before[name]) / 1024 / number
                print(f"  among {number} jobs {name}: {found[name]:.1f} ms ({row['ratio']:.2f})", flush=True)
                rows.append(row)
    return rows
