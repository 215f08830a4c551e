"""Starts of the helper beside bubblewrap's, interleaved in one run: `make bench-starts`.

/bin/true, from START to EXITED over the helper's own socket, and of `bwrap` with the namespaces that a job has, from
its start to its end. Only the ratios of one run carry over to another machine.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from support.helper_driver import Helper
from support.policies import own_uids, policy_text, write_policy

from bench.ground import cpu_model
from helper.wire import Type

_BWRAP = (
    "bwrap --unshare-pid --unshare-net --unshare-uts --unshare-ipc --ro-bind / / --proc /proc --dev /dev --tmpfs /tmp "
    "--die-with-parent --new-session --cap-drop ALL /bin/true"
).split()
_IN_FLIGHT = 8
MOST_OF_BWRAP, LEAST_RATE, MOST_JOB_KIB, MOST_HELPER_KIB = 0.7, 1.2, 300, 8192


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.starts", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="starts of each, back to back and apart")
    parser.add_argument("--apart-ms", type=float, default=50)
    parser.add_argument("--flight", type=int, default=400, help=f"jobs with {_IN_FLIGHT} in flight")
    parser.add_argument("--live", type=int, default=20, help="jobs whose memory is measured")
    options = parser.parse_args()
    print(f"{cpu_model()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    with _helper() as helper:
        for gap_s in (0.0, options.apart_ms / 1000):
            _compare(helper, options.rounds, gap_s)
        rounds = 4
        rates = [
            (_rate(helper, options.flight // rounds), _bwrap_rate(options.flight // rounds)) for _ in range(rounds)
        ]
        ours, theirs = (statistics.median(rate) for rate in zip(*rates, strict=True))
        _tell(f"{_IN_FLIGHT} in flight: {ours:.0f} jobs/s, bwrap {theirs:.0f}", ours / theirs, LEAST_RATE, True)
        _memory(helper, options.live)
    return 0


@contextmanager
def _helper() -> Iterator[Helper]:
    with tempfile.TemporaryDirectory(prefix="telehandler-bench-", dir="/var/tmp") as name:
        text = policy_text("starts_per_second = 100000\n") + own_uids(4096)
        with Helper(write_policy(Path(name), "policy", text)) as helper:
            yield helper


def _compare(helper: Helper, rounds: int, gap_s: float) -> None:
    times: dict[str, list[float]] = {"helper": [], "bwrap": []}
    ways: dict[str, Callable[[], object]] = {"helper": lambda: _job(helper), "bwrap": lambda: _wait(_start_bwrap())}
    for _ in range(rounds):
        for name, way in ways.items():
            time.sleep(gap_s)
            begin = time.perf_counter()
            way()
            times[name].append((time.perf_counter() - begin) * 1000)
    ours, theirs = (statistics.median(taken) for taken in times.values())
    text = f"{gap_s * 1000:.0f} ms apart: p50 {ours:.2f} ms, bwrap {theirs:.2f} ms"
    _tell(text, ours / theirs, MOST_OF_BWRAP, False)


def _job(helper: Helper) -> None:
    helper.send_start("/bin/true")
    ended = False
    while not ended:
        message, fds = helper.receive()
        for fd in fds:
            os.close(fd)
        assert message.type in (Type.STARTED, Type.EXITED), message
        ended = message.type is Type.EXITED
    assert helper.request(Type.RELEASE, handle=message.fields["handle"]).type is Type.DONE


def _rate(helper: Helper, count: int) -> float:
    """Jobs a second."""
    begin, sent, ended, released = time.perf_counter(), 0, 0, 0
    while released < count:
        while sent < min(count, ended + _IN_FLIGHT):
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
        if len(running) == _IN_FLIGHT:
            running.remove(_wait(-1))
        running.add(_start_bwrap())
    for _ in list(running):
        _wait(-1)
    return count / (time.perf_counter() - begin)


def _start_bwrap() -> int:
    null = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in range(3)]
    return os.posix_spawnp(_BWRAP[0], _BWRAP, os.environ, file_actions=null)


def _wait(pid: int) -> int:
    pid, status = os.waitpid(pid, 0)
    assert status == 0, f"bwrap ended with {status}"
    return pid


def _memory(helper: Helper, count: int) -> None:
    jobs = [helper.start("/bin/sleep", "1000") for _ in range(count)]
    each = [sum(_memory_kib(pid)[0] for pid in helper.host_pids(job)) for job in jobs]
    _tell("private memory of a live job, its init included, KiB", statistics.mean(each), MOST_JOB_KIB, False)
    private, resident = _memory_kib(helper.process.pid)
    _tell(f"private memory of the helper ({resident} KiB resident), KiB", private, MOST_HELPER_KIB, False)
    for job in jobs:
        assert helper.request(Type.KILL, handle=job.handle).type is Type.DONE
        helper.finish(job)


def _memory_kib(pid: int) -> tuple[int, int]:
    """Private and resident memory: proc(5), smaps_rollup."""
    rows = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    sizes = {row[0]: int(row[1]) for row in rows if row[-1] == "kB"}
    return sizes["Private_Clean:"] + sizes["Private_Dirty:"], sizes["Rss:"]


def _tell(what: str, found: float, bar: float, least: bool) -> None:
    holds = found >= bar if least else found <= bar
    print(
        f"{'holds ' if holds else 'MISSED'}  {what}: {found:.2f} (at {'least' if least else 'most'} {bar:g})",
        flush=True,
    )


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("bench: it needs root, for the helper: sudo make bench-starts")
    try:
        sys.exit(main())
    except (AssertionError, FileNotFoundError) as error:
        sys.exit(f"bench: {error}")
