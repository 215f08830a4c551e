"""The helper when the next api takes its jobs over, and at SHUTDOWN."""

import os
from pathlib import Path

import pytest
from support.helper_driver import TAG, Helper
from support.processes import live_processes_with

from helper.wire import Type

pytestmark = pytest.mark.usefixtures("as_root")


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
        assert (again.type, again.request_id, again.fields["exit_code"]) == (Type.EXITED, 0, 4)
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


def test_shutdown(policy: Path) -> None:
    with Helper(policy) as helper:
        helper.start("sleep", "2.6457513")
        assert helper.request(Type.SHUTDOWN).type is Type.DONE
        assert helper.end()[0] == 0
        assert not helper.cgroup.exists()
        assert not live_processes_with("2.6457513")
