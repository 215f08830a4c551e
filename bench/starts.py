"""Starts of the helper beside bubblewrap's, interleaved in one run.

/bin/true, from START to EXITED over the helper's own socket, and of `bwrap` with the namespaces that a job has, from
its start to its end. Only the ratios of one run carry over to another machine.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from support.helper_driver import Helper
from support.policies import own_uids, policy_text, write_policy
from support.process_usage import private_kib

from bench.ground import Ground
from helper.wire import Type

BWRAP = (
    "bwrap --unshare-pid --unshare-net --unshare-uts --unshare-ipc --ro-bind / / --proc /proc --dev /dev --tmpfs /tmp "
    "--die-with-parent --new-session --cap-drop ALL /bin/true"
).split()
IN_FLIGHT, RATE_ROUNDS = 8, 4
GAPS_S = (0.0, 0.05)  # back to back, and 50 ms apart


def run(ground: Ground, rounds: int, flight: int, live: int) -> dict[str, Any]:
    """Times are medians of `rounds` in turns; `flight` jobs, IN_FLIGHT of them under way; memory of `live` jobs."""
    text = policy_text("starts_per_second = 100000\n") + own_uids(4096)
    with Helper(write_policy(ground.place, "bwrap", text)) as helper:
        result: dict[str, Any] = {"times": [_compare(helper, rounds, gap_s) for gap_s in GAPS_S]}
        rates = [(rate(helper, flight // RATE_ROUNDS), _bwrap_rate(flight // RATE_ROUNDS)) for _ in range(RATE_ROUNDS)]
        ours, theirs = (statistics.median(rate) for rate in zip(*rates, strict=True))
        result |= {"rate_s": ours, "bwrap_rate_s": theirs, "rate_to_bwrap": ours / theirs}
        result |= _memory(helper, live)
    print(
        f"  {IN_FLIGHT} in flight: {ours:.0f} jobs a second, bwrap {theirs:.0f} ({ours / theirs:.2f}); private KiB: "
        f"a live job {result['job_kib']:.0f}, the helper {result['helper_kib']:.0f}",
        flush=True,
    )
    return result


def _compare(helper: Helper, rounds: int, gap_s: float) -> dict[str, float]:
    ways = {"helper": lambda: ms(lambda: job(helper)), "bwrap": lambda: ms(lambda: _wait(_start_bwrap()))}
    ours, theirs = medians(ways, rounds, gap_s).values()
    print(f"  {gap_s * 1000:.0f} ms apart: {ours:.2f} ms, bwrap {theirs:.2f} ({ours / theirs:.2f})", flush=True)
    return {"gap_ms": gap_s * 1000, "ms": ours, "bwrap_ms": theirs, "ratio": ours / theirs}


def ms(way: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    way()
    return (time.perf_counter() - began) * 1000


def medians(ways: Mapping[str, Callable[[], float]], rounds: int, gap_s: float = 0) -> dict[str, float]:
    """Of what each gives in turns, each after a pause. The first of each does not count: it warms up."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            time.sleep(gap_s)
            taken[name].append(way())
    return {name: statistics.median(found[1:]) for name, found in taken.items()}


def job(helper: Helper) -> None:
    """/bin/true from START to EXITED, and its RELEASE."""
    helper.send_start("/bin/true")
    ended = False
    while not ended:
        message, fds = helper.receive()
        for fd in fds:
            os.close(fd)
        assert message.type in (Type.STARTED, Type.EXITED), message
        ended = message.type is Type.EXITED
    assert helper.request(Type.RELEASE, handle=message.fields["handle"]).type is Type.DONE


def rate(helper: Helper, count: int) -> float:
    """Jobs a second, with IN_FLIGHT of them under way, to their ends."""
    begin, sent, ended, released = time.perf_counter(), 0, 0, 0
    while released < count:
        while sent < min(count, ended + IN_FLIGHT):
            helper.send_start("/bin/true")
            sent += 1
        message, fds = helper.receive()
        for fd in fds:
            os.close(fd)
        assert message.type is not Type.ERROR, message
        released += message.type is Type.DONE
        if message.type is Type.EXITED:
            helper.send(Type.RELEASE, handle=message.fields["handle"])
            ended += 1
    return count / (time.perf_counter() - begin)


def _bwrap_rate(count: int) -> float:
    begin, running = time.perf_counter(), set[int]()
    for _ in range(count):
        if len(running) == IN_FLIGHT:
            running.remove(_wait(-1))
        running.add(_start_bwrap())
    for _ in list(running):
        _wait(-1)
    return count / (time.perf_counter() - begin)


def _start_bwrap() -> int:
    null = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in range(3)]
    return os.posix_spawnp(BWRAP[0], BWRAP, os.environ, file_actions=null)


def _wait(pid: int) -> int:
    pid, status = os.waitpid(pid, 0)
    assert status == 0, f"bwrap ended with {status}"
    return pid


def _memory(helper: Helper, count: int) -> dict[str, float]:
    jobs = [helper.start("/bin/sleep", "1000") for _ in range(count)]
    each = [sum(map(private_kib, helper.host_pids(job))) for job in jobs]
    private = private_kib(helper.process.pid)
    for job in jobs:
        assert helper.request(Type.KILL, handle=job.handle).type is Type.DONE
        helper.finish(job)
    return {"job_kib": statistics.mean(each), "helper_kib": private}
