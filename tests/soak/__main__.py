"""A soak: a real server under mixed jobs and random faults, and an observer that takes nobody's word for anything.

As root, `PYTHONPATH=tests python -m soak --minutes 60`; `make soak` does it. Exit status 1: something was violated.
"""

import argparse
import asyncio
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from soak import inject, observer
from soak.calls import CallFailed
from soak.load import KEEP_JOBS, Load
from support.certificates import make_certificates
from support.policies import policy_text, write_policy
from support.servers import Server, free_address

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ASK_S = observer.SETTLE_S * 2
_SHOWN = 20  # violations
_SAID = (
    "listening on",
    "limits that the controllers",  # are not in force on a machine without them
    "the api died (status -9); starting it again",
    "the root helper has died, and its jobs with it",
    "a new root helper runs",
    "new connections get the new certificates",
    "SIGHUP: without root the certificate and its key cannot be read anew",
)
# Of the key until a fault gives the server's user a pair of its own; of a pair of which one is replaced.
_SAID_OF_FILES = ("cannot be read by the server's user", "do not belong together")


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("SOAK_MINUTES", "3")))
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="the choices of a soak before")
    parser.add_argument("--faults", default=",".join(inject.DEFAULT), help=f"of {','.join(inject.NAMES)}; '' for none")
    given = parser.parse_args()
    faults = tuple(name for name in given.faults.split(",") if name)
    if os.geteuid() != 0 or set(faults) - set(inject.NAMES):
        parser.error("needs root" if os.geteuid() else f"the faults are {', '.join(inject.NAMES)}")
    print(f"soak: {given.minutes:g} minutes, seed {given.seed}, faults: {', '.join(faults) or 'none'}", flush=True)
    for number in _STOP_SIGNALS:
        signal.signal(number, _interrupt)
    with tempfile.TemporaryDirectory(prefix="telehandler-soak-", dir="/var/tmp") as name:
        place = Path(name)
        place.chmod(0o755)
        with suppress(KeyboardInterrupt):
            return _soak(place, given.minutes, faults, random.Random(given.seed))
    print("soak: interrupted", file=sys.stderr)
    return 130


def _interrupt(number: int, _: object) -> None:
    """Once: what it ends must not be cut short by another."""
    for each in _STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


def _soak(place: Path, minutes: float, faults: tuple[str, ...], rng: random.Random) -> int:
    ssl = place / "ssl"
    make_certificates(ssl)
    policy = write_policy(place, "policy", policy_text())
    # A port of its own choice would be another one after each restart.
    server = Server(
        place,
        ssl,
        policy,
        listen=free_address(),
        options=("--keep-jobs", str(KEEP_JOBS)),
        process_group=0,  # a terminal's Ctrl-C is for us
    )
    try:
        with _observer() as ask:
            server.start()
            report = asyncio.run(_load(server, minutes, faults, rng, ask))
            log = server.log_text().splitlines()
            status = server.stop()
            seen = ask("gone")
    finally:
        server.stop()
    violations = [*report.pop("violations"), *seen["violations"]]
    violations += [f"the server's exit status is {status}"] if status else []
    violations += [f"in the server's log: {line}" for line in log if not _is_expected(line)]
    _print_report(report | {"observer": {"looks": seen["looks"], "violations": len(violations)}}, seen["peaks"])
    for text in violations[:_SHOWN]:
        print(f"VIOLATION {text}")
    print(f"soak: {len(violations)} violations")
    return 1 if violations else 0


async def _load(
    server: Server, minutes: float, faults: tuple[str, ...], rng: random.Random, ask: Any
) -> dict[str, Any]:
    """Everything between the two levels: what was done, and what was wrong."""
    load = Load(server, rng)
    await load.first()
    await load.close()
    assert server.process
    await asyncio.to_thread(ask, f"begin {server.process.pid}")
    load.open()
    injector = inject.Injector(server, load, faults, random.Random(rng.random()))
    faulting = asyncio.create_task(injector.run())
    running = asyncio.create_task(load.run())
    await asyncio.wait([running], timeout=minutes * 60)
    faulting.cancel()
    load.stopping.set()
    try:
        await running
    except (CallFailed, TimeoutError) as error:
        load.violations.append(f"at the end: {type(error).__name__} {error}")
    await load.close()
    await asyncio.to_thread(ask, "settle")
    return {"operations": dict(load.done), "faults": dict(injector.done), "violations": load.violations}


@contextmanager
def _observer() -> Iterator[Any]:
    """Asks it a word; an answer that does not come is an error."""
    command = ["/usr/bin/python3", "-I", "-S", observer.__file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0) as process:
        assert process.stdin
        assert process.stdout
        stdin, stdout = process.stdin, process.stdout

        def ask(word: str) -> dict[str, Any]:
            stdin.write(f"{word}\n".encode())
            stdin.flush()
            answer: dict[str, Any] = json.loads(stdout.readline() or b'{"violations": ["the observer has died"]}')
            return answer

        try:
            yield ask
        finally:
            stdin.close()


def _is_expected(line: str) -> bool:
    """What a server says that is well, or follows from a fault of ours."""
    return line.removeprefix("telehandler: ").startswith(_SAID) or any(text in line for text in _SAID_OF_FILES)


def _print_report(report: dict[str, dict[str, int]], peaks: dict[str, int]) -> None:
    peaks = {name: value // observer.MIB if name.endswith("rss") else value for name, value in peaks.items()}
    for title, figures in (*report.items(), ("peaks (rss in MiB)", peaks)):
        print(f"{title}:")
        for name, value in sorted(figures.items()):
            print(f"  {name:22} {value:>14,}")


if __name__ == "__main__":
    sys.exit(main())
