"""S52: a stop that is asked for again and again, by clients that do not wait, is one task of the server."""

import asyncio
import time
from pathlib import Path
from typing import Any, cast

from telehandler.jobs.job import STOP_BY, Job
from telehandler.jobs.lifecycle import Lifecycle
from telehandler.jobs.records import Record


def test_s52_many_stops_are_one_task_and_the_earliest_counts() -> None:
    class Recorder(Lifecycle):
        killed = 0.0

        async def kill(self, job: Job) -> None:
            self.killed = time.monotonic()

    async def run() -> float:
        lifecycle = Recorder(Path("/nonexistent"), cast("Any", None), cast("Any", None))
        job = Job(Record("uuid", "owner", [b"true"]), None)
        began = time.monotonic_ns()
        job.record.extra[STOP_BY] = str(began + 3600 * 10**9)
        before = len(asyncio.all_tasks())
        first = lifecycle.kill_when_due(job)
        for _ in range(500):
            assert lifecycle.kill_when_due(job) is first
            await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == before + 1
        job.record.extra[STOP_BY] = str(began)  # one without a grace
        assert lifecycle.kill_when_due(job) is first
        await asyncio.wait_for(first, 5)
        assert lifecycle.kill_when_due(job) is not first  # the kill may have failed: it can be asked for again
        return lifecycle.killed

    assert asyncio.run(run()) > 0
