"""`client cp`: files into a job that runs, and out of it."""

import hashlib
import os
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.servers import Server, free_address
from support.wait import wait_until


@pytest.fixture
def job(server: Server) -> Iterator[str]:
    name = server.detach("sleep", "1000")
    yield name
    server.client("rm", "-f", name)


def _cp(server: Server, source: "str | Path", destination: "str | Path") -> None:
    done = server.client("cp", str(source), str(destination))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def _in_job(server: Server, job: str, script: str) -> bytes:
    done = server.client("exec", job, "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    for name in server.client("ls", "-q", "--in", job, "--state", "completed").stdout.decode().split():
        server.client("rm", name)  # this one's record, not that of a `tar` that runs
    return done.stdout


def _nothing_is_left(server: Server, job: str) -> None:
    left = [line for line in server.client("ls", "-q", "--in", job).stdout.split() if line]
    assert not left


def _tree(place: Path) -> Path:
    """Files of many kinds; those of a name that is not UTF-8 and of a long one among them."""
    top = place / "tree"
    (top / "empty").mkdir(parents=True)
    deep = top / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(os.urandom(300_001))
    (top / "script").write_text("#!/bin/sh\n")
    (top / "script").chmod(0o755)
    (top / "secret").write_text("s")
    (top / "secret").chmod(0o600)
    (top / "none").write_bytes(b"")
    (top / "link").symlink_to("script")
    os.link(top / "secret", top / "secret-too")
    Path(os.fsdecode(os.fsencode(top) + b"/\xff\n -x")).write_text("odd")
    for path in [*top.rglob("*"), top]:
        os.utime(path, (1_600_000_000, 1_600_000_000), follow_symlinks=False)
    return top


def _digest(top: Path) -> dict[bytes, tuple[object, ...]]:
    found: dict[bytes, tuple[object, ...]] = {}
    for path in sorted([top, *top.rglob("*")]):
        status = path.lstat()
        name = os.fsencode(path.relative_to(top))
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        found[name] = (oct(status.st_mode), int(status.st_mtime), status.st_nlink, content)
    return found


def test_a_tree_is_the_same_after_both_ways(server: Server, job: str, tmp_path: Path) -> None:
    tree = _tree(tmp_path)
    _cp(server, tree, f"{job}:/tmp")
    _cp(server, f"{job}:/tmp/tree", tmp_path / "new")
    assert _digest(tmp_path / "new") == _digest(tree)
    (tmp_path / "there").mkdir()
    _cp(server, f"{job}:/tmp/tree", tmp_path / "there")
    _cp(server, f"{job}:/tmp/tree/.", tmp_path / "there")
    assert _digest(tmp_path / "there" / "tree") == _digest(tree)
    assert (tmp_path / "there" / "script").exists()
    _nothing_is_left(server, job)


def test_a_destination_means_what_it_does_in_docker(server: Server, job: str, tmp_path: Path) -> None:
    file, tree = tmp_path / "file", tmp_path / "tree"
    file.write_text("content")
    tree.mkdir()
    (tree / "inside").write_text("content")
    _cp(server, file, f"{job}:/tmp/new")
    _cp(server, file, f"{job}:/tmp/new")  # over the one that is there
    _cp(server, file, f"{job}:tmp/")
    _cp(server, tree, f"{job}:/tmp/made")
    _cp(server, tree, f"{job}:/tmp/made")
    _cp(server, f"{tree}/.", f"{job}:/tmp")
    found = _in_job(server, job, "cd /tmp; find . -type f | sort").split()
    assert found == [b"./file", b"./inside", b"./made/inside", b"./made/tree/inside", b"./new"]
    for source, destination, text in (
        (file, f"{job}:/tmp/no/", b"no such directory"),
        (tree, f"{job}:/tmp/new", b"not a directory"),
        (tmp_path / "no", f"{job}:/tmp", b"no such file"),
        (f"{job}:/tmp/no", tmp_path, b"No such file"),
        (f"{job}:/tmp/new", f"{tmp_path}/no/", b"no such directory"),
        (f"{job}:/tmp/new", tmp_path / "no" / "no", b"No such file"),
        (file, tree, b"JOB:PATH"),
    ):
        done = server.client("cp", str(source), str(destination))
        assert (done.returncode, text in done.stderr) == (125, True), done.stderr
    assert not (tmp_path / "no").exists()


def test_streams_are_tar(server: Server, job: str, tmp_path: Path) -> None:
    tree = _tree(tmp_path)
    packed = subprocess.run(["tar", "-cf", "-", "-C", tmp_path, "tree"], capture_output=True, check=True).stdout
    command = server.client_command("cp", "-", f"{job}:/tmp")
    assert subprocess.run(command, cwd=ROOT, input=packed, timeout=60, check=False).returncode == 0
    done = server.client("cp", f"{job}:/tmp/tree", "-")
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xpf", "-", "-C", tmp_path / "out"], input=done.stdout, check=True)
    assert _digest(tmp_path / "out" / "tree") == _digest(tree)


def test_what_cannot_be_read_is_told(server: Server, job: str, tmp_path: Path) -> None:
    _in_job(server, job, "mkdir /tmp/d; echo a >/tmp/d/a; echo b >/tmp/d/b; chmod 0 /tmp/d/a")
    done = server.client("cp", f"{job}:/tmp/d", str(tmp_path / "d"))
    assert (done.returncode, b"Permission denied" in done.stderr) == (125, True), done.stderr
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["b"]
    full = server.client("cp", str(tmp_path / "d"), f"{job}:/usr")
    assert (full.returncode, b"Read-only" in full.stderr or b"Permission" in full.stderr) == (125, True), full.stderr


def test_no_space_in_the_job(server: Server, tmp_path: Path) -> None:
    done = server.client("run", "-d", "--tmp-size", "1m", "--", "sleep", "1000")
    job = done.stdout.decode().strip()
    (tmp_path / "big").write_bytes(bytes(8 << 20))
    full = server.client("cp", str(tmp_path / "big"), f"{job}:/tmp")
    assert (full.returncode, b"no room is left there" in full.stderr) == (125, True), full.stderr
    _nothing_is_left(server, job)
    server.client("rm", "-f", job)


@pytest.mark.parametrize("into", [True, False])
def test_an_api_that_is_killed_in_the_middle(make_server: Callable[..., Server], tmp_path: Path, into: bool) -> None:
    server = make_server(listen=free_address())
    job = server.client("run", "-d", "-m", "1g", "--tmp-size", "300m", "--", "sleep", "1000").stdout.decode().strip()
    big = tmp_path / "big"
    big.write_bytes(os.urandom(1 << 20) * 100)
    if not into:
        _cp(server, big, f"{job}:/tmp")
    source, destination = (str(big), f"{job}:/tmp") if into else (f"{job}:/tmp/big", str(tmp_path / "back"))
    command = server.client_command("cp", source, destination)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until("tar runs", lambda: server.client("ls", "-q", "--in", job).stdout)
    os.kill(server.children()["api"], signal.SIGKILL)
    _, told = process.communicate(timeout=120)
    print(process.returncode, told)
    digest = hashlib.sha256(big.read_bytes()).hexdigest().encode()
    if process.returncode:
        assert process.returncode == 125
        assert told.startswith(b"telehandler: ")
    elif into:
        assert _in_job(server, job, "sha256sum </tmp/big").split()[0] == digest
    else:
        assert hashlib.sha256((tmp_path / "back").read_bytes()).hexdigest().encode() == digest
    wait_until("nothing is left", lambda: not server.client("ls", "-q", "--in", job).stdout.strip())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("into", [True, False])
def test_a_client_that_is_interrupted_leaves_nothing(
    server: Server, job: str, tmp_path: Path, into: bool, number: int
) -> None:
    _in_job(server, job, "mkfifo /tmp/pipe && cd /tmp && mkdir many && seq 20000 | split -l 1 -a 4 - many/f")
    source, destination = ("-", f"{job}:/tmp") if into else (f"{job}:/tmp/many", str(tmp_path / "to"))
    command = server.client_command("cp", source, destination)
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until("tar runs", lambda: b"tar" in _in_job(server, job, "ps ax") if into else (tmp_path / "to").exists())
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    print(told)
    assert process.returncode in (128 + number, 0)
    _nothing_is_left(server, job)
    assert not list(tmp_path.rglob(".telehandler*"))


def test_a_job_that_ends_meanwhile_is_told(server: Server) -> None:
    job = server.detach("sleep", "1000")
    process = subprocess.Popen(
        server.client_command("cp", "-", f"{job}:/tmp"), cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_until("tar runs", lambda: b"tar" in _in_job(server, job, "ps ax"))
    server.client("stop", job)
    with process:
        assert process.wait(60) == 125  # with its stdin open
        assert process.stderr
        told = process.stderr.read()
    assert (process.returncode, b"the job ended before the copy did" in told) == (125, True), told
    server.client("rm", "-f", job)


def test_many_small_files(server: Server, tmp_path: Path) -> None:
    job = server.client("run", "-d", "-m", "1g", "--", "sleep", "1000").stdout.decode().strip()
    many = tmp_path / "many"
    for number in range(10_000):
        path = many / str(number % 100) / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(str(number).encode() * (number % 50))
    for path in [*many.iterdir(), many]:
        os.utime(path, (1_600_000_000, 1_600_000_000))
    for path in many.rglob("*"):
        os.utime(path, (1_600_000_000, 1_600_000_000))
    _cp(server, many, f"{job}:/tmp")
    _cp(server, f"{job}:/tmp/many", tmp_path / "back")
    assert _digest(tmp_path / "back") == _digest(many)
    server.client("rm", "-f", job)


def test_a_client_that_is_killed_leaves_no_half_file_under_its_name(server: Server, tmp_path: Path) -> None:
    job = server.client("run", "-d", "-m", "1g", "--tmp-size", "500m", "--", "sleep", "1000").stdout.decode().strip()
    _in_job(server, job, "head -c 400M /dev/zero >/tmp/big")
    process = subprocess.Popen(server.client_command("cp", f"{job}:/tmp/big", str(tmp_path)), cwd=ROOT)
    wait_until("it writes", lambda: list(tmp_path.glob(".telehandler-cp-*")))
    process.kill()
    process.wait()
    assert not (tmp_path / "big").exists()
    (name,) = server.client("ls", "-q", "--in", job).stdout.decode().split()
    assert server.job_status(name)["remove_after"]  # by the server, a minute after its end
    server.client("rm", "-f", job)


def test_progress_is_shown_on_a_terminal(server: Server, tmp_path: Path) -> None:
    job = server.client("run", "-d", "-m", "1g", "--tmp-size", "500m", "--", "sleep", "1000").stdout.decode().strip()
    (tmp_path / "big").write_bytes(bytes(300 << 20))
    ours, theirs = os.openpty()
    command = server.client_command("cp", str(tmp_path / "big"), f"{job}:/tmp")
    process = subprocess.Popen(command, cwd=ROOT, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:
        pass  # nobody has it open any more
    os.close(ours)
    assert process.wait(60) == 0, shown
    assert b" MB/s" in shown
    assert shown.endswith(b"\r\x1b[K")
    server.client("rm", "-f", job)
