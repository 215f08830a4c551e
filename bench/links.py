"""A log of text over links of a known rate: compressed where it pays, never slower than plain.

Each link is the loopback of a network namespace of its own, with a token bucket (tc-tbf(8)) for both directions.
"""

import json
import subprocess
import sys
from typing import Any

from support.library_client import client_of

from bench import fanout
from bench.ground import MIB, Ground, finished_job, ground

LINKS_MBIT = (100, 1000, 0)  # 0: as fast as the machine
WATCHERS = (1, 10)
# A packet of loopback is up to 64 KiB, and a bucket must hold one.
_TBF = "ip link set lo up && [ $1 = 0 ] || tc qdisc replace dev lo root tbf rate $1mbit burst 256kb latency 100ms"


def run(seconds: float, rounds: int) -> list[dict[str, Any]]:
    """A row for each link and number of watchers; plain data of one round takes about `seconds` on the slow links."""
    rows = []
    for mbit in LINKS_MBIT:
        script = f'{_TBF}; shift; exec "$@"'
        ours = [sys.executable, "-m", __name__, str(mbit), str(seconds), str(rounds)]
        command = ["unshare", "--net", "sh", "-euc", script, "sh", str(mbit), *ours]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise AssertionError(f"the link of {mbit} Mbit/s ended with {done.returncode}: its message is above")
        rows += json.loads(done.stdout)
        for row in rows[-len(WATCHERS) :]:
            rate = f"{mbit:5} Mbit/s" if mbit else "no limit    "
            print(
                f"  {rate}, {row['watchers']:3} watchers: plain {row['plain_mib_s']:.0f} MiB/s, zstd offered "
                f"{row['zstd_mib_s']:.0f} ({row['ratio']:.2f}), {row['wire_share']:.2f} of it sent",
                flush=True,
            )
    return rows


def _row(here: Ground, mbit: int, watchers: int, seconds: float, rounds: int) -> dict[str, Any]:
    size = int((mbit or 5000) / 8 * 1e6 * seconds / watchers)
    with here.server() as server:
        client = client_of(server)
        job, size = finished_job(client, fanout.text_command(max(MIB, size)))
        client.close()
        measures: dict[bool, list[fanout.Measure]] = {False: [], True: []}
        for _ in range(rounds):
            for offered, found in measures.items():
                found.append(fanout.grpc(here, server, watchers, job, size, offered))
    plain, zstd = (fanout.summary(measures[offered]) for offered in (False, True))
    return {
        "mbit_s": mbit,
        "watchers": watchers,
        "job_mib": size / MIB,
        "plain_mib_s": plain["mib_s"],
        "zstd_mib_s": zstd["mib_s"],
        "ratio": zstd["mib_s"] / plain["mib_s"],
        "wire_share": zstd["wire_share"],
    }


def main() -> None:
    mbit, seconds, rounds = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    with ground() as here:
        print(json.dumps([_row(here, mbit, watchers, seconds, rounds) for watchers in WATCHERS]))


if __name__ == "__main__":
    main()
