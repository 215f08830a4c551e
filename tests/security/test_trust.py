"""Whom and what the helper trusts before it serves: the peer, its own code, the policy, nothing of the environment."""

import errno
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sudo_user
from driver import VIOLATION, Helper
from servers import CONTROLLERS, DEADLINE_S, ROOT, alive, cgroup_root, descendants, policy_text, write_policy

from helper import policy as rules
from helper import wire
from helper.wire import Stage, Type

pytestmark = pytest.mark.usefixtures("as_root")
PYTHON = ["/usr/bin/python3", "-I", "-S"]
NOBODY = 65534
EXIT_SETUP = 125


def outcome(*command: str, **options: object) -> tuple[int, str]:
    """(0, nothing said) of a helper that started and met the end of its socket; else its refusal."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()
    with theirs:
        return _run(theirs.fileno(), *command, **options)


def _run(stdin: int, *command: str, **options: object) -> tuple[int, str]:
    done = subprocess.run(  # type: ignore[call-overload]
        command, stdin=stdin, capture_output=True, text=True, check=False, timeout=60, **({"cwd": "/"} | options)
    )
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == (done.returncode != 0)
    return done.returncode, done.stderr


def helper_of(code: Path, policy: Path) -> list[str]:
    return [*PYTHON, str(code / "helper"), "--policy", str(policy)]


@pytest.fixture
def code(place: Path) -> Iterator[Path]:
    """A copy of the helper that a test may spoil."""
    directory = place / "code of the helper"
    shutil.copytree(ROOT / "helper", directory / "helper", ignore=shutil.ignore_patterns("__pycache__"))
    for path in [directory, *directory.rglob("*")]:
        os.chown(path, 0, 0)
        path.chmod(0o755 if path.is_dir() else 0o644)
    yield directory
    shutil.rmtree(directory)


# S7


def test_s7_stdin_must_be_a_connected_socket(policy: Path) -> None:
    command = helper_of(ROOT, policy)
    with open(os.devnull) as file:
        status, said = _run(file.fileno(), *command)
    assert (status, "stdin is not a connected socket" in said) == (EXIT_SETUP, True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as alone:
        status, said = _run(alone.fileno(), *command)
    assert (status, "stdin is not a connected socket" in said) == (EXIT_SETUP, True)


def test_s7_a_peer_who_did_not_start_it_is_refused(policy: Path) -> None:
    os.seteuid(NOBODY)
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    finally:
        os.seteuid(0)
    with ours, theirs:
        status, said = _run(theirs.fileno(), *helper_of(ROOT, policy))
        assert (status, f"uid {NOBODY} may not use the helper" in said) == (EXIT_SETUP, True)
        ours.close()
        # The same socket is good when that user is the one behind sudo, and then again not when the policy says so.
        assert _run(theirs.fileno(), *helper_of(ROOT, policy), env={"SUDO_UID": str(NOBODY)}) == (0, "")


def test_s7_the_policy_can_name_the_only_uids(place: Path) -> None:
    only = write_policy(place, "allowed", policy_text("allowed_uids = [12345]\n"))
    status, said = outcome(*helper_of(ROOT, only))
    assert (status, "allowed_uids" in said) == (EXIT_SETUP, True)
    both = write_policy(place, "allowed", policy_text("allowed_uids = [12345, 0]\n"))
    assert outcome(*helper_of(ROOT, both)) == (0, "")


def test_s7_a_keeper_is_for_root_alone(policy: Path) -> None:
    """A stream socket makes a keeper, which starts helpers for its peer: not for a user, not for one behind sudo."""
    for uid, caller in ((NOBODY, str(NOBODY)), (0, str(NOBODY)), (NOBODY, "0")):
        os.seteuid(uid)
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        finally:
            os.seteuid(0)
        with ours, theirs:
            status, said = _run(theirs.fileno(), *helper_of(ROOT, policy), env={"SUDO_UID": caller})
            assert (status, "may not use the helper" in said) == (EXIT_SETUP, True)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        ours.close()
        assert _run(theirs.fileno(), *helper_of(ROOT, policy)) == (0, "")


def test_s7_a_keeper_starts_one_helper_for_each_byte_and_only_after_a_kill(policy: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.settimeout(DEADLINE_S)
    with theirs:
        keeper = subprocess.Popen(
            helper_of(ROOT, policy), stdin=theirs.fileno(), env={"LANG": "C", "LEAK": "1"}, cwd="/", stderr=-3
        )
    with keeper, ours:
        first, pid = _ask_keeper(ours, keeper.pid, b"L")
        os.kill(pid, signal.SIGKILL)
        assert first.recv(1) == b""
        second, other = _ask_keeper(ours, keeper.pid, b"LL")
        assert not alive(pid)
        assert descendants(keeper.pid) == [other]  # one at a time, whatever was asked for
        second.send(b"no message")  # a violation: it would come again
        assert second.recv(16) == b""
        first.close()
        second.close()
        assert keeper.wait(DEADLINE_S) == VIOLATION


def _ask_keeper(control: socket.socket, keeper: int, order: bytes) -> tuple[socket.socket, int]:
    """A helper's socket, greeted, and its pid."""
    control.send(order)
    _, fds, _, _ = socket.recv_fds(control, 16, 4)
    assert len(fds) == 1
    link = socket.socket(fileno=fds[0])
    link.settimeout(DEADLINE_S)
    link.send(wire.pack(Type.HELLO, 1))
    assert wire.unpack(link.recv(wire.MAX_MESSAGE)).type is Type.WELCOME
    (pid,) = descendants(keeper)
    assert Path(f"/proc/{pid}/environ").read_bytes() == b""
    assert len(os.listdir(f"/proc/{pid}/fd")) == len(os.listdir(f"/proc/{keeper}/fd")) + 1  # and its directory
    return link, pid


def test_s7_the_socket_never_reaches_a_job(policy: Path) -> None:
    with Helper(policy) as helper:
        job = helper.start("sleep", "100")
        pids = (helper.cgroup / f"job-{job.handle}" / "cgroup.procs").read_text().split()
        assert len(pids) == 2  # init and main
        for pid in pids:
            links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
            assert not [link for link in links if link.startswith(("socket:", "anon_inode:", "/sys"))]
        job.close()


# S8, S10


def test_s8_the_number_of_jobs_and_the_rate_of_starts_are_the_policys(place: Path) -> None:
    with Helper(write_policy(place, "two", policy_text("max_jobs = 2\n"))) as helper:
        assert helper.welcome["max_jobs"] == 2
        jobs = [helper.start("sleep", "100") for _ in range(2)]
        stage, number, text = helper.refused("true")
        assert (stage, number) == (Stage.CAPACITY, errno.EAGAIN)
        assert "2 jobs" in text
        assert len(list(helper.cgroup.glob("job-*"))) == 2
        helper.ask(Type.KILL, handle=jobs[0].handle)
        helper.exited(jobs[0])
        assert helper.refused("true")[0] is Stage.CAPACITY  # until it is released, it holds fds and memory
        helper.finish(jobs[0])
        assert helper.run("true").facts["exit_code"] == 0
    with Helper(write_policy(place, "slow", policy_text("starts_per_second = 2\n"))) as helper:
        # Failed starts count too.
        assert helper.refused("/no/such")[0] is Stage.EXEC
        assert [helper.ask_start("true")[0].type for _ in range(2)] == [Type.STARTED, Type.ERROR]


@pytest.mark.parametrize("name", wire.LIMITS.split())
def test_s10_one_over_a_maximum_is_refused(policy: Path, name: str) -> None:
    maximum = rules.parse("", "").maximum[name]
    with Helper(policy) as helper:
        stage, number, text = helper.refused("true", **{name: maximum + 1})
        assert (stage, number) == (Stage.LIMIT, errno.EINVAL)
        assert f"{name} is over {maximum}" in text
        assert not list(helper.cgroup.glob("job-*"))


def test_s10_a_limit_is_in_force_as_asked_and_zero_is_the_policys_default(place: Path) -> None:
    text = policy_text("[limits.maximum]\nopen_files = 2000\n")
    with Helper(write_policy(place, "limits", text)) as helper:
        assert helper.refused("true", open_files=2001)[0] is Stage.LIMIT
        assert helper.run("sh", "-c", "ulimit -Hn; ulimit -Sn", open_files=77).stdout == b"77\n77\n"
        assert helper.run("sh", "-c", "ulimit -Hn").stdout == b"1024\n"


@pytest.fixture
def bare_cgroup() -> Iterator[Path]:
    """A cgroup whose parent hands no controller down: as on a machine that has none."""
    outer = cgroup_root() / f"test-of-telehandler-{os.getpid()}"
    inner = outer / "bare"
    inner.mkdir(parents=True)
    yield inner
    inner.rmdir()
    outer.rmdir()


def test_s10_a_missing_controller_is_named_unless_the_policy_allows_it(place: Path, bare_cgroup: Path) -> None:
    root = ("--cgroup-root", str(bare_cgroup))
    for number, missing in enumerate(CONTROLLERS):
        partly = write_policy(place, "partly", f"allow_missing_controllers = {list(CONTROLLERS[:number])}")
        with Helper(partly, *root) as helper:
            assert helper.welcome["missing_controllers"] == [name.encode() for name in CONTROLLERS]
            stage, error, text = helper.refused("true")
            assert (stage, error) == (Stage.LIMIT, errno.EOPNOTSUPP)
            assert f"the cgroup controller {missing} is not available" in text
            assert "allow_missing_controllers" in text
    allowed = write_policy(place, "partly", f"allow_missing_controllers = {list(CONTROLLERS)}")
    with Helper(allowed, *root) as helper:
        assert helper.run("true").facts["exit_code"] == 0


# S11


def _others(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o002)


def _group(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o020)


def _owned(path: Path) -> None:
    os.chown(path, NOBODY, 0)


@pytest.mark.parametrize("spoil", [_others, _group, _owned], ids=["others", "group", "owner"])
@pytest.mark.parametrize("name", [".", "helper", "helper/spawn.py", "helper/policy.toml", "helper/seccomp.toml"])
def test_s11_code_that_is_not_roots_alone_does_not_start(
    code: Path, policy: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    assert outcome(*helper_of(code, policy)) == (0, "")
    spoil(code / name)
    status, said = outcome(*helper_of(code, policy))
    assert status == EXIT_SETUP
    assert f"{(code / name).resolve()} is not root's alone" in said


def test_s11_cached_bytecode_is_code(code: Path, policy: Path) -> None:
    assert outcome(*helper_of(code, policy)) == (0, "")
    cached = next((code / "helper").rglob("*.pyc"))
    _owned(cached)
    status, said = outcome(*helper_of(code, policy))
    assert (status, "is not root's alone" in said) == (EXIT_SETUP, True)


def test_s11_a_policy_that_is_not_roots_alone_does_not_start(place: Path) -> None:
    path = write_policy(place, "open", policy_text())
    assert outcome(*helper_of(ROOT, path)) == (0, "")
    for spoil in (_others, _owned):
        spoil(path)
        status, said = outcome(*helper_of(ROOT, path))
        assert (status, "is not root's alone" in said) == (EXIT_SETUP, True)
        os.chown(path, 0, 0)
        path.chmod(0o644)
    directory = place / "open directory"
    directory.mkdir()
    directory.chmod(0o777)
    status, said = outcome(*helper_of(ROOT, write_policy(directory, "inside", policy_text())))
    assert (status, "is not root's alone" in said) == (EXIT_SETUP, True)
    link = place / "link.toml"
    link.symlink_to(directory / "inside.toml")
    assert outcome(*helper_of(ROOT, link))[0] == EXIT_SETUP
    assert "cannot be read" in outcome(*helper_of(ROOT, place / "none.toml"))[1]


@pytest.fixture(scope="module")
def trap(place: Path) -> Path:
    """A directory of modules and a library that tell in `mark` who loaded them."""
    directory = place / "trap"
    directory.mkdir()
    mark = directory / "mark"
    text = f"open({str(mark)!r}, 'a').write(__name__)\n"
    for name in "struct json socket resource tomllib sitecustomize usercustomize prctl capng helper startup".split():
        (directory / f"{name}.py").write_text(text)
    source = "#include <fcntl.h>\n#include <unistd.h>\n__attribute__((constructor)) static void told(void)\n"
    source += f'{{ if (geteuid() == 0) close(open("{mark}", O_CREAT | O_WRONLY, 0600)); }}\n'
    (directory / "trap.c").write_text(source)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", "trap.so", "trap.c"], cwd=directory, check=True)
    directory.chmod(0o755)
    return directory


def _environment(trap: Path) -> dict[str, str]:
    names = {name: str(trap) for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "HOME", "PYTHONPLATLIBDIR")}
    return names | {"PYTHONSTARTUP": str(trap / "startup.py"), "PYTHONINSPECT": "1", "PYTHONMALLOC": "debug"}


def test_s11_environment_and_directory_have_no_say_in_what_is_loaded(policy: Path, trap: Path) -> None:
    mark = trap / "mark"
    search = {"PYTHONPATH": str(trap)}
    subprocess.run(["/usr/bin/python3", "-c", "import json, struct"], cwd=trap, env=search, check=True)
    assert mark.read_text()  # the trap works
    mark.unlink()
    assert outcome(*helper_of(ROOT, policy), cwd=trap, env=_environment(trap)) == (0, "")
    assert not mark.exists()


@pytest.mark.parametrize("target", ["install", "install-sudoers"])
def test_s11_a_users_environment_does_not_reach_root(place: Path, ssl: Path, trap: Path, target: str) -> None:
    """LD_PRELOAD too, through the setuid wrapper and through sudo."""
    mark = trap / "mark"
    environment = _environment(trap) | {"LD_PRELOAD": str(trap / "trap.so"), "LD_LIBRARY_PATH": str(trap)}
    subprocess.run(["/bin/true"], env=environment, check=True)
    assert mark.exists()  # the trap works for who is root already
    mark.unlink()
    commands = {
        "install": [str(sudo_user.INSTALLED / "telehandler-helper")],
        "install-sudoers": ["sudo", "-n", *PYTHON, str(sudo_user.INSTALLED / "helper")],
    }
    with sudo_user.installed(place, target) as options:
        who = {name: options[name] for name in ("user", "group", "extra_groups")}
        os.seteuid(who["user"])  # the socket is the user's
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        finally:
            os.seteuid(0)
        with theirs:
            ours.close()
            environment |= {"PATH": "/usr/bin:/bin"}
            assert _run(theirs.fileno(), *commands[target], cwd=trap, env=environment, **who) == (0, "")
    assert not mark.exists()
