"""R8: stop ends the whole tree, however it hides; it may come from many, and race the job's own end."""

import os
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from support.checkout import ROOT
from support.processes import alive, processes_with
from support.raw_client import SERVICE, RawClient
from support.servers import Server
from support.state_fixtures import output_directory
from support.wait import wait_until

from telehandler.pb import telehandler_pb2 as pb

DAEMON = """
import os, signal, time
MARK = "{mark}"
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
{code}
"""
# What each does before it tells that it is up; then it, and what it made, run for good.
PROGRAMS = {
    "double-forked daemon": "if os.fork() == 0:\n os.setsid()\n if os.fork(): os._exit(0)\n os.chdir('/')",
    "sessions of their own": "for _ in range(5):\n if os.fork() == 0:\n  os.setsid()\n  break",
    "ignores all": "pass",
    "stops itself": "os.write(1, b'up\\n'); os.kill(os.getpid(), signal.SIGSTOP)",
    "stopped children": "if os.fork() == 0:\n os.kill(os.getpid(), signal.SIGSTOP)",
    "a thread each": "import threading\n[threading.Thread(target=time.sleep, args=(1000,)).start() for _ in range(9)]",
}


@pytest.fixture(scope="module")
def caller(server: Server) -> Iterator[RawClient]:
    with RawClient(server, server.ssl / "client") as caller:
        yield caller


def stop(caller: RawClient, name: str, grace_s: float) -> str:
    request = pb.StopJobRequest(name=name)
    request.grace.FromNanoseconds(int(grace_s * 1e9))
    return caller.call(f"/{SERVICE}/StopJob", request).code.name


def _output(server: Server, name: str) -> bytes:
    return (output_directory(server, name) / "output").read_bytes()


@pytest.mark.parametrize("kind", PROGRAMS)
def test_r8_stop_ends_the_whole_tree(server: Server, caller: RawClient, kind: str) -> None:
    mark = f"tree-{os.getpid()}-{kind.replace(' ', '-')}"
    code = f"{PROGRAMS[kind]}\nos.write(1, b'up\\n')\ntime.sleep(1000)"
    name = caller.start("/usr/bin/python3", "-ISc", DAEMON.format(mark=mark, code=code)).name
    wait_until("it is up", lambda: b"up\n" in _output(server, name))
    pids = processes_with(mark)
    assert pids
    assert stop(caller, name, 0.2) == "OK"
    assert not [pid for pid in pids if alive(pid)]
    assert not processes_with(mark)
    assert (caller.job_status(name, wait=True).state, caller.job_status(name, wait=True).signal) == (
        pb.JOB_STATE_STOPPED,
        signal.SIGKILL,
    )


def test_r8_a_stop_goes_on_when_who_asked_has_gone(server: Server, caller: RawClient) -> None:
    code = "os.write(1, b'up\\n')\ntime.sleep(1000)"
    name = caller.start("/usr/bin/python3", "-ISc", DAEMON.format(mark="left", code=code)).name
    wait_until("it is up", lambda: b"up\n" in _output(server, name))
    command = server.client_command("stop", "-t", "2", name)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client:
        # A stop is recorded before the signal is sent.
        wait_until("it is being stopped", lambda: _stop_by(server, name))
        client.kill()
    status = caller.job_status(name, wait=True)
    assert (status.state, status.signal) == (pb.JOB_STATE_STOPPED, signal.SIGKILL)


def _stop_by(server: Server, name: str) -> bool:
    with closing(sqlite3.connect(f"file:{server.state}/jobs.sqlite3?mode=ro", uri=True)) as database:
        query = "SELECT json_extract(record, '$.extra.stop_by_ns') FROM job WHERE uuid = ?"
        return bool(database.execute(query, (name.rpartition("/")[2],)).fetchone()[0])


def test_r8_stop_by_many_at_once_is_one_stop(server: Server, caller: RawClient) -> None:
    script = "trap 'echo asked' TERM; echo up; while :; do read -t 0.05 x <>/tmp/f; done"
    name = caller.start("bash", "-c", f"mkfifo /tmp/f; {script}").name
    wait_until("it is up", lambda: _output(server, name) == b"up\n")
    with ThreadPoolExecutor(20) as pool:
        assert set(pool.map(lambda number: stop(caller, name, 0.5 + number / 50), range(20))) == {"OK"}
    before = caller.job_status(name, wait=True)
    assert (before.state, before.signal) == (pb.JOB_STATE_STOPPED, signal.SIGKILL)
    assert stop(caller, name, 1) == "OK"
    assert caller.job_status(name, wait=True) == before


def test_r8_stop_that_races_the_end_gives_one_final_state(server: Server, caller: RawClient) -> None:
    """The job ends while it is stopped: what it says of itself and what its record says are the same, for good."""
    for number in range(40):
        name = caller.start("sh", "-c", "exit 3").name
        ready = threading.Barrier(3)
        answers: list[str] = []

        def act(ready: threading.Barrier, name: str, answers: list[str]) -> None:
            ready.wait()
            answers.append(stop(caller, name, 0))

        threads = [threading.Thread(target=act, args=(ready, name, answers)) for _ in range(2)]
        for thread in threads:
            thread.start()
        ready.wait()
        first = caller.job_status(name, wait=True)
        for thread in threads:
            thread.join()
        assert answers == ["OK"] * 2
        assert caller.job_status(name, wait=True) == first
        assert first.state in (pb.JOB_STATE_STOPPED, pb.JOB_STATE_FAILED), number
        assert first.exit_code in (3, 137)
        assert first.state == pb.JOB_STATE_STOPPED or first.exit_code == 3
