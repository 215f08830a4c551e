"""The api is killed again and again while jobs write: nothing of their output or of their ends is lost (R1)."""

import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

from support.checkout import ROOT
from support.library_client import Watcher, client_of
from support.processes import alive
from support.servers import Server, free_address
from support.state_fixtures import chown_to_server
from support.wait import wait_until

from telehandler.client.connection import Client
from telehandler.output.log import Stream
from telehandler.pb import telehandler_pb2 as pb

JOBS, BY_COMMAND = 50, 5  # the last ones are watched by `client watch`, the others by its library, in threads
BLOCKS, KILLS = 240, 10
SEED = 20_241
# Writes blocks that the test knows: of odd sizes, to both streams, paced over several deaths of the api.
WRITER = r"""
import hashlib, os, sys, time
number, blocks = int(sys.argv[1]), int(sys.argv[2])
for block in range(blocks):
    text = hashlib.sha256(b"%d %d" % (number, block)).digest() * (1 + (number * block) % 97)
    fd = 1 + block % 2
    while text:
        text = text[os.write(fd, text):]
    time.sleep(0.04)
sys.exit(number)
"""


class Expected(NamedTuple):
    stdout: str
    stderr: str


def expected(number: int) -> Expected:
    hashes = hashlib.sha256(), hashlib.sha256()
    for block in range(BLOCKS):
        hashes[block % 2].update(hashlib.sha256(b"%d %d" % (number, block)).digest() * (1 + (number * block) % 97))
    return Expected(*(one.hexdigest() for one in hashes))


def seen(watcher: Watcher) -> Expected:
    return Expected(*(watcher.hashes[stream].hexdigest() for stream in (Stream.STDOUT, Stream.STDERR)))


def start(client: Client, number: int) -> str:
    argv = ["/usr/bin/python3", "-I", "-S", "-c", WRITER, str(number), str(BLOCKS)]
    return client.start(pb.StartJobRequest(argv=[os.fsencode(word) for word in argv]))


def test_r1_fifty_jobs_write_while_the_api_is_killed_again_and_again(
    make_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = make_server(listen=free_address())
    client = client_of(server)
    names = [start(client, number) for number in range(JOBS)]
    client.close()
    watchers = [Watcher(server, name) for name in names[:-BY_COMMAND]]
    commands = []
    for number, name in list(enumerate(names))[-BY_COMMAND:]:
        with open(tmp_path / f"{number}.out", "wb") as out, open(tmp_path / f"{number}.err", "wb") as err:
            command = server.client_command("watch", name)
            commands.append(subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err))
    files = [tmp_path / f"{number}.out" for number in range(JOBS - BY_COMMAND, JOBS)]
    wait_until("the commands are connected", lambda: all(file.stat().st_size for file in files))
    wait_until("the watchers are connected", lambda: all(watcher.bytes for watcher in watchers))
    dice, kills = random.Random(SEED), 0
    end = time.monotonic() + 120
    while any(watcher.is_alive() for watcher in watchers) or any(process.poll() is None for process in commands):
        assert time.monotonic() < end, "the watchers have not ended"
        if kills < KILLS and _running(server) and (api := server.children().get("api")):
            time.sleep(dice.uniform(0.1, 0.6))  # the fault's own pace
            os.kill(api, signal.SIGKILL)
            kills += 1
        time.sleep(0.01)
    assert kills == KILLS  # all of them while jobs wrote: these pace themselves
    for number, watcher in enumerate(watchers):
        assert (watcher.error, seen(watcher)) == ("", expected(number)), number
        assert [(one.exit_code, one.signal) for one in watcher.ends] == [(number, 0)]
    for number, process in zip(range(JOBS - BY_COMMAND, JOBS), commands, strict=True):
        assert process.returncode == number, (tmp_path / f"{number}.err").read_bytes()[-300:]
        found = hashlib.sha256((tmp_path / f"{number}.out").read_bytes()).hexdigest()
        assert found == expected(number).stdout
    _records_agree(server, names)
    assert "Traceback" not in server.log_text()
    assert "giving up" not in server.log_text()


def test_r1_a_stop_goes_on_when_the_api_dies_in_it(make_server: Callable[..., Server]) -> None:
    """The next api knows that the job is to be stopped, and when its grace ends."""
    server = make_server(listen=free_address())
    heeds = server.detach("bash", "-c", "trap 'sleep 3 & wait; exit 0' TERM; echo up; while :; do sleep 0.05; done")
    ignores = server.detach("bash", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done")
    for name in (heeds, ignores):
        wait_until("it is up", partial(_is_up, server, name))
    grace = {heeds: "60", ignores: "3"}
    stops = [
        subprocess.Popen(server.client_command("stop", "--stop-timeout", grace[name], name), cwd=ROOT, stderr=-3)
        for name in grace
    ]
    records = server.state / "jobs.sqlite3"
    wait_until("the intent is recorded", lambda: _intents(records) == 2)
    api = server.children()["api"]
    os.kill(api, signal.SIGKILL)
    for stop in stops:
        stop.wait(60)
    wait_until("it answers", lambda: server.client("ls").returncode == 0)
    assert server.client("wait", heeds).returncode == 0
    assert server.client("wait", ignores).returncode == 137
    for name in grace:
        assert b'"state": "stopped"' in server.client("status", "-o", "json", name).stdout
    assert server.children()["api"] != api


def _is_up(server: Server, name: str) -> bool:
    return b"up" in server.client("watch", "--no-follow", name).stdout


def _intents(records: Path) -> int:
    with closing(sqlite3.connect(f"file:{records}?mode=ro", uri=True)) as database:
        query = "SELECT count(*) FROM job WHERE state = 1 AND record LIKE '%stop_by_ns%'"
        return int(database.execute(query).fetchone()[0])


def test_r1_an_end_that_was_recorded_and_not_released_stays(make_server: Callable[..., Server]) -> None:
    """The api dies between the two: the helper hands over a job that has ended for everybody else."""
    server = make_server(listen=free_address())
    name = server.detach("sh", "-c", "echo kept; sleep 0.2; exit 3")
    assert server.client("wait", name).returncode == 3
    other = server.detach("sh", "-c", "echo up; exec sleep 1000")
    wait_until("its output is kept", lambda: server.job_status(other)["stdout_bytes"] == len("up\n"))
    # What such an api leaves: the record of a job that the helper still has says that it has ended.
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)  # the supervisor: it starts no new api yet
    api = server.children()["api"]
    os.kill(api, signal.SIGKILL)
    wait_until("the api has ended", lambda: not alive(api))
    uuid = other.rpartition("/")[2]
    with closing(sqlite3.connect(server.state / "jobs.sqlite3")) as database:
        database.execute(
            "UPDATE job SET state = 2, end_ns = start_ns, record = json_set(record, '$.state', 2, '$.reason', 1, "
            "'$.end_ns', start_ns, '$.exit_code', 9) WHERE uuid = ?",
            (uuid,),
        )
        database.commit()
    chown_to_server(server.state)
    server.process.send_signal(signal.SIGCONT)
    wait_until("it answers", lambda: server.client("ls").returncode == 0)
    assert server.client("wait", name).returncode == 3
    assert server.client("wait", other).returncode == 9
    assert server.client("watch", other).stdout == b"up\n"
    assert (server.state / "jobs" / uuid / "output").read_bytes() == b"up\n"


def _running(server: Server) -> bool:
    """Whether this api listens already: one that is killed before makes no progress to be disturbed."""
    text = server.log_text()
    return text.rfind("listening on") > text.rfind("the api died")


def _records_agree(server: Server, names: list[str]) -> None:
    """Sizes, digests and ends that the server kept, of jobs that several apis saw."""
    client = client_of(server)
    for number, name in enumerate(names):
        status = client.status(name)
        shown = Expected(status.stdout_sha256.hex(), status.stderr_sha256.hex())
        assert (status.exit_code, shown) == (number, expected(number))
        sizes = [sum(32 * (1 + (number * block) % 97) for block in range(start, BLOCKS, 2)) for start in (0, 1)]
        assert [status.stdout_bytes, status.stderr_bytes] == sizes
    client.close()
