"""A job and its neighbours: the host's sockets, IPC and keyrings, other jobs, names on disk. As security.md says."""

import ctypes
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.helper_driver import ENV, PRELUDE, PYTHON, Helper, read_line
from support.policies import policy_text, write_policy
from support.servers import Server

from helper.wire import Type

pytestmark = pytest.mark.usefixtures("as_root")
SHARED_NETWORK = [b"shared", b""]
IPC_KEY = 0x7E1E0001
IPC_CREAT, IPC_RMID = 0o1000, 0


@pytest.fixture(scope="module")
def helper(place: Path, as_root: None) -> Iterator[Helper]:
    text = policy_text('[profile.shared]\nnetwork = "host"\n')
    with Helper(write_policy(place, "shared", text)) as helper:
        yield helper


def test_s27_the_hosts_sockets_are_out_of_reach(helper: Helper, place: Path) -> None:
    """The profile that shares the network reaches them: so they are there to be reached."""
    abstract = f"\0telehandler-test-{os.getpid()}"
    hidden = Path(f"/run/telehandler-test-{os.getpid()}")
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as named,
        socket.socket(socket.AF_UNIX) as at_path,
    ):
        named.bind(abstract)
        named.listen()
        at_path.bind(str(hidden))
        hidden.chmod(0o777)
        at_path.listen()
        code = f"""
def connect(family, address):
    with socket.socket(family) as sock:
        sock.connect(address)
tell([attempt(connect, socket.AF_INET, {tcp.getsockname()!r}), attempt(connect, socket.AF_UNIX, {abstract!r}),
      attempt(connect, socket.AF_UNIX, {str(hidden)!r}), attempt(connect, socket.AF_INET, ("192.0.2.1", 9))])"""
        try:
            assert helper.probe(code) == ["ECONNREFUSED", "ECONNREFUSED", "ENOENT", "ENETUNREACH"]
            assert helper.probe(code, place=SHARED_NETWORK)[:3] == ["DONE", "DONE", "ENOENT"]
        finally:
            hidden.unlink()


def test_s27_ipc_is_private(helper: Helper) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    queue_name = b"/telehandler-test"
    segment = libc.shmget(IPC_KEY, 4096, IPC_CREAT | 0o666)
    queue = libc.mq_open(queue_name, os.O_RDWR | os.O_CREAT, 0o666, None)
    try:
        assert min(segment, queue) >= 0, os.strerror(ctypes.get_errno())
        code = f"""
def made(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
tell([attempt(lambda: made(libc.shmget({IPC_KEY}, 0, 0))), attempt(lambda: made(libc.mq_open({queue_name!r}, 2))),
      attempt(lambda: made(libc.shmget({IPC_KEY}, 4096, {IPC_CREAT} | 0o600))),
      attempt(lambda: made(libc.mq_open({queue_name!r}, 2 | {os.O_CREAT}, 0o600, None))),
      len(open("/proc/sysvipc/shm").readlines()) - 1])"""
        # Twice: what a job makes is gone with it, for the next job and for the host.
        for place in ([b"", b""], SHARED_NETWORK):
            assert helper.probe(code, place=place) == ["ENOENT", "ENOENT", "DONE", "DONE", 1]
    finally:
        libc.shmctl(segment, IPC_RMID, None)
        os.close(queue)
        libc.mq_unlink(queue_name)


def test_s27_the_keyring_is_the_jobs_own_and_empty(policy: Path) -> None:
    """The helper has a key in its session keyring; what the job's uid has is a new one."""
    libc = ctypes.CDLL(None, use_errno=True)

    def get_key() -> None:
        libc.syscall(250, 1, None)  # KEYCTL_JOIN_SESSION_KEYRING
        assert libc.syscall(248, b"user", b"telehandler-test", b"secret", ctypes.c_size_t(6), -3) > 0  # add_key

    with Helper(policy, preexec_fn=get_key) as helper:
        code = "tell([attempt(call, 250, 0, -3, 0), attempt(call, 248, 0, 0, 0, 0, -3), attempt(call, 249, 0)])"
        assert helper.probe(code) == ["EPERM"] * 3
        job = helper.start("sleep", "100")
        options: dict[str, Any] = {"user": job.uid, "group": job.uid, "extra_groups": [], "cwd": "/"}

        def keys() -> str:
            done = subprocess.run(["cat", "/proc/keys"], capture_output=True, text=True, check=True, **options)
            return str(done.stdout)

        seen = [line for line in keys().splitlines() if f" {job.uid} " in line]
        sessions = [line for line in seen if " _ses: " in line]
        # That of a job before, of the same uid, may not be collected yet.
        assert sessions, seen
        assert all(line.endswith("_ses: empty") for line in sessions), seen
        assert "telehandler-test" not in keys()
        helper.request(Type.KILL, handle=job.handle)
        helper.finish(job)


# Both sides of the two-jobs test: lay everything out, say so, wait for the word, attack, wait for the end.
NEIGHBOUR = """
import signal, subprocess, sys, threading
mine, other, theirs = sys.argv[1:4]
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
for directory in ("/tmp", "/var/tmp", "/dev/shm"):
    if not os.path.exists(f"{directory}/{mine}"):  # /var/tmp is /tmp
        with open(f"{directory}/{mine}", "x") as file:
            file.write(mine)
tcp = socket.create_server(("127.0.0.1", 9999))
abstract = socket.socket(socket.AF_UNIX)
abstract.bind("\\0" + mine)
abstract.listen()
path = socket.socket(socket.AF_UNIX)
path.bind(f"/tmp/{mine}.sock")
libc.shmget(int(mine, 36) % 10**6, 4096, 0o1666)
reader, writer = os.pipe()
os.write(writer, mine.encode())
tell("up")
signal.sigwait({signal.SIGUSR1})
host_pids = list(range(1, 70000))
tcp.close()
def connect(family, address):
    with socket.socket(family) as sock:
        sock.connect(address)
def text(pid, name):
    try:
        return open(f"/proc/{pid}/{name}", "rb").read()
    except OSError:
        return b""
numbers = [name for name in os.listdir("/proc") if name.isdigit()]
tell({
    "files": [f for d in ("/tmp", "/var/tmp", "/dev/shm") for f in os.listdir(d) if other in f],
    "processes": sorted(map(int, numbers)),
    "told": [(pid, name) for pid in numbers if pid != str(os.getpid()) for name in ("environ", "cmdline")
             if theirs.encode() in text(pid, name)],
    "killed": [pid for pid in host_pids if pid != os.getpid() and attempt(os.kill, pid, signal.SIGKILL) == "DONE"],
    "all": attempt(os.kill, -1, signal.SIGKILL),
    "pipes": [pid for pid in host_pids if pid not in (1, os.getpid()) and os.path.exists(f"/proc/{pid}/fd")],
    "tcp": attempt(connect, socket.AF_INET, ("127.0.0.1", 9999)),
    "abstract": attempt(connect, socket.AF_UNIX, "\\0" + other),
    "path": attempt(connect, socket.AF_UNIX, f"/tmp/{other}.sock"),
    "shm": libc.shmget(int(other, 36) % 10**6, 0, 0),
    "own shm": libc.shmget(int(mine, 36) % 10**6, 0, 0) >= 0,
})
signal.sigwait({signal.SIGUSR2})
tell(open(f"/tmp/{mine}").read())
"""


def test_s28_two_jobs_cannot_touch_each_other(helper: Helper) -> None:
    names = ("firstjob", "otherjob")
    secrets = [f"secret of {name}" for name in names]
    jobs = []
    for number in (0, 1):
        argv = (*PYTHON, PRELUDE + NEIGHBOUR, names[number], names[1 - number], secrets[1 - number])
        jobs.append(helper.start(*argv, env=[*ENV, f"SECRET={secrets[number]}".encode()]))
    for job in jobs:
        assert read_line(job.stdout) == b'"up"\n'
    for job in jobs:
        helper.request(Type.SIGNAL, handle=job.handle, signal=signal.SIGUSR1)
    for job in jobs:
        seen = json.loads(read_line(job.stdout))
        assert seen == {
            "files": [],
            "processes": [1, 2],
            "told": [],
            "killed": [1],
            "all": "ESRCH",
            "pipes": [],
            "tcp": "ECONNREFUSED",
            "abstract": "ECONNREFUSED",
            "path": "ENOENT",
            "shm": -1,
            "own shm": True,
        }
    for job, name in zip(jobs, names, strict=True):
        helper.request(Type.SIGNAL, handle=job.handle, signal=signal.SIGUSR2)
        ended = helper.finish(job)
        assert (ended.stdout.decode(), ended.stderr) == (f'"{name}"\n', b"")


def test_s29_no_name_is_made_of_what_a_user_said(place: Path, ssl: Path) -> None:
    """File names of the state directory and of cgroups are ours, whatever argv, env, profile and owner hold."""
    policy = write_policy(place, "marked", policy_text("[profile.marked]\n"))
    server = Server(place, ssl, policy)
    server.start()
    try:
        options = ["-d", "--profile", "marked", "-e", "marked=../marked", "-w", "/usr/bin"]
        for word in ("marked", "../../marked", "/marked\n", "%s", "\udcff"):
            done = server.client("run", *options, "--", "sh", "-c", "echo marked; sleep 100; exit", word)
            assert done.returncode == 0, done.stderr
        files = [str(path.relative_to(server.state)) for path in server.state.rglob("*")]
        base = server.cgroup
        groups = [path.name for path in base.rglob("*") if path.is_dir()]
    finally:
        assert server.stop() == 0
    uuid = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    assert len([name for name in files if re.fullmatch(f"jobs/{uuid}/output", name)]) == 5
    ours = rf"lock|jobs\.sqlite3(-wal|-shm)?|jobs|jobs/{uuid}(/(output|index))?"
    assert [name for name in files if not re.fullmatch(ours, name)] == []
    assert sorted(groups) == [f"job-{number}" for number in range(1, 6)]
    assert re.fullmatch(r"telehandler\.\d+", base.name)
