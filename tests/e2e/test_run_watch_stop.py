"""Run, watch, stop, with a real server, certificates and client: started as root, through sudo, through the wrapper."""

import hashlib
import json
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import sudo_user
from support.checkout import ROOT
from support.processes import alive, processes_with
from support.servers import Server
from support.wait import wait_until

COUNT = "i=0; while [ $i -lt 500 ]; do i=$((i + 1)); echo $i; done"
NUMBERS = "".join(f"{number}\n" for number in range(1, 501)).encode()
RANDOM_BYTES = 50 << 20


@pytest.fixture(scope="module", params=["root", "install-sudoers", "install"])
def server(
    request: pytest.FixtureRequest, make_server: Callable[..., Server], place: Path, ssl: Path
) -> Iterator[Server]:
    """The same tests for each way of starting the helper: by root, by sudo, by the setuid wrapper."""
    if request.param == "root":
        yield make_server(admins=("admin",))
        return
    with sudo_user.installed(place, request.param) as options:
        server = Server(place, options.pop("ssl"), None, admins=("admin",), **options)
        server.start()
        yield server
        assert server.stop() == 0


def test_the_server_is_unprivileged_and_the_helper_is_root(server: Server) -> None:
    assert server.process is not None
    children = server.children()
    uids = {name: _uid(pid) for name, pid in children.items()}
    assert uids["helper"] == 0
    assert uids["api"] != 0
    assert _uid(server.process.pid) == uids["api"]
    status = Path(f"/proc/{children['api']}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert "CapEff:\t0000000000000000" in status
    assert "CapPrm:\t0000000000000000" in status


def _uid(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split("Uid:")[1].split()[0])


def test_one_to_five_hundred(server: Server) -> None:
    done = server.client("run", "--", "sh", "-c", COUNT)
    assert (done.returncode, done.stdout, done.stderr) == (0, NUMBERS, b"")


def test_fifty_mebibytes_of_random_bytes(server: Server) -> None:
    script = f"head -c {RANDOM_BYTES} /dev/urandom | tee /dev/stderr | sha256sum >/tmp/sum; cat /tmp/sum"
    # Random bytes to stderr, their digest, as the job saw it, to stdout.
    done = server.client("run", "--", "sh", "-c", script)
    assert done.returncode == 0
    assert len(done.stderr) == RANDOM_BYTES
    assert hashlib.sha256(done.stderr).hexdigest() == done.stdout.decode().split()[0]


def test_stdout_and_stderr_are_told_apart(server: Server) -> None:
    done = server.client("run", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")


@pytest.mark.parametrize(
    ("command", "code", "word"),
    [
        (["true"], 0, b""),
        (["sh", "-c", "exit 7"], 7, b""),
        (["sh", "-c", "kill -KILL $$"], 137, b"SIGKILL"),
        (["sh", "-c", "kill -TERM $$"], 143, b"SIGTERM"),
        (["no-such-command"], 127, b"No such file or directory: 'no-such-command'"),
        (["/etc/passwd"], 126, b"Permission denied: '/etc/passwd'"),
        (["-c"], 125, b"our flags go before"),
    ],
)
def test_exit_codes(server: Server, command: list[str], code: int, word: bytes) -> None:
    done = server.client("run", "--", *command)
    assert done.returncode == code
    assert word in done.stderr
    assert done.stderr.count(b"\n") == (1 if word else 0)


def test_flags_after_the_command_are_the_jobs(server: Server) -> None:
    assert server.client("run", "echo", "-d", "--", "-j").stdout == b"-d -- -j\n"


def test_ten_watchers_that_join_at_random_times_see_the_same(server: Server) -> None:
    script = "i=0; while [ $i -lt 40 ]; do i=$((i + 1)); head -c 100000 /dev/urandom; read -t 0.05 x <> /tmp/f; done"
    name = server.detach("bash", "-c", f"mkfifo /tmp/f; {script}")
    outputs: list[bytes] = []
    chance = random.Random(1)

    def watch() -> None:
        outputs.append(server.client("watch", name).stdout)

    timers = [threading.Timer(chance.uniform(0, 2.5), watch) for _ in range(10)]
    for timer in timers:
        timer.start()
    for timer in timers:
        timer.join()
    assert {len(output) for output in outputs} == {4_000_000}
    assert len({hashlib.sha256(output).hexdigest() for output in outputs}) == 1
    assert server.client("watch", name).stdout == outputs[0]  # late: it has ended


def test_stop_ends_a_tree_with_a_session_of_its_own(server: Server) -> None:
    mark = "31.4159265"
    script = f"trap '' TERM; setsid sleep {mark} & setsid sh -c 'trap \"\" TERM; sleep {mark}; :' & echo up; wait; wait"
    name = server.detach("bash", "-c", script)
    wait_until("the tree is there", lambda: len(processes_with(mark)) >= 3)
    pids = processes_with(mark)
    done = server.client("stop", "--stop-timeout", "0.2", name)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert not [pid for pid in pids if alive(pid)]
    status = json.loads(server.client("status", "-o", "json", name).stdout)
    assert (status["state"], status["reason"]) == ("stopped", "stopped")
    assert server.client("stop", name).returncode == 0  # idempotent


def test_stop_sends_sigterm_first(server: Server) -> None:
    name = server.detach("bash", "-c", "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done")
    watcher = subprocess.Popen(server.client_command("watch", name), cwd=ROOT, stdout=subprocess.PIPE)
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == b"up\n"
    assert server.client("stop", name).returncode == 0
    assert watcher.communicate(timeout=30)[0] == b"bye\n"
    assert watcher.returncode == 5


@pytest.mark.parametrize("verb", ["status", "watch", "stop"])
def test_someone_elses_job_looks_like_none(server: Server, verb: str) -> None:
    name = server.detach("sleep", "1000")
    try:
        other = server.client(verb, name, user="bubba")
        none = server.client(verb, name.replace(name[-12:], "0" * 12), user="client")
        assert (other.returncode, other.stdout) == (125, b"")
        assert other.stderr == none.stderr == b"telehandler: no such job, or not yours\n"
        assert server.client("status", name, user="admin").returncode == 0
        assert b"running" in server.client("status", name).stdout
    finally:
        assert server.client("stop", "--stop-timeout", "0", name).returncode == 0


def test_the_jidfile_holds_the_name(server: Server) -> None:
    assert server.client("run", "--", "echo", "hi").returncode == 0
    name = server.jidfile().read_text()
    assert name.startswith("users/tele-tester/jobs/")
    assert server.client("watch").stdout == b"hi\n"
    assert server.client("watch", name.strip().rpartition("/")[2]).stdout == b"hi\n"  # a bare UUID


def test_interrupt_goes_to_the_job_and_the_second_kills_it(server: Server) -> None:
    script = "trap 'echo caught' INT; echo up; while :; do sleep 0.05; done"
    client = subprocess.Popen(
        server.client_command("run", "--", "bash", "-c", script),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert client.stdout is not None
    assert client.stdout.readline() == b"up\n"
    client.send_signal(2)
    assert client.stdout.readline() == b"caught\n"
    client.send_signal(2)
    _, errors = client.communicate(timeout=30)
    assert client.returncode == 137
    assert b"once more kills it" in errors


def test_the_servers_directory_is_the_jobs_where_it_may_be_seen(server: Server) -> None:
    directory = server.client("run", "--", "pwd").stdout.decode().strip()
    assert directory.startswith("/")
    assert server.client("run", "-w", "/usr/bin", "--", "pwd").stdout == b"/usr/bin\n"
    refused = server.client("run", "-w", "/no/such", "--", "pwd")
    assert refused.returncode == 125
    assert b"chdir: No such file or directory: '/no/such'" in refused.stderr


def test_environment_is_built_from_empty(server: Server) -> None:
    done = server.client("run", "-e", "A=b c", "-e", "HOME=/x", "--", "env")
    names = dict(line.split("=", 1) for line in done.stdout.decode().splitlines())
    assert names["A"] == "b c"
    assert names["HOME"] == "/x"
    assert set(names) == {"PATH", "HOME", "USER", "LANG", "TERM", "A"}


def test_no_cgroup_of_an_ended_job_is_left(server: Server) -> None:
    assert server.client("run", "--", "true").returncode == 0
    own = server.cgroup
    assert own.exists()
    wait_until("no job's cgroup is left", lambda: not list(own.glob("job-*")))
