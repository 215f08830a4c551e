"""The jidfile: written whole or not at all, through no link, and into nothing that is no file."""

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.servers import Server
from support.wait import DEADLINE_S

Done = subprocess.CompletedProcess[bytes]


def _client(server: Server, jidfile: Path | str, verb: str, *words: str) -> Done:
    command = server.client_command(verb)
    command[command.index("-j") + 1] = str(jidfile)
    return subprocess.run([*command, *words], cwd=ROOT, capture_output=True, timeout=DEADLINE_S, check=False)


def _jobs(server: Server) -> bytes:
    return server.client("ls", "-q").stdout


@pytest.mark.parametrize("kind", ["FIFO", "link", "dangling link", "directory", "socket"])
def test_what_is_no_file_is_refused_before_a_job_is_started(server: Server, tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "jid", tmp_path / "other"
    other.write_text("precious")
    make: dict[str, Callable[[], object]] = {
        "FIFO": lambda: os.mkfifo(path),
        "link": lambda: path.symlink_to(other),
        "dangling link": lambda: path.symlink_to(tmp_path / "none"),
        "directory": path.mkdir,
        "socket": lambda: os.mknod(path, 0o600 | stat.S_IFSOCK),
    }
    make[kind]()
    before = _jobs(server)
    done = _client(server, path, "run", "--", "true")
    (line,) = done.stderr.decode().splitlines()
    assert (done.returncode, done.stdout) == (125, b"")
    assert f"the jidfile {path} is " in line
    assert "another with -j" in line
    assert (other.read_text(), sorted(tmp_path.iterdir())) == ("precious", [path, other])
    assert _jobs(server) == before


@pytest.mark.parametrize("kind", ["FIFO", "directory", "binary"])
def test_nor_is_it_read(server: Server, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "jid"
    make: dict[str, Callable[[], object]] = {"FIFO": lambda: os.mkfifo(path), "directory": path.mkdir}
    make.get(kind, lambda: path.write_bytes(b"\xff\xfe"))()
    done = _client(server, path, "status")
    (line,) = done.stderr.decode().splitlines()
    assert done.returncode == 125
    assert f"{path} cannot be read" in line


def test_it_is_replaced_and_not_written_over(server: Server, tmp_path: Path) -> None:
    """Who reads it meanwhile has the name of before; another link to the file keeps what it had."""
    path, other = tmp_path / "jid", tmp_path / "other"
    path.write_text("users/a/jobs/b\n")
    os.link(path, other)
    with path.open() as reader:
        name = _client(server, path, "run", "-d", "--", "true").stdout.decode()
        assert reader.read() == other.read_text() == "users/a/jobs/b\n"
    assert path.read_text() == name
    assert sorted(tmp_path.iterdir()) == [path, other]


def test_dev_null_is_for_who_wants_none(server: Server) -> None:
    before = os.lstat(os.devnull)
    done = _client(server, os.devnull, "run", "--", "true")
    assert (done.returncode, done.stderr) == (0, b"")
    after = os.lstat(os.devnull)
    assert (after.st_mode, after.st_rdev, after.st_ino) == (before.st_mode, before.st_rdev, before.st_ino)


def test_a_directory_that_is_not_there_is_told_and_the_job_runs(server: Server, tmp_path: Path) -> None:
    done = _client(server, tmp_path / "none" / "jid", "run", "--", "sh", "-c", "exit 3")
    (line,) = done.stderr.decode().splitlines()
    assert done.returncode == 3
    assert "the job runs, but its name users/tele-tester/jobs/" in line
    assert "No such file" in line


def test_a_full_disk_leaves_the_name_of_before(server: Server, tmp_path: Path) -> None:
    """By the limit of a file's size, which a write meets as it would the disk's end."""
    path = tmp_path / "jid"
    path.write_text("users/a/jobs/b\n")
    command = server.client_command("run", "--", "true")
    command[command.index("-j") + 1] = str(path)
    limited = ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", *command]
    done = subprocess.run(limited, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == 0, done
    assert b"cannot be written" in done.stderr
    assert path.read_text() == "users/a/jobs/b\n"
    assert list(tmp_path.iterdir()) == [path]
