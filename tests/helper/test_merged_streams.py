"""A START by which stdout and stderr are one pipe: their order is what the job wrote."""

import os
from pathlib import Path

import pytest
from support.helper_driver import Helper, read_line

from helper.wire import Stdio

pytestmark = pytest.mark.usefixtures("as_root")
ALTERNATE = "i=0; while [ $i -lt 600 ]; do echo $i; i=$((i+1)); echo $i >&2; i=$((i+1)); done"


def test_one_pipe_keeps_the_order(policy: Path) -> None:
    with Helper(policy) as helper:
        ended = helper.run("sh", "-c", ALTERNATE, stdio=Stdio.MERGE_STDERR)
        assert ended.stdout == b"".join(b"%d\n" % number for number in range(600))
        assert ended.stderr == b""
        apart = helper.run("sh", "-c", ALTERNATE)
        assert (apart.stdout.count(b"\n"), apart.stderr.count(b"\n")) == (300, 300)


def test_it_is_the_same_pipe(policy: Path) -> None:
    with Helper(policy) as helper:
        same = "sh", "-c", "test /proc/self/fd/1 -ef /proc/self/fd/2"
        assert helper.run(*same, stdio=Stdio.MERGE_STDERR).facts["exit_code"] == 0
        assert helper.run(*same).facts["exit_code"] == 1
        # Both can be opened by name, as if they were two; and where they are two.
        script = "echo a >/dev/stderr; echo b >/dev/stdout"
        assert helper.run("sh", "-c", script, stdio=Stdio.MERGE_STDERR).stdout == b"a\nb\n"
        assert helper.run("sh", "-c", script)[:2] == (b"b\n", b"a\n")


def test_the_other_pipe_has_ended_from_the_beginning(policy: Path) -> None:
    with Helper(policy) as helper:
        job = helper.start("sh", "-c", "echo up; exec sleep 100", stdio=Stdio.MERGE_STDERR)
        assert read_line(job.stdout) == b"up\n"
        assert os.read(job.stderr, 1) == b""
        job.close()
