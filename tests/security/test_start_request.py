"""What a hostile START asks for: uids, working directories, argv and env. Names are security.md's."""

import errno
import pwd
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.helper_driver import ENV, TAG, VIOLATION, Helper
from support.policies import own_uids, policy_text, write_policy

from helper import wire
from helper.wire import Stage, Type

pytestmark = pytest.mark.usefixtures("as_root")
COUNT = struct.Struct("<I")
HEADER_SIZE, LENGTH_AT = 16, 12


@pytest.fixture(scope="module")
def helper(policy: Path, as_root: None) -> Iterator[Helper]:
    with Helper(policy) as helper:
        yield helper


def test_s9_each_live_job_has_a_uid_that_is_nobodys(place: Path) -> None:
    text = policy_text(f"max_jobs = 3\n{own_uids(3)}")
    with Helper(write_policy(place, "three", text)) as helper:
        jobs = [helper.start("sleep", "100") for _ in range(3)]
        uids = {job.uid for job in jobs}
        assert len(uids) == 3
        for job in jobs:
            for pid in helper.host_pids(job):
                status = Path(f"/proc/{pid}/status").read_text()
                assert f"Uid:\t{job.uid}\t{job.uid}\t{job.uid}\t{job.uid}\n" in status
            with pytest.raises(KeyError):
                pwd.getpwuid(job.uid)


def test_s9_a_uid_is_free_only_when_its_job_is_forgotten(place: Path) -> None:
    text = policy_text(f"max_jobs = 2\n{own_uids(2)}")
    with Helper(write_policy(place, "pair", text)) as helper:
        lasting, other = helper.start("sleep", "100"), helper.start("true")
        assert helper.start_error("true")[:2] == (Stage.CAPACITY, errno.EAGAIN)
        helper.exited(other)  # dead, and its uid still its own
        assert helper.start_error("true")[:2] == (Stage.CAPACITY, errno.EAGAIN)
        helper.finish(other)
        again = helper.start("true")
        assert again.uid == other.uid != lasting.uid
        helper.finish(again)


@pytest.fixture(scope="module")
def linked(place: Path, code: Path, as_root: None) -> Iterator[Helper]:
    """A helper whose jobs find links to places outside, and a directory that is root's alone, at /mnt."""
    directory = place / f"links-of-{code.name}"
    directory.mkdir()
    (directory / "private").mkdir(mode=0o700)
    links = {"fds": "/proc/self/fd", "root": "/proc/1/root", "cwd": "/proc/1/cwd", "gone": "/no/such", "loop": "loop"}
    for name, target in {**links, **{f"fd{number}": f"/proc/self/fd/{number}" for number in range(12)}}.items():
        (directory / name).symlink_to(target)
    text = policy_text(f'[profile.host]\nread_only = ["{directory}:/mnt"]\n')
    with Helper(write_policy(place, "linked", text), code=code) as helper:
        yield helper


@pytest.mark.parametrize(
    "directory",
    "/mnt/private /mnt/fds /mnt/root /mnt/cwd /mnt/gone /mnt/loop /root/x . .. relative ../.. /proc/.. /proc/self/fd/0 "
    "/proc/self/root //proc //proc/self/fd /./proc/self/fd /tmp/../proc/self/fd //proc/1/cwd //proc/1/root".split(),
)
def test_s15_cwd_is_resolved_as_the_job(linked: Helper, directory: str) -> None:
    assert linked.start_error("true", place=[b"", directory.encode()])[0] is Stage.CHDIR


def test_s15_no_fd_is_a_way_out(linked: Helper) -> None:
    """CVE-2024-21626: a directory fd of the host's, left open, would be a working directory outside."""
    for number in range(12):
        for directory in (f"/mnt/fd{number}", f"//proc/self/fd/{number}", f"//proc/self/fd/{number}/../.."):
            assert linked.start_error("true", place=[b"", directory.encode()])[0] is Stage.CHDIR


def test_s15_what_is_accepted_is_inside(linked: Helper) -> None:
    for directory in (b"/usr/../usr//bin", b"/tmp/../../..", b"//proc/self/cwd", b"/mnt"):
        ended = linked.run("sh", "-c", "pwd -P; cd / && stat -c %i . /..", place=[b"", directory])
        where, root, above = ended.stdout.decode().split()
        assert where in ("/usr/bin", "/", "/mnt")
        assert root == above


@pytest.mark.parametrize("name", ["argv", "env"])
@pytest.mark.parametrize("what", ["none", "empty", "nul", "string", "strings", "sum"])
def test_s20_what_exec_must_not_get_ends_the_helper(policy: Path, name: str, what: str) -> None:
    """argc 0 (CVE-2021-4034), a NUL, and all that is over a bound, as no api of ours would send them."""
    entry = b"NAME=" if name == "env" else b"name-"
    strings = {
        "none": [] if name == "argv" else [b"no equals sign"],
        "empty": [b""],
        "nul": [entry + b"a?b"],
        "string": [entry + b"x" * (wire.MAX_STRING + 1 - len(entry))],
        "strings": [b"N%d=" % number for number in range(wire.MAX_COUNT + 1)],
        "sum": [b"N%d=" % number + b"x" * 30_000 for number in range(7)],
    }[what]
    start: dict[str, Any] = dict.fromkeys(wire.LIMITS.split(), 0)
    start |= {
        "tag": TAG,
        "stdio": 0,
        "parent": 0,
        "place": [b"", b""],
        "argv": [b"true"],
        "env": ENV,
        name: [b"put here"],
    }
    mark = COUNT.pack(1) + COUNT.pack(8) + b"put here\0"
    packed = b"".join(COUNT.pack(len(text)) + text + b"\0" for text in strings).replace(b"?", b"\0")
    datagram = wire.pack(Type.START, 1, **start).replace(mark, COUNT.pack(len(strings)) + packed)
    length = len(datagram) - HEADER_SIZE
    with Helper(policy) as helper:
        helper.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        helper.sock.send(datagram[:LENGTH_AT] + COUNT.pack(length) + datagram[HEADER_SIZE:])
        status, said = helper.end()
    assert (status, said.count("\n")) == (VIOLATION, 1)


def test_s20_argv_and_env_reach_exec_as_they_are(helper: Helper) -> None:
    words = [
        b"",
        b" a  b ",
        b";id",
        b"$(id)",
        b"`id`",
        b"*",
        b"~",
        b"$HOME",
        b"'\"",
        b"a\nb",
        b"\xff\xfe\x80",
        b"--",
        b"-c",
    ]
    ended = helper.run(
        "/usr/bin/python3", "-c", "import os; os.write(1, open('/proc/self/cmdline', 'rb').read())", *words
    )
    assert ended.stdout.split(b"\0")[3:-1] == words
    odd = [*ENV, b"LONG=" + b"x" * (wire.MAX_STRING - 5), b"BYTES=\xff\xfe\n", b"\xffname=v", b"a b=c=d", b"EMPTY="]
    assert helper.run("cat", "/proc/self/environ", env=odd).stdout == b"".join(entry + b"\0" for entry in odd)
    most = [b"%d" % number for number in range(wire.MAX_COUNT - 1)]
    assert helper.run("echo", *most).stdout.split() == most


def test_s20_the_first_word_is_a_name_and_no_command_line(helper: Helper) -> None:
    for word in ("true;id", "true id", "$(true)", "true\n", "~/true", "*"):
        assert helper.start_error(word)[:2] == (Stage.EXEC, errno.ENOENT)


def test_s20_path_is_the_jobs_and_only_that(helper: Helper) -> None:
    assert helper.start_error("cat", env=[b"PATH=/no/such:/etc/passwd"])[0] is Stage.EXEC
    assert helper.run("cat", "/dev/null", env=[b"PATH=/no/such:/usr/bin"]).facts["exit_code"] == 0
