"""R29: a stream worker dies, or the api with its workers, or the server ends: what a watcher may notice of it."""

import hashlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest
from support.library_client import Watcher, client_of, signal_job
from support.processes import alive
from support.servers import Server, free_address
from support.stream_workers import process_of_new, serving
from support.wait import wait_until

from telehandler.client.connection import End
from telehandler.output.log import Stream
from telehandler.pb import telehandler_pb2 as pb

PROCESSES = 3
# Blocks of odd sizes to both streams until SIGUSR1, after which each stream's SHA-256 is the exit's business: it prints
# nothing more. So the server's own digests are of what it wrote.
WRITER = r"""
import hashlib, signal, sys, os, time
going = True
def end(*_):
    global going
    going = False
signal.signal(signal.SIGUSR1, end)
block = 0
while going or block < 200:
    text = hashlib.sha256(b"%d" % block).digest() * (1 + block * 7 % 997)
    fd = 1 + block % 2
    while text:
        text = text[os.write(fd, text):]
    block += 1
    time.sleep(0.005)
sys.exit(7)
"""


def _saw_all(watcher: Watcher, status: pb.JobStatus) -> bool:
    """Whether what came is, byte for byte, what the server's digests are of."""
    found = [watcher.hashes[stream].digest() for stream in Stream]
    return not watcher.error and found == [status.stdout_sha256, status.stderr_sha256]


@pytest.fixture
def server(make_server: Callable[..., Server]) -> Iterator[Server]:
    server = make_server(listen=free_address(), options=("--stream-workers", str(PROCESSES)))
    yield server
    server.stop()


def _watchers(server: Server, name: str, pids: dict[str, int], least: int) -> dict[str, list[Watcher]]:
    """Watchers by the process that serves them, so many at least of each."""
    found: dict[str, list[Watcher]] = {process: [] for process in pids}
    while min(map(len, found.values())) < least:
        process, watcher = process_of_new(server, pids, lambda: Watcher(server, name))
        found[process].append(watcher)
    every = [watcher for watchers in found.values() for watcher in watchers]
    wait_until("all have some output", lambda: all(watcher.bytes for watcher in every))
    return found


def _writing(server: Server) -> str:
    return server.detach("/usr/bin/python3", "-I", "-S", "-c", WRITER)


def _all_see_all(server: Server, name: str, watchers: list[Watcher]) -> None:
    """The job ends, and each watcher has every byte and its end."""
    signal_job(server, name, signal.SIGUSR1)
    for watcher in watchers:
        watcher.join(60)
        assert not watcher.is_alive()
    client = client_of(server)
    status = client.status(name)
    client.close()
    assert [_saw_all(watcher, status) for watcher in watchers] == [True] * len(watchers)
    assert {(len(watcher.ends), watcher.ends[0].exit_code) for watcher in watchers} == {(1, 7)}


def test_r29_watchers_of_every_process_get_every_byte(server: Server) -> None:
    """Of a job that runs, from the beginning and later, and once it has ended."""
    pids = serving(server, PROCESSES)
    name = _writing(server)
    early = _watchers(server, name, pids, 2)
    late = _watchers(server, name, pids, 1)
    watchers = [watcher for group in (early, late) for found in group.values() for watcher in found]
    _all_see_all(server, name, watchers)
    assert not [note for watcher in watchers for note in watcher.notes]
    client = client_of(server)
    status = client.status(name)
    client.close()
    ended: set[str] = set()
    while ended != set(pids):
        process, watcher = process_of_new(server, pids, lambda: Watcher(server, name))
        watcher.join(60)
        assert _saw_all(watcher, status)
        ended.add(process)
    assert server.log_text().count("Traceback") == server.log_text().count("died") == 0


def test_r29_a_killed_worker_costs_its_watchers_a_reconnect_and_nobody_else_anything(server: Server) -> None:
    pids = serving(server, PROCESSES)
    api = pids["api"]
    name = _writing(server)
    watchers = _watchers(server, name, pids, 2)
    os.kill(pids["worker-1"], signal.SIGKILL)
    its_own = watchers["worker-1"]
    others = [*watchers["api"], *watchers["worker-2"]]
    wait_until("its watchers say so", lambda: all(watcher.notes for watcher in its_own))
    again = serving(server, PROCESSES)
    assert again["api"] == api
    assert pids["worker-1"] not in again.values()
    assert pids["worker-2"] in again.values()
    before = [watcher.bytes for watcher in its_own]
    wait_until("they go on", lambda: all(now.bytes > then for now, then in zip(its_own, before, strict=True)))
    _all_see_all(server, name, [*its_own, *others])
    assert all("the connection broke at byte" in note for watcher in its_own for note in watcher.notes)
    assert not [note for watcher in others for note in watcher.notes]
    assert server.log_text().count("a stream worker died (status -9); starting it again") == 1


def test_r29_a_stopped_worker_holds_up_neither_the_job_nor_the_others(server: Server) -> None:
    pids = serving(server, PROCESSES)
    name = _writing(server)
    watchers = _watchers(server, name, pids, 1)
    os.kill(pids["worker-1"], signal.SIGSTOP)
    try:
        others = [*watchers["api"], *watchers["worker-2"]]
        before = [watcher.bytes for watcher in others]
        grown = 4 << 20
        wait_until("others go on", lambda: all(a.bytes > b + grown for a, b in zip(others, before, strict=True)))
    finally:
        os.kill(pids["worker-1"], signal.SIGCONT)
    _all_see_all(server, name, [watcher for found in watchers.values() for watcher in found])


def test_r29_workers_end_with_their_api_and_the_next_has_others(server: Server) -> None:
    pids = serving(server, PROCESSES)
    name = _writing(server)
    watchers = [watcher for found in _watchers(server, name, pids, 1).values() for watcher in found]
    os.kill(pids["api"], signal.SIGKILL)
    wait_until("none of them is left", lambda: not [pid for pid in pids.values() if alive(pid)])
    assert not set(serving(server, PROCESSES).values()) & set(pids.values())
    wait_until("all say so", lambda: all(watcher.notes for watcher in watchers))
    _all_see_all(server, name, watchers)
    assert "a stream worker died" not in server.log_text()


def test_r29_sighup_renews_the_workers_too(server: Server) -> None:
    pids = serving(server, PROCESSES)
    name = _writing(server)
    watchers = [watcher for found in _watchers(server, name, pids, 1).values() for watcher in found]
    assert server.process is not None
    server.process.send_signal(signal.SIGHUP)
    wait_until("none of them is left", lambda: not [pid for pid in pids.values() if alive(pid)])
    assert not set(serving(server, PROCESSES).values()) & set(pids.values())
    _all_see_all(server, name, watchers)
    assert "died" not in server.log_text()
    assert server.runs_jobs()


def test_r29_at_the_servers_end_watchers_of_workers_are_told(server: Server) -> None:
    pids = serving(server, PROCESSES)
    name = _writing(server)
    watchers = [watcher for found in _watchers(server, name, pids, 1).values() for watcher in found]
    process, log = server.process, server.log
    assert process is not None
    process.terminate()
    for watcher in watchers:
        watcher.join(60)
    assert [(watcher.error, [end.state for end in watcher.ends]) for watcher in watchers] == [("", ["stopped"])] * len(
        watchers
    )
    assert process.wait(60) == 0
    assert not [pid for pid in pids.values() if alive(pid)]
    assert "died" not in log.read_text()


def test_r29_a_drain_waits_for_jobs_whose_watchers_have_workers(make_server: Callable[..., Server]) -> None:
    options = ("--stream-workers", "2", "--on-stop", "drain")
    server = make_server(listen=free_address(), options=options)
    pids = serving(server, 2)
    name = _writing(server)
    watchers = [watcher for found in _watchers(server, name, pids, 1).values() for watcher in found]
    process = server.process
    assert process is not None
    process.terminate()
    wait_until("it drains", lambda: "draining" in server.log_text())
    refused = server.client("run", "--", "true")
    assert refused.returncode == 125
    signal_job(server, name, signal.SIGUSR1)
    for watcher in watchers:
        watcher.join(60)
    assert {(watcher.error, watcher.ends[0].state, watcher.ends[0].exit_code) for watcher in watchers} == {
        ("", "failed", 7)
    }
    assert process.wait(60) == 0
    assert not [pid for pid in pids.values() if alive(pid)]


def test_r29_a_second_server_does_not_get_a_share_of_the_port(
    make_server: Callable[..., Server], server: Server
) -> None:
    """The kernel would give it one: both are the same user's."""
    serving(server, PROCESSES)
    for count in ("1", "2"):
        with pytest.raises(AssertionError, match="the port is in use"):
            make_server(listen=f"127.0.0.1:{server.port}", options=("--stream-workers", count))
    assert server.runs_jobs()


# Numbered lines of one length, so that a line that is not there, or zeros, cannot be taken for output.
LINES = 400_000
NUMBERS = f"""
import sys
for number in range({LINES}):
    sys.stdout.write("%015d\\n" % number)
"""


def test_r29_what_is_dropped_is_a_gap_at_a_worker_too(server: Server) -> None:
    """Watchers that start while the oldest is dropped see lines and gaps, and never a hole's zeros."""
    pids = serving(server, PROCESSES)
    command = ("/usr/bin/python3", "-I", "-S", "-c", NUMBERS)
    done = server.client("run", "-d", "--log-max-size", "256k", "--log-policy", "drop-oldest", "--", *command)
    assert done.returncode == 0, done.stderr
    name = done.stdout.decode().strip()
    seen: set[str] = set()
    while seen != set(pids):
        process, client = process_of_new(server, pids, lambda: client_of(server))
        seen.add(process)
        offset, ended = 0, list[End]()
        for output in client.watch(pb.WatchJobOutputRequest(name=name), True, ended, lambda _: None):
            if output.gap_bytes:
                offset += output.gap_bytes
                continue
            assert output.offset == offset
            expected = "".join(f"{n:015}\n" for n in range(offset // 16, (offset + len(output.data)) // 16 + 1))
            skipped = offset % 16
            assert output.data == expected[skipped : skipped + len(output.data)].encode(), offset
            offset += len(output.data)
        client.close()
        assert (offset, ended[0].exit_code) == (16 * LINES, 0)


def test_r29_input_comes_through_any_process(server: Server) -> None:
    data = os.urandom(1 << 20)
    for _ in range(8):  # new connections, which the kernel shares out
        command = server.client_command("run", "-i", "--", "sha256sum")
        done = subprocess.run(command, input=data, capture_output=True, timeout=120, check=False)
        assert (done.returncode, done.stdout.split()[0].decode()) == (0, hashlib.sha256(data).hexdigest()), done.stderr
