"""What the api's process may do (S13); what its user could do to the helper, and a job to the api (S12)."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cgroups import cgroup_root
from support.checkout import ROOT
from support.command_line import telehandler
from support.helper_driver import Helper
from support.processes import descendants
from support.servers import Server
from support.wait import wait_until

from telehandler.common import control

pytestmark = pytest.mark.usefixtures("as_root")
NOBODY = 65534
NONE = "0" * 16
# Arguments: a pid to attack, an address in its memory, files to write, directories to write to. errno of each attempt,
# 0 for one that succeeded.
ATTACK = r"""
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
pid, address, files, directories = json.loads(sys.argv[1])
def attempt(action):
    try:
        action()
    except OSError as error:
        return error.errno
    return 0
def call(number, *arguments):
    if libc.syscall(number, *(ctypes.c_ulong(word) if isinstance(word, int) else word for word in arguments)) < 0:
        raise OSError(ctypes.get_errno(), "")
def read_memory():
    memory = ctypes.create_string_buffer(64)
    local = (ctypes.c_ulong * 2)(ctypes.addressof(memory), 64)
    call(310, pid, local, 1, (ctypes.c_ulong * 2)(address, 64), 1, 0)  # process_vm_readv
result = {name: attempt(lambda: os.close(os.open(f"/proc/{pid}/{name}", os.O_RDONLY)))
          for name in ("mem", "maps", "environ", "fd", "map_files")}
result |= {
    "exe": attempt(lambda: os.readlink(f"/proc/{pid}/exe")),
    "cwd": attempt(lambda: os.readlink(f"/proc/{pid}/cwd")),
    "memory": attempt(read_memory),
    "pidfd_getfd": attempt(lambda: call(438, os.pidfd_open(pid), 0, 0)),
    "ptrace": attempt(lambda: call(101, 0x4206, pid, 0, 0)),  # PTRACE_SEIZE: does not stop it
}
signal = attempt(lambda: os.kill(pid, 0))
result |= {path: attempt(lambda: os.close(os.open(path, os.O_WRONLY))) for path in files}
result |= {path: 0 if os.access(path, os.W_OK) else 13 for path in directories}
print(json.dumps([os.getuid(), signal, result]))
"""
# Starts an api as root starts one that has kept what it could: a capability in every set, root's uid here or there.
API = """
import capng, os, sys
from telehandler.api import process
uids = [int(word) for word in sys.argv[1:]]
if any(uids):
    capng.capng_clear(capng.CAPNG_SELECT_BOTH)
    kinds = capng.CAPNG_PERMITTED | capng.CAPNG_EFFECTIVE | capng.CAPNG_INHERITABLE | capng.CAPNG_BOUNDING_SET
    for capability in (capng.CAP_NET_RAW, capng.CAP_SETUID):
        capng.capng_update(capng.CAPNG_ADD, kinds, capability)
    if 0 not in uids:
        assert capng.capng_change_id(uids[0], uids[0], capng.CAPNG_DROP_SUPP_GRP) == 0
    os.setresuid(*uids)
print(open("/proc/self/status").read(), flush=True)
process.main()
"""


def _status(text: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def _status_of(pid: int) -> dict[str, str]:
    return _status(Path(f"/proc/{pid}/status").read_text())


def _powerless(pid: int) -> bool:
    """No capability, no way to one, and not dumpable: root owns what /proc tells of it."""
    status = _status_of(pid)
    gone = {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Amb")} == {NONE}
    return gone and status["NoNewPrivs"] == "1" and os.stat(f"/proc/{pid}/mem").st_uid == 0


def _attack(uid: int, pid: int, files: list[Path], directories: list[Path], **popen: Any) -> tuple[int, dict[str, int]]:
    """errno of a signal and of each attempt on a process, as `uid`."""
    address = int(Path(f"/proc/{pid}/maps").read_text().partition("-")[0], 16)
    goal = json.dumps([pid, address, [str(path) for path in files], [str(path) for path in directories]])
    command = ["/usr/bin/python3", "-I", "-S", "-c", ATTACK, goal]
    who: dict[str, Any] = {"user": uid, "group": uid, "extra_groups": []}
    done = subprocess.run(command, cwd="/", capture_output=True, check=False, timeout=60, **who, **popen)
    assert done.returncode == 0, done.stderr
    was, signal, result = json.loads(done.stdout)
    assert was == uid
    return signal, result


def test_s13_started_by_root_the_api_has_nothing_of_root(server: Server) -> None:
    assert server.process is not None
    for pid in (server.children()["api"], server.process.pid):  # the supervisor too
        status = _status_of(pid)
        assert "0" not in status["Uid"].split() + status["Gid"].split()
        assert len({*status["Uid"].split()}) == len({*status["Gid"].split()}) == 1
        assert status["Groups"].split() == []
        assert status["CapBnd"] == NONE
        assert _powerless(pid)
    assert _status_of(server.children()["helper"])["CapEff"] != NONE  # that there is something to lose


@pytest.fixture
def start_api() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    started: list[subprocess.Popen[str]] = []
    channels: list[socket.socket] = []

    def start(*uids: int) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", API, *map(str, uids)]
        ours, theirs = control.pair()
        channels.append(ours)
        pipes = {"stdin": theirs.fileno(), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with theirs:
            started.append(subprocess.Popen(command, cwd=ROOT, text=True, **pipes))  # type: ignore[call-overload]
        return started[-1]

    yield start
    for channel in channels:
        channel.close()
    for process in started:
        with process:
            process.kill()


def test_s13_everything_is_dropped_before_it_listens(start_api: Callable[..., "subprocess.Popen[str]"]) -> None:
    """It is powerless while it waits for its spec: before it knows an address, a key or the helper's socket."""
    api = start_api(NOBODY, NOBODY, NOBODY)
    assert api.stdout is not None
    text = "".join(iter(api.stdout.readline, "\n"))
    for kind in ("Inh", "Prm", "Eff"):
        assert _status(text)[f"Cap{kind}"] != NONE  # what it was started with
    assert _status(text)["NoNewPrivs"] == "0"
    wait_until("it has dropped all", lambda: _powerless(api.pid))
    assert api.poll() is None
    assert len([link for link in _fds(api.pid) if link.startswith("socket:")]) == 1  # the one that it waits at


def _fds(pid: int) -> list[str]:
    return [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]


@pytest.mark.parametrize("uids", [(0, 0, 0), (0, NOBODY, NOBODY), (NOBODY, 0, NOBODY), (NOBODY, NOBODY, 0)])
def test_s13_it_never_runs_as_root(start_api: Callable[..., "subprocess.Popen[str]"], uids: tuple[int, ...]) -> None:
    """Nor with a real or a saved uid through which it could be root again."""
    api = start_api(*uids)
    _, errors = api.communicate(timeout=30)
    assert (api.returncode, errors.count("\n")) == (125, 1)
    assert "must not run as root" in errors


def test_s13_the_server_is_not_told_to_serve_as_root(place: Path, ssl: Path, policy: Path) -> None:
    server = Server(place, ssl, policy, options=("--user", "root"))
    done = telehandler(*server.server_arguments())
    assert (done.returncode, done.stdout) == (125, "")
    assert "never runs as root" in done.stderr
    assert not server.state.exists()


# Puts a key into the session keyring, as a login or a mount may, gives up root or not, looks for it.
KEYS = """
import ctypes, errno, pwd, sys
from telehandler.common import privileges
libc = ctypes.CDLL(None, use_errno=True)
SESSION, ADD_KEY, KEYCTL, JOIN, SEARCH = -3, 248, 250, 1, 10
assert libc.syscall(KEYCTL, JOIN, None) > 0
assert libc.syscall(ADD_KEY, b"user", b"telehandler-test", b"secret", 6, SESSION) > 0
if sys.argv[1] == "drop":
    privileges.drop_to(pwd.getpwnam("nobody"))
found = libc.syscall(KEYCTL, SEARCH, SESSION, b"user", b"telehandler-test", 0)
print("found" if found > 0 else errno.errorcode[ctypes.get_errno()])
"""


@pytest.mark.parametrize(("what", "expected"), [("keep", "found\n"), ("drop", "ENOKEY\n")])
def test_s13_the_keys_of_who_started_it_stay_behind(what: str, expected: str) -> None:
    command = [sys.executable, "-c", KEYS, what]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == (expected, "")


def test_s12_the_apis_user_cannot_touch_the_helper(server: Server, policy: Path) -> None:
    """As root the same attempts succeed: it is the user that stops them."""
    children = server.children()
    cgroup = server.cgroup
    detached = server.detach("sleep", "1000")
    job = next(cgroup.glob("job-*"))
    names = ("cgroup.procs", "cgroup.kill", "cgroup.subtree_control")
    files = [directory / name for directory in (cgroup, job) for name in names]
    files += [policy, ROOT / "helper" / "__main__.py", ROOT / "helper" / "policy.toml"]
    directories = [cgroup_root(), cgroup, job, policy.parent, ROOT / "helper"]
    uid = int(_status_of(children["api"])["Uid"].split()[0])
    signal, errors = _attack(uid, children["helper"], files, directories)
    assert signal == 1  # EPERM
    assert {what: error for what, error in errors.items() if error not in (1, 13)} == {}
    signal, errors = _attack(0, children["helper"], files, directories)
    assert (signal, {what: error for what, error in errors.items() if error}) == (0, {})
    assert server.client("stop", "--stop-timeout", "0", detached).returncode == 0


def test_s12_another_process_of_the_apis_user_cannot_touch_the_api(server: Server) -> None:
    """But for a signal: a user's processes may always do that, and the supervisor starts a new api."""
    pid = server.children()["api"]
    uid = int(_status_of(pid)["Uid"].split()[0])
    signal, errors = _attack(uid, pid, [], [])
    assert signal == 0
    assert {what: error for what, error in errors.items() if error not in (1, 13)} == {}


def test_s12_a_jobs_cgroup_fd_lets_the_api_write_nothing(policy: Path) -> None:
    """STARTED hands the api a directory of cgroupfs: it is for reading."""
    with Helper(policy) as helper:
        job = helper.start("sleep", "1000")
        cgroup = Path(f"/proc/self/fd/{job.cgroup}")
        files = [cgroup / "cgroup.procs", cgroup / "cgroup.kill", cgroup / ".." / "cgroup.procs"]
        _, errors = _attack(NOBODY, helper.process.pid, files, [cgroup, cgroup / ".."], pass_fds=[job.cgroup])
        assert {errors[str(path)] for path in (*files, cgroup, cgroup / "..")} == {13}
        _, errors = _attack(0, helper.process.pid, files, [cgroup, cgroup / ".."], pass_fds=[job.cgroup])
        assert {errors[str(path)] for path in (*files, cgroup, cgroup / "..")} == {0}
        job.close()


@pytest.fixture
def in_sight(ssl: Path, policy: Path, as_root: None) -> Iterator[Server]:
    """A server whose keys and state lie where jobs see them: only modes and owners protect them there."""
    with tempfile.TemporaryDirectory(prefix="telehandler-test-", dir="/srv") as name:
        place = Path(name)
        place.chmod(0o755)
        shutil.copytree(ssl, place / "ssl")
        with Server(place, place / "ssl", policy) as server:
            yield server


# Arguments: the api's port, pids of the server, files to read. What a job gets to see.
JOB = r"""
import json, os, socket, sys
port, pids, files = json.loads(sys.argv[1])
def attempt(action):
    try:
        action()
    except OSError as error:
        return error.errno
    return 0
print(json.dumps({
    "uid": os.getuid(),
    "files": {path: attempt(lambda: (os.listdir if os.path.isdir(path) else open)(path)) for path in files},
    "signals": [attempt(lambda: os.kill(pid, 0)) for pid in pids],
    "proc": [os.path.exists(f"/proc/{pid}") for pid in pids],
    "connect": attempt(lambda: socket.create_connection(("127.0.0.1", port), 5)),
}))
"""


def test_s12_a_job_cannot_touch_the_api_its_keys_or_its_state(in_sight: Server) -> None:
    server = in_sight
    assert server.process is not None
    assert server.client("run", "--", "echo", "of another job").returncode == 0
    pids = [server.process.pid, *descendants(server.process.pid)]
    secret = [server.ssl / f"{name}-key.pem" for name in ("root", "server", "client", "admin")]
    secret += [server.state, *(server.state / name for name in ("jobs", "lock", "jobs.sqlite3"))]
    secret += sorted((server.state / "jobs").glob("*/output"))
    assert all(path.exists() for path in secret)
    assert len(secret) == 9
    goal = json.dumps([server.port, pids, [str(path) for path in (*secret, server.ssl / "root.pem")]])
    done = server.client("run", "--", "/usr/bin/python3", "-I", "-S", "-c", JOB, goal)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["files"].pop(str(server.ssl / "root.pem")) == 0  # the place is in sight
    assert set(seen["files"].values()) == {13}
    assert set(seen["signals"]) == {3}  # ESRCH: it has its own pids
    assert not any(seen["proc"])
    assert seen["connect"] == 111  # ECONNREFUSED: its own loopback
    assert re.search(rf"job uid +{seen['uid']}$", server.client("status").stdout.decode(), re.MULTILINE)
    servers = {_status_of(pid)["Uid"].split()[0] for pid in pids}
    assert str(seen["uid"]) not in servers
