"""Restarts by themselves: what becomes of starts that fail, of a stop meanwhile, and of the pauses."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest

from helper.wire import Stage
from telehandler.common.errors import Exhausted, HelperRefused, HelperUnavailable, ServerEnding
from telehandler.common.states import Reason, State
from telehandler.jobs import restarts as module
from telehandler.jobs.job import Job, ended_job
from telehandler.jobs.lifecycle import Lifecycle
from telehandler.jobs.records import Record, Records
from telehandler.jobs.request import Life, Request
from telehandler.jobs.restarts import ERROR, Restarts

FIRST = "4f1c2a9e-0b1d-4c52-9d0a-3f6f1f5b7a10"
REQUEST = Request("ann", [b"false"], {}, b"", {}, "", life=Life(max_restarts=0))
DEADLINE_S = 30


class _World:
    """Records and a lifecycle without a helper; a start gives what `starts` says, then jobs that run."""

    def __init__(self, directory: Path) -> None:
        self.records = Records(directory)
        self.restarts = Restarts(self.records, Lifecycle(directory, self.records, cast("Any", None)))
        self.restarts.start = self.start
        self.failures: list[Exception] = []
        self.requests: list[Request] = []
        self.times: list[float] = []
        self.started = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    def job(self, uuid: str, state: State = State.FAILED, **fields: Any) -> Job:
        reason = Reason.NONE if state is State.RUNNING else Reason.EXITED
        record = Record(uuid, "ann", [b"false"], state, reason, max_restarts=0, **fields)
        self.records.save(record)
        return ended_job(record) if state is not State.RUNNING else Job(record, None)

    async def start(self, request: Request) -> Job:
        self.requests.append(request)
        self.times.append(time.monotonic())
        self.started.set()
        await self.go_on.wait()
        if self.failures:
            raise self.failures.pop(0)
        life = request.life
        uuid = f"00000000-0000-4000-8000-{life.restarts:012}"
        return self.job(uuid, State.RUNNING, restart_of=life.restart_of, restarts=life.restarts)

    def begin(self) -> Job:
        job = self.job(FIRST)
        self.restarts.begin(FIRST, REQUEST)
        self.restarts.follow(job, REQUEST)
        return job


InWorld = Callable[[Callable[[_World], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def in_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InWorld:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)

    def run(work: Callable[[_World], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            async with asyncio.timeout(DEADLINE_S):
                await work(_World(tmp_path))

        asyncio.run(main())

    return run


@pytest.mark.parametrize(
    "failure",
    [
        Exhausted("full"), HelperUnavailable("dead"), HelperRefused(Stage.CAPACITY, 11, "too many"),
        OSError(28, "no space"),
    ],
)  # fmt: skip
def test_a_start_that_fails_for_a_while_is_tried_again_as_the_same_run(in_world: InWorld, failure: Exception) -> None:
    async def work(world: _World) -> None:
        world.failures = [failure] * 3
        job = world.begin()
        await world.restarts.next_run(job)
        assert job.record.next_run
        assert {request.request_id for request in world.requests} == {world.requests[0].request_id}
        assert len(world.requests) == 4
        for number, (before, after) in enumerate(zip(world.times, world.times[1:], strict=False), 1):
            assert after - before >= 0.01 * 2**number * 0.95
        assert [(first, newest) for first, newest, _ in world.records.restarts()] == [(FIRST, job.record.next_run)]

    in_world(work)


@pytest.mark.parametrize("failure", [HelperRefused(Stage.EXEC, 2, "no such file"), ServerEnding("it ends")])
def test_a_start_that_fails_for_good_is_the_last(in_world: InWorld, failure: Exception) -> None:
    async def work(world: _World) -> None:
        world.failures = [failure]
        job = world.begin()
        await world.restarts.next_run(job)
        record = world.records.get(FIRST)
        assert record
        assert (record.next_run, record.restart_ns) == ("", 0)
        assert record.extra[ERROR] == f"it is not started again: {failure}"
        assert (world.records.restarts(), len(world.requests)) == ([], 1)

    in_world(work)


def test_a_stop_while_the_next_run_is_started_stops_that_one(in_world: InWorld) -> None:
    async def work(world: _World) -> None:
        stopped: list[str] = []

        async def stop(job: Job, number: int, grace_s: float) -> None:
            stopped.append(job.record.uuid)

        world.restarts._lifecycle.stop = stop  # type: ignore[method-assign]
        world.go_on.clear()
        job = world.begin()
        await world.started.wait()
        caller = asyncio.create_task(world.restarts.stop(job, 15, 0))
        await asyncio.sleep(0)
        caller.cancel()  # a client that has gone
        world.go_on.set()
        await asyncio.wait([caller])
        await world.restarts.next_run(job)
        while not stopped:
            await asyncio.sleep(0)
        assert stopped == [job.record.next_run] != [""]
        assert world.records.restarts() == []

    in_world(work)


@pytest.mark.parametrize("state", [State.COMPLETED, State.STOPPED])
def test_only_failures_are_started_again(in_world: InWorld, state: State) -> None:
    async def work(world: _World) -> None:
        job = world.job(FIRST, state)
        world.restarts.begin(FIRST, REQUEST)
        world.restarts.follow(job, REQUEST)
        await world.restarts.next_run(job)
        assert (world.requests, world.records.restarts()) == ([], [])

    in_world(work)


def test_a_long_run_has_the_pauses_begin_anew(in_world: InWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause of a job that was resumed after ten restarts is the longest; after a good run, the first."""
    monkeypatch.setattr(module, "MAX_PAUSE_S", 1000.0)
    monkeypatch.setattr(module, "GOOD_RUN_S", 0.0)

    async def work(world: _World) -> None:
        job = world.job(FIRST, restarts=20)
        world.restarts.begin(FIRST, REQUEST)
        world.restarts.follow(job, REQUEST)
        began = time.monotonic()
        await world.restarts.next_run(job)
        assert world.requests[0].life.restarts == 21
        assert time.monotonic() - began < 0.01 * 2**10 / 2

    in_world(work)


def test_what_was_removed_while_it_waited_is_not_written_again(in_world: InWorld) -> None:
    async def work(world: _World) -> None:
        job = world.begin()
        world.records.delete(FIRST)  # as too old
        await world.restarts.next_run(job)
        assert world.records.get(FIRST) is None
        assert world.requests[0].life.restart_of == FIRST

    in_world(work)


def test_a_restart_of_no_record_is_forgotten_by_the_next_api(in_world: InWorld) -> None:
    async def work(world: _World) -> None:
        world.restarts.begin(FIRST, REQUEST)
        world.restarts.resume()
        assert world.records.restarts() == []

    in_world(work)
