"""Command lines of Linux's own size run; what is beyond is told as E2BIG, by the same words everywhere."""

import subprocess
from pathlib import Path

import grpc
import pytest
from support.checkout import ROOT
from support.command_line import COMMAND
from support.raw_client import RawClient
from support.servers import Server

from helper import wire
from telehandler.api.service import SERVICE
from telehandler.common import bounds
from telehandler.pb import telehandler_pb2 as pb

SCRIPT = "#" * 100_000 + "\necho ran $#"


@pytest.fixture(params=["run", "local"])
def command(request: pytest.FixtureRequest, server: Server, policy: Path) -> list[str]:
    """What runs a job, by the server and without."""
    if request.param == "run":
        return server.client_command("run", "--")
    return [*COMMAND, "local", "--helper-policy", str(policy), "--"]


def _run(command: list[str], *words: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([*command, *words], cwd=ROOT, capture_output=True, timeout=120, check=False)


def test_an_inline_script_of_100_kib_and_many_words_run(command: list[str]) -> None:
    done = _run(command, "sh", "-c", SCRIPT, "sh", *["x"] * 4000)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"ran 4000\n", b"")


@pytest.mark.parametrize("words", [["x" * 110_000] * 2, ["x"] * (wire.MAX_COUNT + 1)], ids=["sum", "count"])
def test_what_is_beyond_is_e2big(command: list[str], words: list[str]) -> None:
    done = _run(command, "true", *words)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (125, b"", 1)
    assert b"too long (E2BIG)" in done.stderr
    assert b"200 KiB" in done.stderr


def test_a_request_over_every_bound_is_e2big_too(command: list[str]) -> None:
    """Over a message of the api's, which grpc itself would refuse in words of its own."""
    done = _run(command, "true", *["x" * 120_000] * 10)
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"too long (E2BIG)" in done.stderr


def test_the_bounds_that_are_told_are_those_of_the_wire() -> None:
    assert bounds.MAX_ARGUMENT_BYTES == wire.MAX_STRING
    assert bounds.MAX_COMMAND_KIB * 1024 == wire.MAX_MESSAGE
    assert bounds.MAX_ARGUMENTS == wire.MAX_COUNT


def test_the_api_says_it_in_its_metadata(server: Server, ssl: Path) -> None:
    with RawClient(server, ssl / "client") as client:
        for argv in ([b"x" * (wire.MAX_STRING + 1)], [b"x"] * (wire.MAX_COUNT + 1), [b"x" * 110_000] * 2):
            answer = client.call(f"/{SERVICE}/StartJob", pb.StartJobRequest(argv=argv))
            assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
            assert "too long (E2BIG)" in answer.details
        assert client.start("true").uid
