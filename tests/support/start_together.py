"""Servers and `telehandler local` started at the same moment, each with a job; as a program: a hundred times.

All start, and no two of the jobs have the same uid: they live together until the last of them has told its own.

cd tests && ../.venv/bin/python -m support.start_together [ROUNDS]
"""

import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.certificates import make_certificates
from support.checkout import ROOT
from support.command_line import local_command
from support.policies import own_uids, policy_text, write_policy
from support.servers import Server

TIMEOUT_S = 240  # of a start, on a busy machine
SERVERS, LOCALS = 3, 10
# So few that most of the helpers, which begin anywhere in the range, meet uids that others have.
UIDS = 16
JOB = ("sh", "-c", "id -u; exec sleep 1000")
STOPPED = 128 + signal.SIGTERM  # of a job that was there until it was stopped


def start_together(place: Path, ssl: Path) -> list[str]:
    """What did not start, or was not as it must be, and why; all is stopped again."""
    policy = write_policy(place, "together", policy_text(f"max_jobs = {UIDS}\n{own_uids(UIDS)}"))
    servers = [Server(place, ssl, policy) for _ in range(SERVERS)]
    commands: list[subprocess.Popen[str]] = []

    def of_server(server: Server) -> str:
        server.start()
        return of(server.client_command("run", "--", *JOB))

    def of(command: list[str]) -> str:
        """The uid of its job, which runs on."""
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        commands.append(process)
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], TIMEOUT_S)[0], "it says nothing"
        return process.stdout.readline().strip()

    failures, uids = [], []
    with ThreadPoolExecutor(SERVERS + LOCALS) as pool:
        waiting = [pool.submit(of_server, server) for server in servers]
        waiting += [pool.submit(of, local_command(policy, "--", *JOB)) for _ in range(LOCALS)]
    for job in waiting:
        try:
            uids.append(job.result())
        except AssertionError as error:
            failures.append(str(error))
    if len(uids) != SERVERS + LOCALS or not all(map(str.isdigit, uids)):
        failures.append(f"not all jobs told their uid: {uids}")
    failures += [f"{count} jobs had the uid {uid}" for uid, count in Counter(uids).items() if count > 1]
    for process in commands:
        process.terminate()
    for process in commands:
        _, errors = process.communicate(timeout=TIMEOUT_S)
        if process.returncode != STOPPED:
            failures.append(f"{process.args!r} ended with {process.returncode}: {errors}")
    return failures + [f"a server ended with {status}" for server in servers if (status := server.stop())]


def main() -> int:
    """The exit status: 0 when all have started, with uids of their own, in every round."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    failed, began = 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="telehandler-together-", dir="/var/tmp") as name:
        place = Path(name)
        place.chmod(0o755)
        make_certificates(place / "ssl")
        for number in range(1, rounds + 1):
            failures = start_together(place, place / "ssl")
            failed += bool(failures)
            for failure in failures or [f"all started, {SERVERS + LOCALS} jobs at once with as many uids"]:
                print(f"round {number}: {failure}", flush=True)
    print(f"{rounds} rounds, {failed} with a failure, {time.monotonic() - began:.0f} s")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
