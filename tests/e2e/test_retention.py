"""What is kept: bounds at each end and at start-up, what a crash left, records of servers before, long lists."""

import os
import random
import signal
import sqlite3
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from support.checkout import ROOT
from support.processes import alive, processes_with
from support.servers import Server, free_address
from support.state_fixtures import chown_to_server, list_jobs, output_directory, used_state_directory, write_jobs
from support.wait import wait_until

from telehandler.common.states import Reason, State
from telehandler.jobs.records import Record

Make = Callable[..., Server]
MANY = 2100  # over two of the client's pages
DAY_NS = 86_400_000_000_000


def _ended(number: int, uuid_: str = "") -> Record:
    """A job of tele-tester that ended long ago, the later the higher its number."""
    start = 1_760_000_000_000_000_000 + number
    record = Record(uuid_ or str(uuid.UUID(int=random.getrandbits(128), version=4)), "tele-tester", [b"true"])
    record.state, record.reason, record.start_ns, record.end_ns = State.COMPLETED, Reason.EXITED, start, start + 1000
    return record


def _run(server: Server, script: str) -> str:
    """The name of a job that has ended."""
    name = server.detach("sh", "-c", script)
    assert server.client("wait", name).returncode == 0
    return name


def _left(server: Server) -> set[str]:
    """The names of directories of jobs."""
    return {path.name for path in (server.state / "jobs").iterdir()}


def _uuids(*names: str) -> set[str]:
    return {name.rpartition("/")[2] for name in names}


def test_no_more_ended_jobs_than_asked_for_and_no_running_one_is_removed(make_server: Make, place: Path) -> None:
    state = used_state_directory(make_server, place)
    server = make_server(state=state, options=("--keep-jobs", "2"))
    running = server.detach("sleep", "1000")
    names = [_run(server, f"echo {number}") for number in range(4)]
    wait_until("the oldest are gone", lambda: len(list_jobs(server)) == 3)
    assert [job["name"] for job in list_jobs(server)] == [names[3], names[2], running]
    wait_until("their output too", lambda: _left(server) == _uuids(running, *names[2:]))
    assert server.client("watch", names[2]).stdout == b"2\n"
    assert server.client("watch", names[1]).returncode == 125
    assert server.stop() == 0

    server = make_server(state=state, options=("--keep-jobs", "1"))  # now at start-up: the one that ran ended last
    wait_until("one is left", lambda: [job["name"] for job in list_jobs(server)] == [running])
    wait_until("its output too", lambda: _left(server) == _uuids(running))
    assert server.stop() == 0


def test_no_more_output_than_asked_for(make_server: Make) -> None:
    server = make_server(options=("--keep-bytes", "10k"))
    running = server.detach("sh", "-c", "head -c 20000 /dev/zero; sleep 1000")
    small = [_run(server, f"echo {number}; head -c 3000 /dev/zero >&2") for number in range(5)]
    wait_until("three are left", lambda: len(list_jobs(server)) == 4)
    assert {job["name"] for job in list_jobs(server)} == {running, *small[2:]}
    large = _run(server, "head -c 20000 /dev/zero")
    wait_until("the last is left, however large", lambda: len(list_jobs(server)) == 2)
    assert len(server.client("watch", large).stdout) == 20000
    wait_until("their output is gone too", lambda: _left(server) == _uuids(running, large))
    assert server.stop() == 0


def test_nothing_older_than_asked_for(make_server: Make, place: Path) -> None:
    state = used_state_directory(make_server, place)
    old, young = _ended(1), _ended(2)
    old.end_ns, young.end_ns = time.time_ns() - 2 * DAY_NS, time.time_ns() - DAY_NS // 2
    write_jobs(state, [old, young])
    server = make_server(state=state, options=("--keep-age", "1d"))
    wait_until("the old one is gone", lambda: _left(server) == {young.uuid})
    assert [job["name"] for job in list_jobs(server)] == [young.name]
    assert server.stop() == 0


def test_all_are_kept_when_nothing_is_asked_for(make_server: Make, place: Path) -> None:
    """And a list of many comes page by page."""
    state = used_state_directory(make_server, place)
    made = [_ended(number) for number in range(MANY)]
    write_jobs(state, made)
    server = make_server(state=state)
    newest_first = [record.name for record in reversed(made)]
    assert server.client("ls", "-q", "--limit", str(MANY)).stdout.decode().split() == newest_first
    assert server.client("ls", "-q", "--limit", "1500").stdout.decode().split() == newest_first[:1500]
    assert server.client("ls", "-q").stdout.decode().split() == newest_first[:100]
    first = made[0].uuid
    others = [record.uuid for record in made[1:]]
    unique = next(first[:length] for length in range(1, 37) if not any(o.startswith(first[:length]) for o in others))
    assert server.client("watch", unique).stdout == b""  # on the last page
    assert server.client("rm", unique).stdout.decode().split() == [made[0].name]
    assert server.stop() == 0


def test_what_a_crash_left_goes_at_start_up(make_server: Make, place: Path) -> None:
    """Of a removal, before each of its steps; of a start, before its record. What is not ours stays."""
    state = used_state_directory(make_server, place)
    whole, no_output, removed = (_ended(number) for number in range(3))
    write_jobs(state, [whole, no_output, removed])
    jobs = state / "jobs"
    (jobs / no_output.uuid / "output").unlink()
    (jobs / no_output.uuid).rmdir()
    (jobs / removed.uuid).rename(jobs / f"{removed.uuid}.removed")
    for name in (str(uuid.uuid4()), f"{uuid.uuid4()}.removed", "notes", "notes.removed"):
        (jobs / name).mkdir()
        (jobs / name / "output").write_bytes(b"x")
    chown_to_server(state)
    server = make_server(state=state)
    wait_until("the rest is gone", lambda: _left(server) == {whole.uuid, "notes", "notes.removed"})
    assert [job["name"] for job in list_jobs(server)] == [whole.name]
    assert server.stop() == 0


def test_a_job_that_nobody_knows_of_is_ended_and_leaves_nothing(make_server: Make) -> None:
    """Its api was killed between the start and the record."""
    server = make_server(listen=free_address())
    name = server.detach("sleep", "19.19191")
    other = server.detach("sleep", "1000")
    pids = processes_with("19.19191")
    assert pids
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)  # the supervisor: it starts no new api yet
    api = server.children()["api"]
    os.kill(api, signal.SIGKILL)
    wait_until("the api has ended", lambda: not alive(api))
    with sqlite3.connect(server.state / "jobs.sqlite3") as database:
        database.execute("DELETE FROM job WHERE uuid = ?", (name.rpartition("/")[2],))
    database.close()
    chown_to_server(server.state)
    server.process.send_signal(signal.SIGCONT)
    wait_until("it has ended", lambda: not [pid for pid in pids if alive(pid)])
    wait_until("its output is gone", lambda: not output_directory(server, name).exists())
    wait_until("it answers", lambda: server.client("status", other).returncode == 0)
    assert [job["name"] for job in list_jobs(server)] == [other]
    assert output_directory(server, other).is_dir()
    assert server.stop() == 0


def test_the_beginning_of_a_uuid_is_enough_for_every_verb(make_server: Make, place: Path) -> None:
    state = used_state_directory(make_server, place)
    made = [_ended(number, f"abcdef0{number}-0000-4000-8000-000000000000") for number in range(5)]
    made.append(_ended(9, "abcdf000-0000-4000-8000-000000000000"))
    write_jobs(state, made)
    server = make_server(state=state, admins=("admin",))
    for verb in ("status", "watch", "stop", "wait"):
        assert server.client(verb, "abcdf").returncode == 0, verb
        assert server.client(verb, "users/tele-tester/jobs/ABCDF", user="admin").returncode == 0, verb
        ambiguous = server.client(verb, "abcde").stderr.decode()
        assert "abcde is the beginning of several jobs: " in ambiguous
        shown = [record.uuid for record in made[2:5]]
        assert f"{', '.join(reversed(shown))} and more; give more of it\n" in ambiguous
        assert server.client(verb, "bcdf").stderr.endswith(b"no such job, or not yours\n")
        assert server.client(verb, "abcdf", user="bubba").stderr.endswith(b"no such job, or not yours\n")
        assert b"for admins" in server.client(verb, "users/tele-tester/jobs/abcdf", user="bubba").stderr
    done = server.client("rm", "abcde", "abcdef03", "abcdf")
    assert (done.returncode, done.stdout.decode().split()) == (125, [made[3].name, made[5].name])
    server.jidfile().write_text("abcdef02\n")
    assert made[2].name in server.client("status").stdout.decode()
    assert server.stop() == 0


def test_records_of_version_1_are_listed_and_what_ran_is_lost(make_server: Make, place: Path) -> None:
    state = used_state_directory(make_server, place)
    database = sqlite3.connect(state / "jobs.sqlite3")
    for table in ("job", "start", "restart"):
        database.execute(f"DROP TABLE {table}")
    database.executescript((ROOT / "tests" / "jobs" / "version-1.sql").read_text())
    for (name,) in database.execute("SELECT uuid FROM job"):
        (state / "jobs" / name).mkdir(parents=True)
    database.close()
    chown_to_server(state)
    server = make_server(state=state, admins=("admin",))
    jobs = list_jobs(server, "--all", user="admin")
    assert [(job["owner"], job["state"], job["reason"]) for job in jobs] == [
        ("tele-tester", "failed", "lost"),
        ("bubba", "failed", "exited"),
        ("tele-tester", "stopped", "stopped"),
        ("tele-tester", "completed", "exited"),
    ]
    assert server.client("wait", jobs[0]["name"]).returncode == 125
    assert server.client("run", "true").returncode == 0
    assert len(list_jobs(server)) == 4
    assert server.stop() == 0
