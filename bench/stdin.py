"""A job's input: how fast `run -i` passes a file on, beside `watch` of the same size, and the echo of a key."""

import hashlib
import statistics
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from support.process_usage import rss_bytes
from support.servers import Server
from support.user_terminal import UserTerminal

from bench.ground import MIB, Ground

_LOOK_S = 0.02


def run(ground: Ground, size: int, keys: int) -> dict[str, Any]:
    """`size` bytes of random data into sha256sum; the same from a job into one; keys to a terminal in raw mode."""
    path = ground.place / "input"
    subprocess.run(["sh", "-c", f"head -c {size} /dev/urandom >{path}"], check=True)
    with path.open("rb") as file:
        expected = hashlib.file_digest(file, "sha256").hexdigest()
    with ground.server() as server:
        server.client("run", "--", "true")
        row = _input(server, path, expected)
        row["watch_mib_s"] = size / MIB / _watch(server, size)
        row["mib_s"] = size / MIB / row.pop("took_s")
        row["ratio"] = row["mib_s"] / row["watch_mib_s"]
        row |= _keys(server, keys)
    path.unlink()
    print(
        f"  run -i {row['mib_s']:,.0f} MiB/s, watch {row['watch_mib_s']:,.0f} MiB/s, "
        f"api +{row['api_grown_mib']:.0f} MiB, echo p50 {row['echo_p50_ms']:.2f} ms, p99 {row['echo_p99_ms']:.2f} ms",
        flush=True,
    )
    return row


def _input(server: Server, path: Path, expected: str) -> dict[str, Any]:
    api = server.children()["api"]
    before, most, done = rss_bytes(api), [0], threading.Event()

    def look() -> None:
        while not done.wait(_LOOK_S):
            most[0] = max(most[0], rss_bytes(api))

    looker = threading.Thread(target=look)
    looker.start()
    began = time.monotonic()
    with path.open("rb") as file:
        command = server.client_command("run", "-i", "--", "sha256sum")
        out = subprocess.run(command, stdin=file, capture_output=True, check=True).stdout
    took = time.monotonic() - began
    done.set()
    looker.join()
    if out[:64].decode() != expected:
        raise AssertionError("what the job got is not what was sent")
    return {"took_s": took, "api_grown_mib": (most[0] - before) / MIB}


def _watch(server: Server, size: int) -> float:
    """Seconds of a watch into sha256sum of a job that has ended: as much is hashed on this machine as for the input."""
    name = server.detach("sh", "-c", f"head -c {size} /dev/urandom")
    server.client("wait", name)
    began = time.monotonic()
    with subprocess.Popen(server.client_command("watch", name), stdout=subprocess.PIPE) as watch:
        subprocess.run(["sha256sum"], stdin=watch.stdout, stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - began


def _keys(server: Server, count: int) -> dict[str, float]:
    """Milliseconds from a key in the user's terminal to its echo there, one at a time."""
    took = []
    with UserTerminal(
        server.client_command("run", "-it", "--", "sh", "-c", "stty raw; echo ready; cat >/dev/null")
    ) as user:
        user.until(b"ready")
        for number in range(count):
            key = b"%c" % (ord("a") + number % 26)
            began = time.monotonic()
            user.type(key)
            user.until(key)
            took.append((time.monotonic() - began) * 1000)
            time.sleep(_LOOK_S)  # as somebody types: each key by itself
    server.client("stop", "--stop-timeout", "0")
    took.sort()
    return {"echo_p50_ms": statistics.median(took), "echo_p99_ms": took[int(len(took) * 0.99)]}
