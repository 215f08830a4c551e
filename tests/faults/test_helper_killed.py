"""What outlives what: the helper is killed, all is killed, the server is upgraded, drained, stopped (R2, R19)."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from support import sudo_user
from support.cgroups import our_cgroups
from support.checkout import ROOT
from support.library_client import client_of
from support.processes import alive, processes_with
from support.raw_client import SERVICE, Caller
from support.servers import Server, free_address
from support.wait import wait_until

from telehandler.pb import telehandler_pb2 as pb

# A job with a subtree: 20 processes, sessions of their own, a pipe held by all.
TREE = "for i in $(seq 20); do setsid sleep {mark} & done; echo up; wait"


@pytest.fixture(params=["root", "sudo"])
def server(request: pytest.FixtureRequest, as_root: None, place: Path, ssl: Path, policy: Path) -> Iterator[Server]:
    """A server of its own for a test, as each of its kinds."""
    if request.param == "root":
        server = Server(place, ssl, policy, listen=free_address())
        server.start()
        yield server
        server.stop()
        return
    with sudo_user.installed(place, "install-sudoers") as options:
        server = Server(place, options.pop("ssl"), None, listen=free_address(), **options)
        server.start()
        yield server
        server.stop()


def status(server: Server, name: str) -> dict[str, Any]:
    done = server.client("status", "-o", "json", name)
    assert done.returncode == 0, done.stderr
    fields: dict[str, Any] = json.loads(done.stdout)
    return fields


def watch(server: Server, name: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        server.client_command("watch", name), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until("it has ended", lambda: not alive(pid))


def works(server: Server) -> bool:
    return server.client("run", "--", "true").returncode == 0


def told(server: Server, text: str, times: int = 1) -> bool:
    return log(server).count(text) == times


def own_cgroup(server: Server) -> str:
    return f"telehandler.{server.children()['helper']}"


def another_api(server: Server, before: int) -> None:
    """Waits for it to answer, and for the one before to have ended."""
    wait_until("another api is there", lambda: server.children().get("api", before) != before and not alive(before))
    wait_until("it answers", lambda: server.client("ls").returncode == 0)


def log(server: Server) -> str:
    return server.log.read_text()


# R2


def test_r2_a_killed_helper_is_replaced_and_its_jobs_are_lost(server: Server) -> None:
    assert server.process is not None
    old = server.detach("sh", "-c", "echo of old; exit 4")
    assert server.client("wait", old).returncode == 4
    name = server.detach("sh", "-c", "echo up; exec sleep 24.57913")
    watcher = watch(server, name)
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == b"up\n"
    before, cgroup = server.children(), own_cgroup(server)
    server.process.send_signal(signal.SIGSTOP)  # the supervisor: no new helper yet
    kill(before["helper"])
    _, errors = watcher.communicate(timeout=30)
    assert (watcher.returncode, b"lost" in errors) == (125, True)
    # Meanwhile: the history is there, and a start is told why not.
    assert (status(server, name)["state"], status(server, name)["reason"]) == ("failed", "lost")
    assert status(server, old)["exit_code"] == 4
    assert server.client("watch", old).stdout == b"of old\n"
    assert server.client("watch", name).stdout == b"up\n"
    with Caller(server, server.ssl / "client") as caller:
        answer = caller.call(f"/{SERVICE}/StartJob", pb.StartJobRequest(argv=[b"true"]))
    assert answer.code is grpc.StatusCode.UNAVAILABLE
    assert "the root helper has died and is being started again" in answer.details
    command = server.client_command("run", "--", "echo", "at last")
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as patient:
        assert patient.stderr is not None
        assert b"the start is not confirmed; asking again" in patient.stderr.readline()
        server.process.send_signal(signal.SIGCONT)
        assert patient.communicate(timeout=30)[0] == b"at last\n"
    assert patient.returncode == 0
    wait_until("a new helper starts jobs", lambda: works(server))
    after = server.children()
    assert after["api"] == before["api"]
    assert after["helper"] != before["helper"]
    assert after.get("keeper") == before.get("keeper")
    assert not [pid for pid in processes_with("24.57913") if alive(pid)]
    assert cgroup not in our_cgroups()
    assert server.client("run", "--", "sh", "-c", "exit 7").returncode == 7


@pytest.mark.parametrize("victims", [("helper",), ("helper", "api"), ("api", "helper")], ids="-".join)
def test_r2_what_a_killed_helper_leaves_is_swept(
    make_server: Callable[..., Server], victims: tuple[str, ...], place: Path
) -> None:
    """Jobs with subtrees, some of them just starting, under load: nothing of them is left, and all are lost."""
    server = make_server(listen=free_address())
    cgroup = own_cgroup(server)
    script = TREE.format(mark="28.28427")
    names = [server.detach("bash", "-c", script) for _ in range(3)]
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    starting = [
        subprocess.Popen(server.client_command("run", "-d", "--", "bash", "-c", script), stdout=-3, stderr=-3, cwd=ROOT)
        for _ in range(3)
    ]
    try:
        wait_until("the trees are there", lambda: len(processes_with("28.28427")) >= 60)
        children = server.children()
        for victim in victims:
            os.kill(children[victim], signal.SIGKILL)
        wait_until("a new helper starts jobs", lambda: works(server))
    finally:
        burner.kill()
        burner.wait()
        for process in starting:
            process.wait(60)
    assert {status(server, name)["reason"] for name in names} == {"lost"}
    assert cgroup not in our_cgroups()
    for text in server.client("ls", "-q", "--state", "running").stdout.decode().split():  # of a start after the kill
        server.client("stop", "--stop-timeout", "0", text)
    wait_until("no process is left", lambda: not [pid for pid in processes_with("28.28427") if alive(pid)])


def test_r2_all_is_killed_and_records_and_logs_are_there_after(make_server: Callable[..., Server]) -> None:
    """As after a power cut: supervisor, keeper, helper, api, all at once; the next start sweeps and knows."""
    server = make_server(listen=free_address())
    cgroup = own_cgroup(server)
    old = server.detach("sh", "-c", "echo of old; exit 4")
    assert server.client("wait", old).returncode == 4
    name = server.detach("bash", "-c", TREE.format(mark="31.41592"))
    wait_until("the tree is there", lambda: len(processes_with("31.41592")) >= 20)
    wait_until("its output too", lambda: status(server, name)["stdout_bytes"] == 3)
    assert server.process is not None
    pids = [server.process.pid, *server.children().values()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # so that none sees another's end before its own
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    server.process.wait()
    wait_until("no process is left", lambda: not [pid for pid in processes_with("31.41592") if alive(pid)])
    assert cgroup in our_cgroups()
    server.start()
    assert (status(server, name)["state"], status(server, name)["reason"]) == ("failed", "lost")
    assert server.client("watch", name).stdout == b"up\n"
    assert server.client("watch", old).stdout == b"of old\n"
    assert cgroup not in our_cgroups()
    assert works(server)


def test_r2_a_helper_that_dies_again_and_again_ends_the_server(make_server: Callable[..., Server]) -> None:
    server = make_server()
    assert server.process is not None
    seen: set[int] = set()

    def gone() -> bool:
        assert server.process is not None
        pid = server.children().get("helper", 0)
        if pid and pid not in seen and (wait_for := our_cgroups()) and f"telehandler.{pid}" in wait_for:
            seen.add(pid)
            os.kill(pid, signal.SIGKILL)
        return server.process.poll() is not None

    wait_until("the server gives up", gone)
    assert server.process.returncode == 1
    assert len(seen) >= 5  # more when one was killed before it had answered
    assert "the root helper died 5 times in 60 s: giving up" in log(server)
    assert "Traceback" not in log(server)


def test_r2_a_helper_that_ends_by_itself_is_not_started_again(server: Server) -> None:
    """SIGTERM is an order to it; a violation would come again."""
    assert server.process is not None
    os.kill(server.children()["helper"], signal.SIGTERM)
    assert server.process.wait(30) == 1
    assert "ended by itself (exit status 0)" in log(server)


def test_r2_the_keeper_has_nothing_and_ends_with_the_server(make_server: Callable[..., Server]) -> None:
    server = make_server()
    keeper, helper = server.children()["keeper"], server.children()["helper"]
    for pid in (keeper, helper):
        fds = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
        flags = [Path(f"/proc/{pid}/fdinfo/{fd}").read_text().split("flags:")[1].split()[0] for fd in fds if fd > 2]
        assert all(int(flag, 8) & os.O_CLOEXEC for flag in flags)
    links = [os.readlink(path) for path in Path(f"/proc/{keeper}/fd").iterdir()]
    assert len([link for link in links if link.startswith("socket:")]) == 1
    assert Path(f"/proc/{helper}/environ").read_bytes() == b""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(keeper, number)
    assert works(server)
    assert server.process is not None
    server.process.kill()
    wait_until("all have ended", lambda: not alive(keeper) and not alive(helper))


# R19


@pytest.fixture
def fresh(make_server: Callable[..., Server]) -> Callable[..., Server]:
    def make(*options: str, **more: Any) -> Server:
        return make_server(listen=free_address(), options=options, **more)

    return make


# SIGUSR2 has it write a line, SIGUSR1 end.
WAITS = "trap 'echo still' USR2; trap 'echo end; exit 5' USR1; echo up; while :; do sleep 0.05; done"


def test_r19_a_drain_refuses_starts_and_waits_for_jobs(fresh: Callable[..., Server]) -> None:
    server = fresh("--on-stop", "drain", "--drain-timeout", "60s")
    assert server.process is not None
    name = server.detach("bash", "-c", WAITS)
    watcher = watch(server, name)
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == b"up\n"
    server.process.terminate()
    wait_until("it drains", lambda: _refused(server))
    assert status(server, name)["state"] == "running"
    assert server.process.poll() is None
    os.kill(server.children()["api"], signal.SIGKILL)  # the next one drains on
    wait_until("it drains on", lambda: _refused(server))
    signal_job(server, name, signal.SIGUSR2)
    assert watcher.stdout.readline() == b"still\n"  # it is connected again
    signal_job(server, name, signal.SIGUSR1)
    output, errors = watcher.communicate(timeout=30)
    assert (watcher.returncode, output) == (5, b"end\n"), errors
    assert server.process.wait(30) == 0
    server.start()
    assert (status(server, name)["state"], status(server, name)["exit_code"]) == ("failed", 5)


def _refused(server: Server) -> bool:
    """Whether the server starts no more jobs, and says so: once, not after a client has asked again and again."""
    refused = server.client("run", "--", "true")
    said = refused.stderr.decode()
    return (
        refused.returncode == 125 and "the server is ending, and starts no more" in said and "asking again" not in said
    )


def signal_job(server: Server, name: str, number: int) -> None:
    client = client_of(server)
    client.signal(name, number)
    client.close()


@pytest.mark.parametrize("how", ["kill", "timeout", "twice", "interrupt"])
def test_r19_sigterm_kills_and_tells_the_watchers(fresh: Callable[..., Server], how: str) -> None:
    """At once, at the drain's bound, and at a second signal."""
    times = {"kill": (), "timeout": ("--drain-timeout", "1s"), "twice": (), "interrupt": ()}[how]
    server = fresh(*(() if how == "kill" else ("--on-stop", "drain", *times)))
    assert server.process is not None
    cgroup = own_cgroup(server)
    name = server.detach("bash", "-c", "trap '' TERM; echo up; " + TREE.format(mark="26.45751"))
    watcher = watch(server, name)
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == b"up\n"
    server.process.terminate()
    if how in ("twice", "interrupt"):
        wait_until("it drains", lambda: "draining" in log(server))
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM if how == "twice" else signal.SIGINT)
    _, errors = watcher.communicate(timeout=30)
    assert watcher.returncode == 137, errors
    assert server.process.wait(30) == 0
    assert not [pid for pid in processes_with("26.45751") if alive(pid)]
    assert cgroup not in our_cgroups()
    server.start()
    assert (status(server, name)["state"], status(server, name)["signal"]) == ("stopped", 9)


def test_r19_sighup_upgrades_and_no_job_stops(fresh: Callable[..., Server]) -> None:
    server = fresh()
    assert server.process is not None
    name = server.detach("bash", "-c", WAITS)
    watcher = watch(server, name)
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == b"up\n"
    before = server.children()
    for _ in range(2):
        api = server.children()["api"]
        server.process.send_signal(signal.SIGHUP)
        another_api(server, api)
    assert server.children()["helper"] == before["helper"]
    signal_job(server, name, signal.SIGUSR1)
    output, errors = watcher.communicate(timeout=30)
    assert (watcher.returncode, output) == (5, b"end\n"), errors
    assert "died" not in log(server)
    assert "Traceback" not in log(server)
    assert works(server)


def serial(server: Server) -> str:
    """Of the certificate that the server shows."""
    import socket
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(server.ssl / "root.pem")
    context.load_cert_chain(server.ssl / "client.pem", server.ssl / "client-key.pem")
    plain = socket.create_connection(("127.0.0.1", server.port), 10)
    with context.wrap_socket(plain, server_hostname="localhost") as tls:
        return str((tls.getpeercert() or {})["serialNumber"])


@pytest.fixture
def own_ssl(place: Path, ssl: Path) -> Path:
    """A set of certificates to spoil."""
    directory = Path(tempfile.mkdtemp(prefix="ssl-", dir=place))
    directory.chmod(0o755)
    shutil.copytree(ssl, directory, dirs_exist_ok=True)
    return directory


def new_pair(directory: Path) -> None:
    """Another certificate of the server's, of the same root."""
    for name in ("server.pem", "server-key.pem"):
        (directory / name).unlink()
    subprocess.run([sys.executable, "-m", "telehandler.certs", str(directory)], cwd=ROOT, check=True)


def test_r19_sighup_with_a_bad_certificate_keeps_the_api(place: Path, ssl: Path, as_root: None) -> None:
    with sudo_user.installed(place, "install-sudoers") as options:
        server = Server(place, options.pop("ssl"), None, listen=free_address(), **options)
        server.start()
        try:
            _rotate(server, server.ssl / "server.pem", options["user"])
        finally:
            server.stop()


def _rotate(server: Server, certificate: Path, uid: int) -> None:
    assert server.process is not None
    api, shown = server.children()["api"], serial(server)
    good, key = certificate.read_bytes(), server.ssl / "server-key.pem"
    for number, bad in enumerate((b"", good[:300], (server.ssl / "bubba.pem").read_bytes())):
        certificate.write_bytes(bad)
        server.process.send_signal(signal.SIGHUP)
        wait_until("it is told", partial(told, server, "the api before goes on", number + 1))
    certificate.write_bytes(good)
    # A pair that belongs together and that the api refuses.
    spoilt = key.read_bytes()
    make_rsa(certificate, key)
    server.process.send_signal(signal.SIGHUP)
    wait_until("it is told", lambda: "the new api cannot start" in log(server))
    assert "not ECDSA P-256" in log(server)
    assert (server.children()["api"], serial(server)) == (api, shown)
    assert works(server)
    certificate.write_bytes(good)
    key.write_bytes(spoilt)
    new_pair(server.ssl)
    os.chown(key, uid, uid)
    server.process.send_signal(signal.SIGHUP)
    another_api(server, api)
    assert serial(server) != shown
    assert "Traceback" not in log(server)


def make_rsa(certificate: Path, key: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)


def test_r19_sighup_without_root_goes_on_with_the_copy(fresh: Callable[..., Server], own_ssl: Path) -> None:
    server = fresh()
    server.stop()
    server = Server(server.home.parent, own_ssl, server.policy, listen=free_address())
    server.start()
    try:
        assert server.process is not None
        api, shown = server.children()["api"], serial(server)
        new_pair(own_ssl)
        server.process.send_signal(signal.SIGHUP)
        another_api(server, api)
        assert serial(server) == shown
        assert log(server).count("without root the certificate and its key cannot be read anew") == 1
    finally:
        server.stop()


def test_r19_a_second_server_on_the_state_directory_is_refused(
    make_server: Callable[..., Server], place: Path, ssl: Path, policy: Path
) -> None:
    server = make_server()
    second = Server(place, ssl, policy, state=server.state)
    with pytest.raises(AssertionError, match="125: telehandler: another server uses the state directory"):
        second.start()
    second.stop()
    assert works(server)
