"""R4: a connection that is half open is noticed within seconds by both ends; calls have an end in any case."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.checkout import ROOT
from support.processes import processes_with
from support.raw_client import SERVICE, RawClient
from support.servers import Server, free_address
from support.state_fixtures import list_jobs, pending_starts
from support.tcp_proxy import Proxy
from support.wait import wait_until

from telehandler.client.connection import CALL_TIMEOUT_S
from telehandler.common import bounds
from telehandler.jobs.helper_link import REPLY_TIMEOUT_S
from telehandler.pb import telehandler_pb2 as pb

NOTICED_S = bounds.KEEPALIVE_S + bounds.KEEPALIVE_TIMEOUT_S
SLACK_S = 10.0
FIFO = "mkfifo /tmp/f; exec 3<>/tmp/f"  # to wait without a process
COUNT = f"trap 'echo end; exit 7' TERM; {FIFO}; while :; do echo $((i += 1)); read -t .01 -u 3; done"
SILENT = f"trap 'echo end; exit 8' TERM; {FIFO}; read -u 3"
ESTABLISHED = "01"  # in /proc/net/tcp


class UnansweredCalls:
    """A server whose helper answers nothing any more, and calls to it that were begun then."""

    def __init__(self, server: Server, ssl: Path) -> None:
        self.server, self.caller = server, RawClient(server, ssl / "client")
        name = self.caller.start("sleep", "1000").name
        watch = server.client_command("watch", name)
        self.watch = subprocess.Popen(watch, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        helper = server.children()["helper"]
        os.kill(helper, signal.SIGSTOP)
        self.began = time.monotonic()
        # Without a deadline of their own.
        self.calls: list[Any] = [
            self.caller.start_call(f"/{SERVICE}/{method}", request, timeout=None)
            for method, request in (
                ("StartJob", pb.StartJobRequest(argv=[b"true"])),
                ("SignalJob", pb.SignalJobRequest(name=name, signal=18)),
                ("StopJob", pb.StopJobRequest(name=name)),
                ("DeleteJob", pb.DeleteJobRequest(name=name, force=True)),
            )
        ]
        command = server.client_command("stop", "--stop-timeout", "0", name)
        self.client = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.helper = helper


@pytest.fixture(scope="module", autouse=True)
def unanswered(make_server: Callable[..., Server], ssl: Path) -> Iterator[UnansweredCalls]:
    """Begun before the first test: what it waits for takes half a minute."""
    unanswered = UnansweredCalls(make_server(), ssl)
    yield unanswered
    os.kill(unanswered.helper, signal.SIGCONT)
    unanswered.caller.channel.close()
    for process in (unanswered.watch, unanswered.client):
        process.kill()
        process.communicate()


def _through(proxy: Proxy, server: Server, verb: str, *words: str) -> "subprocess.Popen[bytes]":
    command = server.client_command(verb, *words)
    command[command.index("-s") + 1] = f"localhost:{proxy.port}"
    return subprocess.Popen(command, 0, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _established(server: Server, ports: set[int]) -> set[int]:
    """Those of the far `ports` to which the server's end still is a connection."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = [(int(near[-4:], 16), int(far[-4:], 16)) for _, near, far, state, *_ in rows if state == ESTABLISHED]
    rows = [line.split() for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]]
    ends += [(int(near[-4:], 16), int(far[-4:], 16)) for _, near, far, state, *_ in rows if state == ESTABLISHED]
    return ports & {far for near, far in ends if near == server.port}


def _numbers(output: bytes, first: int) -> None:
    lines = output.splitlines()
    assert lines[-1] == b"end"
    assert [int(line) for line in lines[:-1]] == list(range(first, first + len(lines) - 1))


def test_r4_a_half_open_connection_is_noticed_and_taken_up_again(make_server: Callable[..., Server], ssl: Path) -> None:
    """A stream that flows, one that is silent, a wait, a start without an answer, and a connection without a call."""
    server = make_server()
    helper = server.children()["helper"]
    counting = server.detach("bash", "-c", COUNT)
    silent = server.detach("bash", "-c", SILENT)
    with Proxy(server.port) as proxy:
        watch, wait = (_through(proxy, server, verb, counting) for verb in ("watch", "wait"))
        quiet = _through(proxy, server, "watch", silent)
        assert watch.stdout is not None
        assert watch.stdout.readline() == b"1\n"
        wait_until("three are connected", lambda: proxy.connections() == 3)
        os.kill(helper, signal.SIGSTOP)
        start = _through(proxy, server, "run", "--detach", "--", "sh", "-c", "exec sleep 41.23105")
        near_port, server.port = server.port, proxy.port
        with RawClient(server, ssl / "client") as idle:
            assert idle.status(counting).code is grpc.StatusCode.OK
            server.port = near_port
            wait_until("all are connected", lambda: proxy.connections() == 5)
            wait_until("the start has arrived", lambda: pending_starts(server) == 1)
            ports = proxy.freeze()
            os.kill(helper, signal.SIGCONT)
            assert len(ports) == 5
            wait_until("the server has let all go", lambda: not _established(server, ports), NOTICED_S + SLACK_S)
            wait_until("the clients are back", lambda: proxy.connections() >= 3, NOTICED_S + SLACK_S)
        output, errors = start.communicate(timeout=NOTICED_S + SLACK_S)
        assert start.returncode == 0, errors
        assert b"the start is not confirmed; asking again in" in errors
        assert len(processes_with("sleep\00041.23105\0")) == 1
        assert len(list_jobs(server)) == 3
        for name in (counting, silent, output.decode().strip()):
            assert server.client("stop", name).returncode == 0
        for client, code in ((watch, 7), (wait, 7), (quiet, 8)):
            output, errors = client.communicate(timeout=30)
            assert client.returncode == code, errors
            assert errors.count(b"connecting again") == 1, errors
            if client is watch:
                _numbers(output, 2)
            elif client is quiet:
                assert output == b"end\n"


def test_r4_a_client_whose_notes_nobody_reads_goes_on(make_server: Callable[..., Server]) -> None:
    server = make_server(listen=free_address())
    name = server.detach("bash", "-c", COUNT)
    command = server.client_command("watch", name)
    with subprocess.Popen(command, 0, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watch:
        assert watch.stdout is not None
        assert watch.stderr is not None
        assert watch.stdout.readline() == b"1\n"
        watch.stderr.close()
        os.kill(server.children()["api"], signal.SIGKILL)
        wait_until("the server answers", lambda: server.client("stop", name).returncode == 0)
        _numbers(watch.stdout.read(), 2)
    assert watch.returncode == 7


def test_r4_calls_that_the_helper_leaves_unanswered_end(unanswered: UnansweredCalls) -> None:
    """Each by the server itself. It has not ended, and serves what needs no helper; keepalive bothers nobody."""
    left = max(unanswered.began + REPLY_TIMEOUT_S + SLACK_S - time.monotonic(), 1)
    wait_until("all calls have ended", lambda: all(call.done() for call in unanswered.calls), left)
    assert {call.code() for call in unanswered.calls} == {grpc.StatusCode.UNAVAILABLE}
    assert {call.details() for call in unanswered.calls} == {"the helper does not answer"}
    _, errors = unanswered.client.communicate(timeout=CALL_TIMEOUT_S)
    assert unanswered.client.returncode == 125
    assert errors.count(b"\n") == 1
    assert unanswered.caller.call_method("ListJobs", "tele-tester").code is grpc.StatusCode.OK
    assert time.monotonic() - unanswered.began > 3 * bounds.KEEPALIVE_S - SLACK_S / 2
    os.kill(unanswered.helper, signal.SIGCONT)  # those that were asked to kill the job do
    output, errors = unanswered.watch.communicate(timeout=30)
    assert output == b""
    assert unanswered.watch.returncode in (128 + signal.SIGTERM, 128 + signal.SIGKILL)
    assert b"connecting again" not in errors
