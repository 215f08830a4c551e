"""That what was measured was right: `client benchmark`, which compares every watcher's digests with the server's.

The reader of the other parts counts and does not hash: two cores that hash what a hundred watchers get are busy with
that alone.
"""

import re
from typing import Any

from support.servers import Server

from bench.fanout import text_command
from bench.ground import MIB, Ground


def run(ground: Ground, watchers: list[int], total: int) -> list[dict[str, Any]]:
    """A row for each number of watchers and kind of output: jobs of `total` bytes over all watchers."""
    rows = []
    with ground.server() as server:
        for count in watchers:
            size = max(MIB, total // count)
            for data, flag, command in (
                ("random", "--zstd", ["head", "-c", str(size), "/dev/urandom"]),
                ("text", "--zstd", text_command(size)),
                ("text", "--no-zstd", text_command(size)),
            ):
                rows.append({"data": data, "zstd": flag == "--zstd", "job_mib": size / MIB})
                rows[-1] |= _benchmark(server, count, flag, command)
                print(f"  client benchmark: {count} watchers got the server's digests ({data}, {flag})", flush=True)
    return rows


def _benchmark(server: Server, watchers: int, flag: str, command: list[str]) -> dict[str, Any]:
    done = server.client("benchmark", "--watchers", str(watchers), "--discard", flag, "--", *command)
    output = done.stdout.decode()
    found = re.search(r"^total ([\d.]+) MiB/s", output, re.MULTILINE)
    same = f"all {watchers} watchers got what the server has" in output
    if done.returncode or not found or not same:
        raise AssertionError(f"client benchmark ended with {done.returncode}: {done.stderr.decode()}")
    return {"watchers": watchers, "mib_s": float(found[1])}
