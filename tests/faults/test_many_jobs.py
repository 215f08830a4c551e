"""R6: thousands of short jobs and hundreds at once leave nothing: no fd, zombie, cgroup, thread or memory.

In full, 10,000 and 1,000: `make test-full`.
"""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from support.helper_driver import Helper
from support.policies import policy_text, write_policy
from support.process_usage import ProcessUsage, process_usage, rss_bytes
from support.raw_client import SERVICE, RawClient
from support.servers import Server
from support.wait import wait_until

from helper.wire import Type
from telehandler.pb import telehandler_pb2 as pb

pytestmark = pytest.mark.usefixtures("as_root")
FULL = bool(os.environ.get("TELEHANDLER_FULL"))
SHORT_JOBS, SERVED_JOBS, AT_ONCE = (10_000, 10_000, 1_000) if FULL else (1_000, 300, 300)
KEPT = 50
MAX_GROWTH = 8 << 20  # of the api: what the allocators of grpc and Python keep, whatever the number of jobs
MAX_HELPER_GROWTH = 1 << 20


@pytest.fixture(scope="module")
def wide_policy(place: Path) -> Path:
    return write_policy(place, "wide", policy_text("max_jobs = 2000\nstarts_per_second = 100000\n"))


def test_r6_many_short_jobs_leave_nothing_in_the_helper(wide_policy: Path) -> None:
    with Helper(wide_policy) as helper:
        pid = helper.process.pid
        for _ in range(50):
            helper.run("true")
        before, size = process_usage(pid), rss_bytes(pid)
        for number in range(SHORT_JOBS):
            job = helper.start("true" if number % 7 else "false")
            assert helper.exited(job)["exit_code"] == (0 if number % 7 else 1)
            assert helper.request(Type.RELEASE, handle=job.handle).type is Type.DONE
            helper.events.clear()
            job.close()
        assert process_usage(pid) == before
        assert rss_bytes(pid) - size < MAX_HELPER_GROWTH
        assert not list(helper.cgroup.glob("job-*"))


def test_r6_many_at_once_leave_nothing_in_the_helper(wide_policy: Path) -> None:
    with Helper(wide_policy) as helper:
        pid = helper.process.pid
        helper.run("true")
        before = process_usage(pid)
        jobs = [helper.start("sleep", "1000") for _ in range(AT_ONCE)]
        assert len(list(helper.cgroup.glob("job-*"))) == AT_ONCE
        assert process_usage(pid).children == AT_ONCE
        for job in jobs:
            assert helper.request(Type.KILL, handle=job.handle).type is Type.DONE
        for job in jobs:  # not finish: select takes no fd from 1024 up
            assert helper.exited(job)["killed"] == 1
            assert helper.request(Type.RELEASE, handle=job.handle).type is Type.DONE
            job.close()
        assert process_usage(pid) == before
        assert not list(helper.cgroup.glob("job-*"))


def test_r6_many_jobs_leave_nothing_in_the_server(make_server: Callable[..., Server], wide_policy: Path) -> None:
    """Short ones one after the other, from several users' threads; then as many as there may be at once."""
    server = make_server(
        policy=wide_policy,
        options=("--keep-jobs", str(KEPT), "--max-calls-per-user", "4096", "--max-jobs-per-user", "4096"),
    )
    pids = server.children()
    with RawClient(server, server.ssl / "client") as caller, ThreadPoolExecutor(8) as pool:
        _short(caller, pool, 100)
        _settled(server)
        before = {name: process_usage(pid) for name, pid in pids.items()}
        sizes = {name: rss_bytes(pid) for name, pid in pids.items()}
        _short(caller, pool, SERVED_JOBS)
        _nothing_left(server, before)
        _not_grown(server, sizes)
        # Twice: what so many at once need, the allocators keep, but no more of it the second time.
        for wave in range(2):
            sizes = {name: rss_bytes(pid) for name, pid in pids.items()}
            names = list(pool.map(lambda _: caller.start("sleep", "1000").name, range(AT_ONCE)))
            assert len(_cgroups(server)) == AT_ONCE
            assert {process_usage(pid).zombies for pid in pids.values()} == {0}
            for answer in pool.map(lambda name: _stop(caller, name), names):
                assert answer == "OK"
            _nothing_left(server, before)
            if wave:
                _not_grown(server, sizes)
    assert server.stop() == 0


def _short(caller: RawClient, pool: ThreadPoolExecutor, count: int) -> None:
    def one(number: int) -> int:
        name = caller.start("sh", "-c", f"echo {number}; exit {number % 5}").name
        answer = caller.call(f"/{SERVICE}/GetJobStatus", pb.GetJobStatusRequest(name=name, wait=True))
        # One that has ended may be gone already: only so many are kept.
        return pb.JobStatus.FromString(answer.bodies[0]).exit_code if answer.bodies else number % 5

    assert list(pool.map(one, range(count))) == [number % 5 for number in range(count)]


def _stop(caller: RawClient, name: str) -> str:
    request = pb.StopJobRequest(name=name)
    request.grace.seconds = 0
    return caller.call(f"/{SERVICE}/StopJob", request).code.name


def _cgroups(server: Server) -> list[Path]:
    return list(server.cgroup.glob("job-*"))


def _settled(server: Server) -> None:
    wait_until("only so many are kept", lambda: len(list((server.state / "jobs").iterdir())) == KEPT)
    wait_until("no cgroup is left", lambda: not _cgroups(server))


def _nothing_left(server: Server, before: dict[str, ProcessUsage]) -> None:
    _settled(server)
    for name, pid in server.children().items():
        wait_until(f"{name} holds no more than it held", partial(_no_more, pid, before[name]))


def _not_grown(server: Server, sizes: dict[str, int]) -> None:
    growth = {name: rss_bytes(pid) - sizes[name] for name, pid in server.children().items()}
    print(f"growth in bytes: {growth}", file=sys.stderr)
    assert growth["api"] < MAX_GROWTH
    assert growth["helper"] < MAX_HELPER_GROWTH


def _no_more(pid: int, before: ProcessUsage) -> bool:
    now = process_usage(pid)
    # grpc and asyncio keep threads that they made, up to a bound of their own.
    return now.within(before._replace(threads=before.threads + 16))
