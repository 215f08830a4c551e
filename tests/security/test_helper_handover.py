"""The helper when an api does not read (S32), when the next api takes its jobs over, and at SHUTDOWN."""

import os
import time
from contextlib import suppress
from pathlib import Path

import pytest
from support.helper_driver import TAG, Helper
from support.process_usage import rss_bytes
from support.processes import live_processes_with
from support.wait import wait_until

from helper.wire import Type

pytestmark = pytest.mark.usefixtures("as_root")


def test_s32_the_queue_towards_an_api_that_does_not_read_is_bounded(policy: Path) -> None:
    with Helper(policy) as helper:
        helper.sock.setblocking(False)
        sent = 0
        with suppress(BlockingIOError):
            while True:
                helper.send(Type.KILL, handle=99)
                sent += 1
        memory = rss_bytes(helper.process.pid)
        assert memory < 64 << 20
        # Each has an answer once we read, in both sockets' buffers and the queue: none was dropped.
        helper.sock.settimeout(30)
        for _ in range(sent):
            assert helper.receive()[0].type is Type.ERROR


def test_hello_again_hands_the_live_jobs_over(policy: Path) -> None:
    with Helper(policy) as helper:
        ended, live = helper.start("sh", "-c", "echo early; exit 4"), helper.start("sh", "-c", "echo late; sleep 100")
        helper.exited(ended)
        helper.send(Type.HELLO, 50)
        welcome, _ = helper.receive()
        assert (welcome.type, welcome.request_id, welcome.fields["live_jobs"]) == (Type.WELCOME, 50, 2)
        adopted = [helper.receive() for _ in range(2)]
        assert [message.fields["handle"] for message, _ in adopted] == [ended.handle, live.handle]
        assert {message.fields["tag"] for message, _ in adopted} == {TAG}
        again, _ = helper.receive()
        assert (again.type, again.fields["exit_code"]) == (Type.EXITED, 4)
        # The pipes are the same: nothing was read, nothing is lost.
        assert os.read(adopted[0][1][0], 100) == b"early\n"
        assert os.read(adopted[1][1][0], 100) == b"late\n"
        assert helper.request(Type.KILL, handle=live.handle).type is Type.DONE
        assert helper.exited(live)["signal"] == 9
        for _, fds in adopted:
            for fd in fds:
                os.close(fd)
        ended.close()
        live.close()


def test_s32_an_api_that_stops_reading_does_not_stop_the_reaping(policy: Path) -> None:
    with Helper(policy) as helper:
        jobs = [helper.start("sleep", "100") for _ in range(5)]
        pids = [
            int(pid)
            for job in jobs
            for pid in (helper.cgroup / f"job-{job.handle}" / "cgroup.procs").read_text().split()
        ]
        helper.sock.setblocking(False)
        try:
            while True:  # requests whose replies are not read, until the helper reads no more
                helper.send(Type.KILL, handle=99)
        except BlockingIOError:
            pass
        for pid in pids:
            with suppress(ProcessLookupError):  # it went with its init
                os.kill(pid, 9)
        wait_until("all cgroups are removed", lambda: not list(helper.cgroup.glob("job-*")))
        helper.sock.settimeout(30)
        end = time.monotonic() + 30
        while len(helper.events) < 5 and time.monotonic() < end:
            message, _ = helper.receive()
            helper.events += [message] if message.type is Type.EXITED else []
        assert len(helper.events) == 5
        for job in jobs:
            job.close()


def test_shutdown(policy: Path) -> None:
    with Helper(policy) as helper:
        helper.start("sleep", "2.6457513")
        assert helper.request(Type.SHUTDOWN).type is Type.DONE
        assert helper.end()[0] == 0
        assert not helper.cgroup.exists()
        assert not live_processes_with("2.6457513")
