"""StartJob on a warm connection beside the helper alone and a bare call, with many live jobs, and many at once."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from support.helper_driver import Helper
from support.policies import own_uids, policy_text, write_policy
from support.raw_client import RawClient
from support.servers import Server

from bench import starts
from bench.ground import Ground
from helper.wire import Type


def run(ground: Ground, rounds: int, live: int, burst: int) -> dict[str, Any]:
    """Times are medians of `rounds`, in turns; `live` jobs that sleep; `burst` starts that are asked for at once."""
    most = live + burst + 100
    text = policy_text(f"max_jobs = {most}\nstarts_per_second = 100000\n")
    served, alone = (write_policy(ground.place, name, text + own_uids(most)) for name in ("starts", "alone"))
    with (
        ground.server(served, "--max-jobs-per-user", str(most)) as server,
        Helper(alone) as helper,
        RawClient(server, server.ssl / "client") as caller,
    ):
        ended = caller.start("true").name
        ways: dict[str, Callable[[], float]] = {
            "start": lambda: starts.ms(lambda: caller.start("true")),
            "bare_call": lambda: starts.ms(lambda: caller.status(ended)),
            "helper_alone": lambda: _helper_start_ms(helper),
        }
        result = {f"{name}_ms": found for name, found in starts.medians(ways, rounds).items()}
        result |= {f"{name}_s": found for name, found in _rates(server, helper, rounds).items()}
        for _ in range(live):
            caller.start("sleep", "1000")
        result |= {"live": live, "start_among_live_ms": starts.medians({"start": ways["start"]}, rounds)["start"]}
        result |= _burst(caller, burst)
    print(
        f"  StartJob {result['start_ms']:.1f} ms (helper alone {result['helper_alone_ms']:.1f}, a bare call "
        f"{result['bare_call_ms']:.1f}), among {live} live jobs {result['start_among_live_ms']:.1f}; "
        f"{starts.IN_FLIGHT} in flight: {result['server_rate_s']:.0f} a second (helper {result['helper_rate_s']:.0f}); "
        f"{burst} at once: the last after {result['burst_s']:.1f} s",
        flush=True,
    )
    return result


def _helper_start_ms(helper: Helper) -> float:
    """To STARTED, as StartJob waits for it."""
    began = time.perf_counter()
    job = helper.start("true")
    taken = (time.perf_counter() - began) * 1000
    helper.exited(job)
    job.close()
    helper.request(Type.RELEASE, handle=job.handle)
    helper.events.clear()
    return taken


def _rates(server: Server, helper: Helper, rounds: int) -> dict[str, float]:
    """Starts a second with IN_FLIGHT under way, from clients of their own; and of the helper, to their ends."""
    callers = [RawClient(server, server.ssl / "client") for _ in range(starts.IN_FLIGHT)]
    with ThreadPoolExecutor(starts.IN_FLIGHT) as pool:
        list(pool.map(lambda caller: caller.start("true"), callers))
        began = time.perf_counter()
        list(pool.map(lambda caller: [caller.start("true") for _ in range(rounds)], callers))
        rate = starts.IN_FLIGHT * rounds / (time.perf_counter() - began)
    for caller in callers:
        caller.channel.close()
    return {"server_rate": rate, "helper_rate": starts.rate(helper, starts.IN_FLIGHT * rounds)}


def _burst(caller: RawClient, count: int) -> dict[str, Any]:
    """From one user, on one connection: how long the first and the last take; all must start."""
    began = time.perf_counter()

    def start(_: int) -> float:
        caller.start("sleep", "1000")
        return time.perf_counter() - began

    with ThreadPoolExecutor(count) as pool:
        taken = sorted(pool.map(start, range(count)))
    return {"burst": count, "burst_first_s": taken[0], "burst_s": taken[-1]}
