"""Starts with limits in force, beside their peers, in the tests' own virtual machine: bench/peers.py runs there.

Software emulation: all of it is several times slower than the host, and only the ratios say something.
"""

import json
import shlex
import sys
from typing import Any

from support.checkout import ROOT
from vm import machine

from bench.peers import ISOLATES

TIMEOUT_S = 600.0


def run(rounds: int, count: int) -> dict[str, Any]:
    """`rounds` of each in turns, then `count` of each with eight under way; or why there is no machine."""
    words = [sys.executable, "-m", "bench.peers", str(rounds), str(count)]
    script = (
        f"cd {shlex.quote(str(ROOT))} && TELEHANDLER_GUEST=bench PYTHONPATH=tests {shlex.join(words)} >/run/vm/report\n"
    )
    try:
        found = machine.Machine().run(script, systemd=True, timeout_s=TIMEOUT_S)
    except machine.Unavailable as error:
        print(f"  no virtual machine: {error}", flush=True)
        return {"absent": str(error)}
    if found.status:
        raise AssertionError(f"bench.peers ended with {found.status} in the virtual machine:\n{found.output[-3000:]}")
    rows: list[dict[str, Any]] = json.loads(found.report)
    for row in rows:
        row["isolates"] = ISOLATES[row["name"]]
        print(f"  {row['name']}: {_said(row)}", flush=True)
    return {"rows": rows}


def _said(row: dict[str, Any]) -> str:
    if "absent" in row:
        return f"does not run there: {row['absent']}"
    return f"p50 {row['p50_ms']:.1f} ms, p99 {row['p99_ms']:.1f}; {row['rate_s']:.1f} a second with eight in flight"
