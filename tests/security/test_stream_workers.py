"""A stream worker has nothing of root and no way to the helper (S13), and lets in whom the api would (S36, S37, S39,
S52)."""

import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from support.certificates import issue
from support.processes import descendants
from support.raw_client import METHODS, ORIGINAL, SERVICE, RawClient
from support.servers import Server
from support.stream_workers import process_of_new, serving
from support.wait import wait_until

from telehandler.pb import telehandler_pb2 as pb

OK = grpc.StatusCode.OK
NOT_FOUND = grpc.StatusCode.NOT_FOUND
DENIED = grpc.StatusCode.PERMISSION_DENIED
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
OWNER = "tele-tester"
MAX_CALLS, MAX_CONNECTIONS = 6, 20
WATCH = f"/{SERVICE}/WatchJobOutput"
OF_USERS = [method for method, about in METHODS.items() if "parent" in about.input_type.fields_by_name]
UNSERVED = ("SignalJob", "ListJobs", "DeleteJob", "WriteStdin")  # by the original
HANDSHAKES = 20  # that meet both processes, but once in half a million


@pytest.fixture(scope="module")
def worker_server(make_server: Callable[..., Server]) -> Iterator[Server]:
    flags = ("--stream-workers", "2", "--max-calls-per-user", str(MAX_CALLS), "--max-connections", str(MAX_CONNECTIONS))
    server = make_server(admins=("admin",), options=flags)
    yield server
    server.stop()


def _connected(server: Server, pair: Path, process: str) -> RawClient:
    """A client whose connection that process has got."""
    pids = serving(server, 2)
    while True:
        client = RawClient(server, pair)
        # The answer does not matter: that there is one means that there is a connection.
        name, _ = process_of_new(server, pids, lambda client=client: client.status("users/x/jobs/x"))  # type: ignore[misc]
        if name == process:
            return client
        client.channel.close()


def _status(pid: int) -> dict[str, str]:
    rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(row.split(":\t", 1) for row in rows if ":\t" in row)


def _sockets(pid: int) -> set[str]:
    links = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
    return {link for link in links if link.startswith("socket:")}


def test_s13_a_stream_worker_has_nothing_of_root_and_no_way_to_the_helper(worker_server: Server) -> None:
    pids = serving(worker_server, 2)
    status = _status(pids["worker-1"])
    assert status["Uid"] == _status(pids["api"])["Uid"]
    assert "0" not in status["Uid"].split() + status["Gid"].split()
    assert status["Groups"].split() == []
    assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Amb", "Bnd")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    assert os.stat(f"/proc/{pids['worker-1']}/mem").st_uid == 0  # not dumpable
    # A copy of the helper's socket is the same socket: the supervisor and the api have one.
    assert worker_server.process is not None
    theirs = _sockets(worker_server.process.pid) & _sockets(pids["api"])
    assert theirs
    assert not theirs & _sockets(pids["worker-1"])
    assert descendants(pids["worker-1"]) == []


def test_s36_every_process_wants_a_certificate_of_the_root(worker_server: Server, ssl: Path, tmp_path: Path) -> None:
    foreign = issue(ssl, tmp_path / "foreign", OWNER, signer="self")
    for pair in (None, foreign):
        for _ in range(HANDSHAKES):
            with RawClient(worker_server, pair) as caller:
                assert caller.status("users/a/jobs/b").code is grpc.StatusCode.UNAVAILABLE
    nameless = issue(ssl, tmp_path / "nameless", "..")
    with _connected(worker_server, nameless, "worker-1") as caller:
        assert caller.status("users/a/jobs/b").code is UNAUTHENTICATED


@pytest.mark.parametrize("process", ["api", "worker-1"])
def test_s37_every_process_serves_the_owner_and_nobody_else(
    worker_server: Server, ssl: Path, tmp_path: Path, process: str
) -> None:
    """Default-deny: every method of both services, also one that is new."""
    with ExitStack() as stack:
        owner, bubba, nobody = (
            stack.enter_context(_connected(worker_server, pair, process))
            for pair in (ssl / "client", ssl / "bubba", issue(ssl, tmp_path / "nobody", ".."))
        )
        job = owner.start("sleep", "1000", stdin=True)
        for service in (SERVICE, ORIGINAL):
            for method in METHODS:
                answers = [caller.call_method(method, OWNER, job.uid, service) for caller in (nobody, bubba)]
                missing = bubba.call_method(method, OWNER, str(uuid.uuid4()), service)
                if service == ORIGINAL and method in UNSERVED:
                    assert [answer.code for answer in answers] == [UNIMPLEMENTED] * 2
                    continue
                refused = DENIED if method in OF_USERS else NOT_FOUND
                assert [answer.code for answer in answers] == [UNAUTHENTICATED, refused]
                assert answers[1] == missing
                assert not answers[1].bodies
        assert bubba.call("/grpc.health.v1.Health/Check", b"").code is UNIMPLEMENTED
        for method in METHODS:
            if method not in ("DeleteJob", "StopJob"):
                assert owner.call_method(method, OWNER, job.uid).code is OK, method
        assert owner.call_method("DeleteJob", OWNER, job.uid).code is OK
        assert owner.call_method("GetJobStatus", OWNER, job.uid).code is NOT_FOUND


def test_s52_a_users_calls_are_bounded_over_all_processes(worker_server: Server, ssl: Path) -> None:
    with ExitStack() as stack:
        by_process = {
            name: stack.enter_context(_connected(worker_server, ssl / "client", name)) for name in ("api", "worker-1")
        }
        bubba = stack.enter_context(_connected(worker_server, ssl / "bubba", "worker-1"))
        job = by_process["worker-1"].start("sh", "-c", "echo up; exec sleep 1000")
        request = pb.WatchJobOutputRequest(name=job.name)
        watches = []
        for number in range(MAX_CALLS):
            client = by_process["api" if number % 3 == 0 else "worker-1"]
            watches.append(client.start_call(WATCH, request))
            assert b"up\n" in next(watches[-1])
        for client in by_process.values():
            answer = client.status(job.name)
            assert answer.code is EXHAUSTED
            assert f"{MAX_CALLS} calls of one user" in answer.details
        assert bubba.status("users/bubba/jobs/" + job.uid).code is NOT_FOUND  # he is served
        watches[1].cancel()  # one of the worker's
        for client in by_process.values():
            wait_until("there is room again", lambda client=client: client.status(job.name).code is OK)  # type: ignore[misc]
        for watch in watches:
            watch.cancel()
        wait_until("it is stopped", lambda: by_process["worker-1"].call_method("StopJob", OWNER, job.uid).code is OK)


def test_s39_connections_are_bounded_over_all_processes(worker_server: Server) -> None:
    serving(worker_server, 2)
    with ExitStack() as stack:
        address = ("127.0.0.1", worker_server.port)
        sockets = [stack.enter_context(socket.create_connection(address, 10)) for _ in range(4 * MAX_CONNECTIONS)]

        def left() -> int:
            return sum(not _closed(sock) for sock in sockets)

        # Those over the bound are closed at once, the others after the time of a handshake.
        wait_until("those over the bound are closed", lambda: left() <= MAX_CONNECTIONS, 5)
        assert left() > MAX_CONNECTIONS // 2


def _closed(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return not sock.recv(1)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
