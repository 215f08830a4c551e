"""That what was measured was right: `client benchmark`, which compares every watcher's digests with the server's."""

import re
from typing import Any

from bench.ground import MIB, Ground


def run(ground: Ground, watchers: int, size: int) -> dict[str, Any]:
    with ground.server() as server:
        words = ["--watchers", str(watchers), "--discard", "--", "head", "-c", str(size), "/dev/urandom"]
        done = server.client("benchmark", *words)
    output = done.stdout.decode()
    found = re.search(r"^total ([\d.]+) MiB/s", output, re.MULTILINE)
    if done.returncode or not found:
        raise AssertionError(f"client benchmark ended with {done.returncode}: {done.stderr.decode()}")
    row = {"watchers": watchers, "job_mib": size / MIB, "mib_s": float(found[1])}
    print(f"  client benchmark: {watchers} watchers got what the server has, {row['mib_s']:.0f} MiB/s", flush=True)
    return row
