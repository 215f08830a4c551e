"""Servers and `telehandler local` started at the same moment; as a program: a hundred times.

cd tests && ../.venv/bin/python -m support.start_together [ROUNDS]
"""

import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.certificates import make_certificates
from support.checkout import ROOT
from support.command_line import COMMAND
from support.policies import policy_text, write_policy
from support.servers import Server

TIMEOUT_S = 240  # of a start, on a busy machine


def start_together(place: Path, ssl: Path, policy: Path, servers: int, locals_: int) -> list[str]:
    """What did not start, and why; the servers are stopped again."""
    started = [Server(place, ssl, policy) for _ in range(servers)]
    command = [*COMMAND, "local", "--helper-policy", str(policy), "--", "sh", "-c", "id -u"]

    def run_server(server: Server) -> str:
        try:
            server.start()
        except AssertionError as error:
            return str(error)
        return ""

    def run_local(_: int) -> str:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        return "" if done.returncode == 0 and done.stdout.strip().isdigit() else f"{done.returncode}: {done.stderr}"

    with ThreadPoolExecutor(servers + locals_) as pool:
        waiting = [pool.submit(run_server, server) for server in started]
        waiting += [pool.submit(run_local, number) for number in range(locals_)]
        failures = [failure for future in waiting if (failure := future.result())]
    failures += [f"a server ended with {status}" for server in started if (status := server.stop())]
    return failures


def main() -> int:
    """The exit status: 0 when all have started, in every round."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    failed, began = 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="telehandler-together-", dir="/var/tmp") as name:
        place = Path(name)
        place.chmod(0o755)
        make_certificates(place / "ssl")
        policy = write_policy(place, "policy", policy_text())
        for number in range(1, rounds + 1):
            failures = start_together(place, place / "ssl", policy, servers=3, locals_=10)
            failed += bool(failures)
            for failure in failures or ["all started"]:
                print(f"round {number}: {failure}", flush=True)
    print(f"{rounds} rounds, {failed} with a failure, {time.monotonic() - began:.0f} s")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
