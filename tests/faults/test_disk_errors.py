"""R5: the disk of the state directory is full, read-only or fails, for real: jobs wait, nothing is lost in silence."""

import hashlib
import os
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from support import disks
from support.processes import alive, processes_with
from support.raw_client import RawClient
from support.servers import Server, free_address
from support.wait import wait_until

from telehandler.output.log import JobLog, Stream

MIB = 1 << 20
SEQ = b"".join(b"%d\n" % number for number in range(1, 600_001))  # 4 MiB
Make = Callable[..., Server]


@pytest.fixture
def disk(place: Path) -> Iterator[Path]:
    with disks.tmpfs(place, "size=16m") as disk:
        yield disk


@contextmanager
def serving(make_server: Make, state: Path, **options: Any) -> Iterator[Server]:
    """A server that has to end well."""
    server = make_server(state=state, **options)
    try:
        yield server
    finally:
        assert server.stop() == 0


def waits(server: Server, name: str, why: str) -> None:
    wait_until(
        "status says that it waits",
        lambda: server.job_status(name).get("detail") == f"the output waits for the disk: {why}",
    )
    assert server.job_status(name)["state"] == "running"


def ended(server: Server, name: str) -> dict[str, Any]:
    assert server.client("wait", name).returncode is not None
    return server.job_status(name)


def refused(server: Server, *words: str) -> None:
    """A StartJob that is RESOURCE_EXHAUSTED, and no job of it is anywhere."""
    with RawClient(server, server.ssl / "client") as caller, pytest.raises(AssertionError) as raised:
        caller.start("sleep", "1234.5")
    assert str(grpc.StatusCode.RESOURCE_EXHAUSTED) in str(raised.value)
    done = server.client("run", "--", "sleep", "1234.5")
    assert done.returncode == 125
    for word in words:
        assert word in done.stderr.decode(), done.stderr
    assert done.stderr.count(b"\n") == 1
    assert b"1234.5" not in server.client("ls").stdout
    assert not processes_with("1234.5")


@pytest.mark.parametrize("kind", ["spool", "index"])
def test_r5_on_a_full_disk_the_job_waits_and_goes_on(make_server: Make, disk: Path, kind: str) -> None:
    """Filled by others while it writes. With lines that change the stream, the index needs most of the room."""
    scripts = {"spool": "seq 1 600000", "index": "for i in $(seq 1 200000); do echo $i; echo $i >&2; done"}
    others = disks.Filler(disk)
    with serving(make_server, disk) as server:
        old = server.detach("seq", "1", "1000")
        ended(server, old)
        others.fill(leave=1536 * 1024)
        name = server.detach("bash", "-c", f"{scripts[kind]}; exit 3")
        wait_until("there is some output", lambda: server.job_status(name)["stdout_bytes"])
        others.fill()
        waits(server, name, "No space left on device")
        assert len(server.client("watch", old).stdout) == 3893  # old jobs stay readable
        refused(server, "full", "remove jobs")
        others.free()
        final = ended(server, name)
        assert (final["state"], final["exit_code"], "detail" in final) == ("failed", 3, False)
        done = server.client("watch", "--verify", name)
        lines = 600_000 if kind == "spool" else 200_000
        whole = SEQ[: SEQ.index(b"\n%d\n" % lines) + len(b"\n%d\n" % lines)]
        assert done.stdout == whole
        assert done.stderr.startswith(b"" if kind == "spool" else whole)
        assert b"verified" in done.stderr
        assert server.client("run", "--", "echo", "again").stdout == b"again\n"


def test_r5_the_tail_of_a_job_that_has_ended_waits_too(make_server: Make, disk: Path) -> None:
    """It is still running for us, until its last byte is kept; StopJob gives that up, and the record says how much."""
    others = disks.Filler(disk)
    with serving(make_server, disk) as server:
        script = "mkfifo /tmp/f; trap 'seq 1 20000; exit' TERM; echo up; while :; do read -t 0.05 x <>/tmp/f; done"
        names = [server.detach("bash", "-c", f"{script} # {mark}") for mark in ("2.64575131", "2.82842712")]
        for name in names:
            wait_until("it is up", partial(lambda name: server.job_status(name)["stdout_bytes"] == 3, name))
        others.fill()
        pids = [*processes_with("2.64575131"), *processes_with("2.82842712")]
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        wait_until("they have ended", lambda: not [pid for pid in pids if alive(pid)])
        for name in names:
            waits(server, name, "No space left on device")
        assert server.client("stop", names[0]).returncode == 0
        final = server.job_status(names[0])
        assert (final["state"], final["reason"], final["exit_code"]) == ("failed", "output_lost", 0)
        assert "more bytes were not kept" in final["detail"]
        others.free()
        assert (ended(server, names[1])["state"], "detail" in server.job_status(names[1])) == ("completed", False)
        assert server.client("watch", "--verify", names[1]).stdout == b"up\n" + SEQ[: SEQ.index(b"\n20001\n") + 1]


def test_r5_a_cap_that_drops_the_oldest_frees_and_goes_on(make_server: Make, disk: Path) -> None:
    others = disks.Filler(disk)
    with serving(make_server, disk) as server:
        others.fill(leave=2 * MIB)
        policy = ("--log-max-size", "64m", "--log-policy", "drop-oldest")
        done = server.client("run", "-d", *policy, "--", "seq", "1", "600000")
        name = done.stdout.decode().strip()
        final = ended(server, name)  # nobody makes room for it
        assert (final["state"], final["stdout_bytes"]) == ("completed", len(SEQ))
        assert final["stdout_sha256"] == hashlib.sha256(SEQ).hexdigest()
        dropped = final["dropped_bytes"]
        assert 0 < dropped < len(SEQ)
        done = server.client("watch", name)
        assert done.stdout == SEQ[dropped:]
        assert f"{dropped} bytes before byte {dropped} are no longer kept" in done.stderr.decode()


def test_r5_a_cap_that_kills_kills(make_server: Make, disk: Path) -> None:
    others = disks.Filler(disk)
    with serving(make_server, disk) as server:
        others.fill(leave=2 * MIB)
        policy = ("--log-max-size", "64m", "--log-policy", "kill")
        done = server.client("run", *policy, "--", "seq", "1", "600000")
        assert done.returncode == 137
        assert done.stdout == SEQ[: len(done.stdout)]
        assert b"No space left on device; " in done.stderr
        assert b" more bytes were not kept" in done.stderr
        assert server.job_status(_newest(server))["reason"] == "signaled"


def _newest(server: Server) -> str:
    return server.client("ls", "-q").stdout.decode().split()[0]


def test_r5_a_record_that_cannot_be_saved_is_saved_later(make_server: Make, disk: Path) -> None:
    """The end of a job while the disk is full: told at once, kept by helper and api, also when the api dies."""
    others = disks.Filler(disk)
    with serving(make_server, disk, listen=free_address()) as server:
        old = server.detach("seq", "1", "200000")
        assert ended(server, old)["state"] == "completed"
        names = [server.detach("sleep", "1000") for _ in range(8)]
        others.fill()
        for name in names:
            assert server.client("stop", "--stop-timeout", "0", name).returncode == 0
            assert server.job_status(name)["state"] == "stopped"
        wait_until("a record waits", lambda: "record waits for the disk" in server.log_text())
        assert server.client("ls", "-q").stdout.decode().split() == [*names[::-1], old]
        refused(server, "full")
        assert server.client("rm", old).returncode == 0  # removing is what makes room
        others.fill()
        api = server.children()["api"]
        os.kill(api, signal.SIGKILL)
        wait_until("another answers", lambda: server.client("status", names[0]).returncode == 0)
        assert {ended(server, name)["state"] for name in names} <= {"stopped", "failed"}
        others.free()
        assert server.client("run", "--", "echo", "again").stdout == b"again\n"
        wait_until("all are saved", lambda: 1 not in _saved_states(disk, names))


def _saved_states(state: Path, names: list[str]) -> list[int]:
    """The states of jobs as another process reads them."""
    with sqlite3.connect(f"file:{state}/jobs.sqlite3?mode=ro", uri=True) as database:
        marks = ",".join("?" * len(names))
        uuids = [name.rpartition("/")[2] for name in names]
        return [row[0] for row in database.execute(f"SELECT state FROM job WHERE uuid IN ({marks})", uuids)]


def test_r5_no_inode_is_no_start(make_server: Make, place: Path) -> None:
    with disks.tmpfs(place, "size=16m,nr_inodes=64") as disk, serving(make_server, disk) as server:
        names = [disk / f"other-{number}" for number in range(64)]
        with suppress(OSError):
            for name in names:
                name.touch()
        refused(server, "full")
        assert not list((disk / "jobs").glob("*"))
        for name in names:
            name.unlink(missing_ok=True)
        assert server.client("run", "--", "echo", "again").stdout == b"again\n"


def test_r5_a_disk_that_the_kernel_makes_read_only(make_server: Make, place: Path) -> None:
    with disks.ext4(place, 24 * MIB) as disk:
        with serving(make_server, disk.point) as server:
            old = server.detach("seq", "1", "1000")
            ended(server, old)
            name = server.detach(
                "bash", "-c", "mkfifo /tmp/f; for i in $(seq 1000); do seq 1 300; read -t 0.05 x <>/tmp/f; done"
            )
            wait_until("there is some output", lambda: server.job_status(name)["stdout_bytes"])
            os.sync()  # what is not yet on the disk goes, as in a power cut
            disk.abort()
            waits(server, name, "Read-only file system")
            assert server.client("ls", "-q").stdout.decode().split() == [name, old]
            assert len(server.client("watch", old).stdout) == 3893
            refused(server, "Read-only")
            assert server.client("stop", "--stop-timeout", "0", name).returncode == 0
            assert "more bytes were not kept" in server.job_status(name)["detail"]
        disk.unmount()
        disk.mount()
        with serving(make_server, disk.point) as server:
            assert len(server.client("watch", old).stdout) == 3893
            assert server.job_status(name)["reason"] == "lost"  # its end could not be written anywhere
            assert server.client("run", "--", "echo", "again").stdout == b"again\n"


@pytest.mark.parametrize("calls", ["splice", "pwrite64", "splice,pwrite64"])
def test_r5_errors_of_the_disk_pass(make_server: Make, place: Path, calls: str) -> None:
    """EIO at every write of output or of its index, for as long as strace is there."""
    server = make_server()
    name = server.detach(
        "bash", "-c", "mkfifo /tmp/f; for i in $(seq 100); do echo $i; read -t 0.05 x <>/tmp/f; done; true"
    )
    wait_until("there is some output", lambda: server.job_status(name)["stdout_bytes"])
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-p", str(server.children()["api"])]
    with subprocess.Popen([*command, "-e", f"inject={calls}:error=EIO"]) as strace:
        try:
            waits(server, name, "Input/output error")
        finally:
            strace.terminate()
    final = ended(server, name)
    assert (final["state"], "detail" in final) == ("completed", False)
    whole = b"".join(b"%d\n" % number for number in range(1, 101))
    done = server.client("watch", "--verify", name)
    assert (done.stdout, b"verified" in done.stderr) == (whole, True)
    assert server.stop() == 0


def test_r5_a_record_of_the_index_is_written_whole_or_not_at_all(place: Path) -> None:
    """The disk is full where the 171st record begins in one page and ends in the next."""
    read_fd, write_fd = os.pipe()
    with disks.tmpfs(place, "size=64k") as disk:
        log, others = JobLog(disk / "job"), disks.Filler(disk)

        def put(number: int) -> None:
            log.splice(read_fd, Stream(1 + number % 2))

        for number in range(170):
            os.write(write_fd, b"x")
            put(number)
        others.fill()
        os.write(write_fd, b"x")
        with pytest.raises(OSError, match="No space left"):
            put(170)
        assert log.size == 170
        others.free()
        for number in range(170, 400):
            put(number)
            os.write(write_fd, b"x")
        log.release()
        log = JobLog(disk / "job", ended=True)
        assert [(s.offset, s.end, s.stream) for s in log.segments(0)] == [(n, n + 1, 1 + n % 2) for n in range(400)]
        log.release()
    os.close(read_fd)
    os.close(write_fd)


def test_r5_a_job_that_ends_over_its_cap_ends(server: Server) -> None:
    """Whether the cap is met before the job has exited or after, while its pipe is emptied."""
    for _ in range(5):
        script = "head -c 68000 /dev/zero; exit 3"
        done = server.client("run", "--log-max-size", "64k", "--", "sh", "-c", script)
        assert (done.returncode, done.stdout) == (3, bytes(65536))
        assert b"cap of 65536 bytes is reached; 2464 more bytes were not kept" in done.stderr
