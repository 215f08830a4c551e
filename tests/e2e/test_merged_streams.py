"""`--merge-stderr`, and the original's service, whose jobs have one pipe always."""

import subprocess
from pathlib import Path

import grpc
from support.checkout import ROOT
from support.command_line import COMMAND
from support.raw_client import RawClient
from support.servers import Server

from telehandler.api.service import ORIGINAL_SERVICE, SERVICE
from telehandler.pb import telehandler_pb2 as pb

ALTERNATE = "for i in 1 2 3 4 5 6 7 8; do echo out $i; echo err $i >&2; done"
IN_ORDER = b"".join(b"out %d\nerr %d\n" % (number, number) for number in range(1, 9))


def test_run_and_watch_keep_the_order(server: Server) -> None:
    for _ in range(5):
        done = server.client("run", "--merge-stderr", "--", "sh", "-c", ALTERNATE)
        assert (done.returncode, done.stdout, done.stderr) == (0, IN_ORDER, b"")


def test_local_keeps_the_order(policy: Path) -> None:
    command = [*COMMAND, "local", "--helper-policy", str(policy), "--merge-stderr", "--", "sh", "-c", ALTERNATE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, IN_ORDER, b"")


def test_without_it_there_are_two(server: Server) -> None:
    done = server.client("run", "--", "sh", "-c", ALTERNATE)
    assert done.stdout == b"".join(b"out %d\n" % number for number in range(1, 9))
    assert done.stderr == b"".join(b"err %d\n" % number for number in range(1, 9))


def test_the_originals_jobs_have_one_pipe(server: Server, ssl: Path) -> None:
    with RawClient(server, ssl / "client") as client:
        for service, both in ((ORIGINAL_SERVICE, True), (SERVICE, False)):
            request = pb.StartJobRequest(command="sh", args=["-c", ALTERNATE])
            answer = client.call(f"/{service}/StartJob", request)
            assert answer.code is grpc.StatusCode.OK
            name = pb.JobResponse.FromString(answer.bodies[0]).name
            assert server.client("wait", name).returncode == 0
            done = server.client("watch", name)
            assert (done.stdout == IN_ORDER, done.stderr == b"") == (both, both)


def test_a_dry_run_says_so(server: Server) -> None:
    assert b"merge_stderr" in server.client("run", "--merge-stderr", "--dry-run", "--", "true").stdout
    assert b"merge_stderr" not in server.client("run", "--dry-run", "--", "true").stdout
