"""A start that does not get on is ended by a deadline, and can be ended before (S50)."""

import errno
import fcntl
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.cgroups import cgroup_root
from support.checkout import ROOT
from support.helper_copy import helper_copy
from support.helper_driver import Helper
from support.policies import policy_text, write_policy
from support.processes import alive
from support.servers import Server
from support.wait import wait_until

from helper.jobs import START_S
from helper.wire import Stage, Type
from telehandler.jobs.helper_link import REPLY_TIMEOUT_S

pytestmark = pytest.mark.usefixtures("as_root")
PROGRAM = "/mnt/hanging"
LEASE_BREAK_S = int(Path("/proc/sys/fs/lease-break-time").read_text())


@pytest.fixture
def hanging(place: Path) -> Iterator[Path]:
    """A policy with which exec of PROGRAM waits, as on a disk that does not answer: we hold a lease on it, fcntl(2)."""
    assert LEASE_BREAK_S > 30, "the test needs a lease that is held for longer than any bound of ours"
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # how the kernel asks for it back
    directory = place / "a disk that does not answer"
    directory.mkdir()
    path = directory / "hanging"
    path.write_bytes(Path("/bin/true").read_bytes())
    path.chmod(0o755)
    with path.open("rb") as file:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield write_policy(place, "hanging", policy_text(f'[profile.host]\nread_only = ["{directory}:/mnt"]\n'))
        with suppress(OSError):
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    shutil.rmtree(directory)
    signal.signal(signal.SIGIO, before)


def _begin(helper: Helper) -> list[int]:
    """A start that hangs in exec: the host's pids of its processes."""
    helper.send_start(PROGRAM)
    wait_until("init and main are there", lambda: len(_processes(helper.cgroup)) == 2)
    return _processes(helper.cgroup)


def _processes(cgroup: Path) -> list[int]:
    """Of all jobs."""
    found: list[int] = []
    for procs in cgroup.glob("job-*/cgroup.procs"):
        with suppress(OSError):  # removed meanwhile
            found += map(int, procs.read_text().split())
    return found


def _ended(helper: Helper, pids: list[int]) -> None:
    assert not [pid for pid in pids if alive(pid)]
    assert not (helper.cgroup / "job-1").exists()
    assert helper.run("true").facts["exit_code"] == 0


def test_s50_a_start_that_hangs_is_ended_by_a_deadline(place: Path, hanging: Path) -> None:
    code = helper_copy(place, "hasty", START_S=1.0)
    with Helper(hanging, code=code) as helper:
        began = time.monotonic()
        pids = _begin(helper)
        answer, _ = helper.receive()
        assert 1 <= time.monotonic() - began < 20
        assert (answer.type, answer.request_id) == (Type.ERROR, 7)
        assert (answer.fields["stage"], answer.fields["errno"]) == (Stage.EXEC, errno.ETIMEDOUT)
        assert b"1 s were not enough" in answer.fields["text"][0]
        _ended(helper, pids)


@pytest.mark.parametrize("verb", [Type.CANCEL, Type.KILL])
def test_s50_a_start_that_hangs_can_be_ended(hanging: Path, verb: Type) -> None:
    with Helper(hanging) as helper:
        pids = _begin(helper)
        assert helper.run("true").facts["exit_code"] == 0  # others do not wait for it
        helper.send(verb, 8, **({"start_id": 7} if verb is Type.CANCEL else {"handle": 1}))
        done, failed = helper.receive()[0], helper.receive()[0]
        assert (done.type, done.request_id) == (Type.DONE, 8)
        assert (failed.type, failed.request_id) == (Type.ERROR, 7)
        assert (failed.fields["stage"], failed.fields["errno"]) == (Stage.EXEC, errno.ECANCELED)
        _ended(helper, pids)


def test_s50_what_runs_is_not_cancelled(policy: Path) -> None:
    with Helper(policy) as helper:
        job = helper.start("sleep", "100")
        for start_id in (7, 8):
            answer = helper.request(Type.CANCEL, 9, start_id=start_id)
            assert (answer.type, answer.fields["stage"]) == (Type.ERROR, Stage.NO_SUCH_JOB)
        assert len(helper.host_pids(job)) == 2
        job.close()


def test_s50_a_start_that_hangs_does_not_hold_up_the_servers_end(
    make_server: Callable[..., Server], hanging: Path
) -> None:
    server = make_server(policy=hanging)
    assert server.process is not None
    command = server.client_command("run", "-w", "/", "--", PROGRAM)
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as client:
        cgroup = cgroup_root() / f"telehandler.{server.children()['helper']}"
        wait_until("it hangs", lambda: len(_processes(cgroup)) == 2)
        server.process.terminate()
        assert client.stderr is not None
        said = client.stderr.read()
        assert client.wait(60) in (125, 126)  # by whether exec had begun
        assert b"the start was ended before the command ran: it was cancelled" in said
    assert server.process.wait(30) == 0
    assert "killed" not in server.log_text()


def test_s50_the_deadline_is_shorter_than_the_api_waits() -> None:
    """Else the api would not know whether the job runs."""
    assert START_S < REPLY_TIMEOUT_S
