"""`make bench`: every part in one run, the result as one JSON file."""

import argparse
import datetime
import json
import os
import platform
import signal
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc

from bench import (
    bars,
    clients,
    fanout,
    growth,
    idle,
    in_vm,
    latency,
    links,
    live,
    memory,
    start_calls,
    starts,
    stdin,
    stream_workers,
    verify,
)
from bench.docs import slug
from bench.ground import GIB, cpu_model, ground

RESULTS = Path(__file__).parent / "results"
SCHEMA = 1
PARTS = (
    "fanout",
    "verify",
    "clients",
    "links",
    "latency",
    "live",
    "starts",
    "start_calls",
    "idle",
    "memory",
    "stream_workers",
    "stdin",
    "growth",
    "vm",
)


def main() -> int:
    options = _options()
    machine = _machine()
    result: dict[str, Any] = {"schema": SCHEMA, "quick": options.quick, "machine": machine}
    print(f"{machine['cpu']}, {machine['cores']} cores, load {machine['load']}", flush=True)
    path: Path = options.output or RESULTS / ("quick.json" if options.quick else _file_name(machine))
    with ground() as here:
        for part in options.parts:
            print(part, flush=True)
            if part == "fanout":
                total, largest = int(options.fanout_gib * GIB), int(options.job_gib * GIB)
                result[part] = fanout.run(here, options.watchers, total, largest, options.rounds)
            elif part == "verify":
                result[part] = verify.run(here, options.verify_watchers, int(options.verify_gib * GIB))
            elif part == "clients":
                total, largest = int(options.clients_gib * GIB), int(options.job_gib * GIB)
                result[part] = clients.run(here, options.clients, total, largest, options.rounds)
            elif part == "links":
                result[part] = links.run(options.link_seconds, options.rounds)
            elif part == "latency":
                result[part] = latency.run(here, options.lines)
            elif part == "live":
                result[part] = live.run(here, options.live_jobs, options.live_seconds)
            elif part == "starts":
                result[part] = starts.run(here, options.starts, 4 * options.starts, 20)
            elif part == "start_calls":
                result[part] = start_calls.run(here, options.starts, options.live_starts, options.burst)
            elif part == "idle":
                result[part] = idle.run(here, options.idle)
            elif part == "memory":
                crowd = int(options.crowd_gib * GIB)
                result[part] = memory.run(here, int(options.memory_gib * GIB), options.crowd, crowd)
            elif part == "stream_workers":
                gib = options.stream_workers_gib
                result[part] = stream_workers.run(here, [10, 100], int(gib * GIB), options.rounds, options.lines // 10)
            elif part == "growth":
                total, sizes = int(options.growth_gib * GIB), [int(gib * GIB) for gib in options.growth_bytes_gib]
                result[part] = growth.run(here, [1, 10, 100], total, options.rounds, options.growth_jobs, sizes)
            elif part == "vm":
                result[part] = in_vm.run(options.vm_starts, options.vm_flight)
            elif part == "stdin":
                result[part] = stdin.run(here, int(options.stdin_gib * GIB), options.keys)
            result["bars"] = bars.of(result)
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"on {machine['cpu']}:")
    for bar in result["bars"]:
        print(f"{'holds ' if bar['holds'] else 'MISSED'}  {bar['what']}: {bar['found']:.2f} ({bar['bar']})")
    print(f"written to {path}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    quick = "--quick" in sys.argv[1:]
    parser.add_argument("--quick", action="store_true", help="all parts, small: under two minutes")
    parser.add_argument("--output", type=Path, help="the JSON file")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--watchers", nargs="+", type=int, default=[1, 10, 100, 1000])
    parser.add_argument("--rounds", type=int, default=1 if quick else 3, help="of fan-out; the median counts")
    parser.add_argument("--fanout-gib", type=float, default=1 if quick else 8, help="over all watchers")
    parser.add_argument("--job-gib", type=float, default=0.25 if quick else 1, help="the largest job of fan-out")
    parser.add_argument("--verify-watchers", nargs="+", type=int, default=[100] if quick else [100, 1000])
    parser.add_argument("--verify-gib", type=float, default=0.5 if quick else 4, help="over all watchers")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 10, 100], help="watchers with real clients")
    parser.add_argument("--clients-gib", type=float, default=0.5 if quick else 2, help="over all of them")
    parser.add_argument("--link-seconds", type=float, default=1 if quick else 3, help="of plain text over each link")
    parser.add_argument("--lines", type=int, default=1000 if quick else 10_000, help="of the latency's job")
    parser.add_argument("--live-jobs", type=int, default=100 if quick else 1000, help="that print a line a second")
    parser.add_argument("--live-seconds", type=float, default=5 if quick else 20, help="of each live measure")
    parser.add_argument("--starts", type=int, default=20 if quick else 100, help="of each kind")
    parser.add_argument("--live-starts", type=int, default=100 if quick else 1000, help="jobs that run meanwhile")
    parser.add_argument("--burst", type=int, default=100 if quick else 1000, help="starts at once")
    parser.add_argument("--idle", nargs="+", type=int, default=[1000] if quick else [1000, 5000])
    parser.add_argument("--memory-gib", type=float, default=1 if quick else 10, help="the job with one watcher")
    parser.add_argument("--crowd", type=int, default=99, help="watchers beside the one that is stopped")
    parser.add_argument("--crowd-gib", type=float, default=0.1 if quick else 1, help="the job with 99 and one stopped")
    parser.add_argument("--stream-workers-gib", type=float, default=1 if quick else 4, help="over all watchers")
    parser.add_argument("--growth-gib", type=float, default=0.5 if quick else 2, help="over all watchers")
    parser.add_argument("--growth-jobs", nargs="+", type=int, default=[20, 100] if quick else [100, 1000])
    parser.add_argument("--growth-bytes-gib", nargs="+", type=float, default=[0.1, 0.3] if quick else [1, 3])
    parser.add_argument("--vm-starts", type=int, default=3 if quick else 25, help="of each kind, with limits in force")
    parser.add_argument("--vm-flight", type=int, default=8 if quick else 24, help="with eight of them under way")
    parser.add_argument("--stdin-gib", type=float, default=0.25 if quick else 1, help="of input to one job")
    parser.add_argument("--keys", type=int, default=100 if quick else 500, help="that are typed")
    return parser.parse_args()


def _machine() -> dict[str, str | float]:
    return {
        "cores": os.cpu_count() or 0,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB),
        "cpu": cpu_model(),
        "kernel": ".".join(platform.release().split("-")[0].split(".")[:2]),
        "python": platform.python_version(),
        "grpc": str(grpc.__version__),
        "openssl": ssl.OPENSSL_VERSION.split()[1],
        "load": round(os.getloadavg()[0], 1),
        "commit": _commit(),
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
    }


def _file_name(machine: dict[str, str | float]) -> str:
    """Of the result for this kind of machine: figures of one kind are compared with each other alone."""
    return slug(f"{machine['cores']} cores {machine['cpu']}") + ".json"


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("bench: it needs root, for a server with a helper of its own: sudo make bench")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except AssertionError as error:
        sys.exit(f"bench: {error}")
