"""A job's stdin as a pipe, whose write end the api gets; the helper keeps one too until it is told to close it."""

import hashlib
import os
import threading
from pathlib import Path

import pytest
from support.helper_driver import Helper, read_both

from helper.wire import Stage, Stdio, Type

pytestmark = pytest.mark.usefixtures("as_root")


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def test_what_is_written_comes_in_order_and_ends_once_both_ends_are_closed(policy: Path, code: Path) -> None:
    data = os.urandom(3 << 20)
    with Helper(policy, code=code) as helper:
        job = helper.start("sha256sum", stdio=Stdio.STDIN)
        writer = threading.Thread(target=_write_all, args=(job.stdin, data))
        writer.start()
        writer.join()
        os.close(job.stdin)
        assert helper.request(Type.CLOSE_STDIN, handle=job.handle).type is Type.DONE
        stdout, _ = read_both(job.stdout, job.stderr)
        assert stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()
        assert helper.exited(job)["exit_code"] == 0


def test_it_does_not_end_with_the_api(policy: Path) -> None:
    with Helper(policy) as helper:
        job = helper.start("cat", stdio=Stdio.STDIN)
        os.write(job.stdin, b"before ")
        os.close(job.stdin)
        helper.send(Type.HELLO)
        welcome, _ = helper.receive()
        adopted, fds = helper.receive()
        assert (welcome.type, adopted.type, len(fds)) == (Type.WELCOME, Type.ADOPT, 4)
        os.write(fds[3], b"after")
        os.close(fds[3])
        assert helper.request(Type.CLOSE_STDIN, handle=job.handle).type is Type.DONE
        assert read_both(job.stdout)[0] == b"before after"


def test_once_closed_it_is_not_handed_over_again_and_closing_again_is_no_error(policy: Path) -> None:
    with Helper(policy) as helper:
        job = helper.start("sleep", "100", stdio=Stdio.STDIN)
        for _ in range(2):
            assert helper.request(Type.CLOSE_STDIN, handle=job.handle).type is Type.DONE
        helper.send(Type.HELLO)
        helper.receive()
        adopted, fds = helper.receive()
        assert (adopted.type, len(fds)) == (Type.ADOPT, 3)


def test_a_job_that_does_not_run_has_none_to_close(policy: Path) -> None:
    with Helper(policy) as helper:
        refused = helper.request(Type.CLOSE_STDIN, handle=9)
        assert (refused.type, refused.fields["stage"]) == (Type.ERROR, Stage.NO_SUCH_JOB)


def test_who_writes_is_told_that_the_job_has_closed_it(policy: Path, code: Path) -> None:
    with Helper(policy, code=code) as helper:
        job = helper.start("sh", "-c", "exec <&-; echo closed; exec sleep 100", stdio=Stdio.STDIN)
        assert os.read(job.stdout, 10) == b"closed\n"
        with pytest.raises(BrokenPipeError):
            os.write(job.stdin, b"x")


def test_the_job_can_open_dev_stdin(policy: Path, code: Path) -> None:
    with Helper(policy, code=code) as helper:
        job = helper.start("sh", "-c", "head -n 1 /dev/stdin; id -u", stdio=Stdio.STDIN)
        os.write(job.stdin, b"line\n")
        assert helper.finish(job).stdout == f"line\n{job.uid}\n".encode()


def test_without_it_stdin_is_dev_null_which_stays_roots(policy: Path, code: Path) -> None:
    before = os.stat("/dev/null")
    with Helper(policy, code=code) as helper:
        assert helper.run("sh", "-c", "cat; echo end").stdout == b"end\n"
    assert (before.st_uid, before.st_mode) == (os.stat("/dev/null").st_uid, os.stat("/dev/null").st_mode)
