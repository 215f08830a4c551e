"""Servers that end, processes that are killed, a log larger than memory should hold."""

import hashlib
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from support.checkout import ROOT
from support.process_usage import rss_bytes
from support.processes import alive, kill, processes_with
from support.servers import Server, free_address
from support.wait import wait_until

GIB = 1 << 30
MAX_GROWTH = 64 << 20


def test_sigterm_ends_server_helper_jobs_and_cgroups(make_server: Callable[..., Server]) -> None:
    server = make_server()
    server.detach("sleep", "27.18281")
    pids, cgroup = [*server.children().values(), *processes_with("27.18281")], server.cgroup
    assert cgroup.exists()
    assert server.stop() == 0
    assert not [pid for pid in pids if alive(pid)]
    assert not cgroup.exists()


def test_a_killed_supervisor_takes_all_with_it(make_server: Callable[..., Server]) -> None:
    server = make_server()
    server.detach("sleep", "16.18033")
    pids, cgroup = [*server.children().values(), *processes_with("16.18033")], server.cgroup
    assert server.process is not None
    server.process.kill()
    wait_until("helper, api and job have ended", lambda: not [pid for pid in pids if alive(pid)])
    wait_until("the cgroup is gone", lambda: not cgroup.exists())


def test_jobs_go_on_when_the_api_is_killed_and_no_byte_is_lost(make_server: Callable[..., Server]) -> None:
    server = make_server(listen=free_address())
    script = "for i in $(seq 30000); do echo line $i; [ $((i % 100)) = 0 ] && read -t 0.01 x <> /tmp/f; done; echo end"
    name = server.detach("bash", "-c", f"mkfifo /tmp/f; {script}")
    for _ in range(3):
        api = server.children()["api"]
        wait_until("there is some output", lambda: b"stdout bytes       0" not in server.client("status", name).stdout)
        kill(api)
        wait_until("it answers", lambda: server.client("status", name).returncode == 0)
    expected = "".join(f"line {number}\n" for number in range(1, 30001)) + "end\n"
    done = server.client("watch", name)
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(expected.encode()).digest()


def test_a_watcher_connects_again_when_the_api_is_killed(make_server: Callable[..., Server]) -> None:
    server = make_server(listen=free_address())
    script = (
        "echo up; while [ ! -e /tmp/go ]; do read -t 0.05 x <> /tmp/f; n=$((n+1)); [ $n = 60 ] && break; done; echo end"
    )
    client = subprocess.Popen(
        server.client_command("run", "--", "bash", "-c", f"mkfifo /tmp/f; {script}; exit 9"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert client.stdout is not None
    assert client.stdout.readline() == b"up\n"
    os.kill(server.children()["api"], signal.SIGKILL)
    output, errors = client.communicate(timeout=60)
    assert (client.returncode, output) == (9, b"end\n"), errors
    assert b"connecting again" in errors


def test_a_watcher_of_a_quiet_job_connects_again_too(make_server: Callable[..., Server]) -> None:
    server = make_server(listen=free_address())
    name = server.detach("sh", "-c", "echo up; exec sleep 1732.05")
    command = server.client_command("watch", name)
    watcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == b"up\n"
    os.kill(server.children()["api"], signal.SIGKILL)
    assert watcher.stderr is not None
    assert b"the connection broke at byte 3; connecting again" in watcher.stderr.readline()
    wait_until("it is connected again", lambda: _connections(server))
    assert server.client("stop", name).returncode == 0
    output, _ = watcher.communicate(timeout=60)
    assert (watcher.returncode, output) == (128 + signal.SIGTERM, b"")


def _connections(server: Server) -> list[str]:
    """Of clients that are established: proc_net_tcp in the kernel's documentation. grpc's sockets are all of IPv6."""
    lines = [line.split() for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]]
    return [remote for _, _, remote, state, *_ in lines if state == "01" and remote.endswith(f":{server.port:04X}")]


def test_a_gibibyte_of_output_does_not_raise_the_apis_memory(make_server: Callable[..., Server]) -> None:
    server = make_server()
    assert server.client("run", "--", "true").returncode == 0
    api = server.children()["api"]
    before = rss_bytes(api)
    name = server.detach("head", "-c", str(GIB), "/dev/zero")
    digest, peak = hashlib.sha256(), 0
    with subprocess.Popen(server.client_command("watch", name), cwd=ROOT, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        while piece := client.stdout.read(1 << 22):
            digest.update(piece)
            peak = max(peak, rss_bytes(api))
    assert client.returncode == 0
    expected = hashlib.sha256()
    for _ in range(GIB >> 22):
        expected.update(bytes(1 << 22))
    assert digest.digest() == expected.digest()
    assert max(peak, rss_bytes(api)) - before < MAX_GROWTH
