"""R23: whatever state a server inherits from whoever starts it, it works as ever, or says in one line why not."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checkout import ROOT
from support.command_line import COMMAND
from support.servers import Server

# Sets a state, then becomes the server.
LAUNCH = """
import os, resource, signal, sys
exec(sys.argv[1])
os.execv(sys.argv[2], sys.argv[2:])
"""
# The same as another user, who may not be able to read the code: it is loaded before.
AS_USER = """
import os, resource
import telehandler.cli, telehandler.cli.server, telehandler.supervisor.server
os.setresuid({user}, {user}, {user})
{state}
telehandler.cli.main()
"""
STATES = {
    "sigchld-ignored": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "all-ignored": "[signal.signal(n, signal.SIG_IGN) for n in signal.valid_signals() - {9, 19}]",
    "all-blocked": "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
    "no-stdin": "os.close(0)",
    "no-stdout": "os.close(1)",
    "no-stdin-nor-stdout": "os.closerange(0, 2)",
    "nice": "os.nice(19)",
    "idle": "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))",
    "umask-0": "os.umask(0)",
    "umask-777": "os.umask(0o777)",
    "few-files": "resource.setrlimit(resource.RLIMIT_NOFILE, (32, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))",
    "small-files": "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, -1))",
    "little-memory": "resource.setrlimit(resource.RLIMIT_DATA, (150 << 20, -1))",
    "little-time": "resource.setrlimit(resource.RLIMIT_CPU, (60, -1))",
    "locale": "os.environ.update(LC_ALL='xx_XX.nothing', LANG='de_DE.ISO-8859-1', PYTHONUTF8='0')",
    "environment": "os.environb.update({b'\\xff': b'\\xfe', b'http_proxy': b'http://127.0.0.1:9', "
    "b'GRPC_TRACE': b'all', b'GRPC_VERBOSITY': b'debug', b'PYTHONPATH': b'/nonexistent', b'PYTHONINSPECT': b'1'})",
}


def _launch(state: str, command: list[str]) -> list[str]:
    return ["/usr/bin/python3", "-c", LAUNCH, state, *command]


@pytest.mark.parametrize("state", STATES)
def test_r23_the_callers_state_has_no_effect(make_server: Callable[..., Server], state: str) -> None:
    server = make_server(command=_launch(STATES[state], COMMAND))
    done = server.client("run", "--", "sh", "-c", "echo out; echo err >&2; head -c 100000 /dev/zero >&2; exit 7")
    assert (done.returncode, done.stdout, len(done.stderr)) == (7, b"out\n", 100004)
    assert server.process is not None
    for pid in (server.process.pid, server.children()["api"]):
        assert os.getpriority(os.PRIO_PROCESS, pid) == 0
        assert os.sched_getscheduler(pid) == os.SCHED_OTHER
        status = Path(f"/proc/{pid}/status").read_text()
        assert int(status.split("SigBlk:")[1].split()[0], 16) == 0
        assert not int(status.split("SigIgn:")[1].split()[0], 16) >> (signal.SIGCHLD - 1) & 1
        assert _soft_limits(pid, "file size", "data size", "cpu time", "address space") == ["unlimited"] * 4
    assert int(_soft_limits(server.children()["api"], "open files")[0]) >= 1024
    for path in (server.state, *server.state.iterdir()):
        assert path.stat().st_mode & 0o077 == 0
    assert "Traceback" not in server.log_text()
    assert server.stop() == 0


def _soft_limits(pid: int, *names: str) -> list[str]:
    text = Path(f"/proc/{pid}/limits").read_text()
    return [text.split(f"Max {name}")[1].split()[0] for name in names]


@pytest.mark.parametrize("named", ["absolute", "relative"])
def test_r23_a_deleted_working_directory(
    make_server: Callable[..., Server], place: Path, ssl: Path, policy: Path, named: str
) -> None:
    gone = tempfile.mkdtemp(dir=place)
    state = f"os.chdir({gone!r}); os.rmdir({gone!r}); os.environ['PYTHONPATH'] = {str(ROOT)!r}"
    command = _launch(state, COMMAND)
    if named == "absolute":
        server = make_server(command=command)
        assert server.client("run", "--", "pwd").stdout == b"/\n"
        assert server.stop() == 0
        return
    arguments = Server(place, Path("ssl"), policy).server_arguments()
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 125
    assert done.stderr.count("\n") == 1
    assert "the working directory has been deleted" in done.stderr


@pytest.mark.parametrize("user", [0, 65534], ids=["root", "user"])
@pytest.mark.parametrize(("name", "flag"), [("FSIZE", "f"), ("NOFILE", "n"), ("CPU", "t"), ("AS", "v"), ("DATA", "d")])
def test_r23_a_hard_limit_is_raised_or_named(
    make_server: Callable[..., Server], place: Path, ssl: Path, name: str, flag: str, user: int
) -> None:
    """Root raises it, where its capabilities allow that; who may not is told which one, before anything is started."""
    value = 100 if name in ("FSIZE", "NOFILE") else 60 if name == "CPU" else 500 << 20
    state = f"resource.setrlimit(resource.RLIMIT_{name}, ({value}, {value}))"
    if user == 0 and _may_raise():
        server = make_server(command=_launch(state, COMMAND))
        assert server.client("run", "--", "true").returncode == 0
        assert server.stop() == 0
        return
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60, "check": False, "cwd": ROOT}
    code = AS_USER.format(state=state, user=user)
    arguments = Server(place, ssl, None).server_arguments()
    done = subprocess.run([sys.executable, "-c", code, *arguments], **options)
    assert done.returncode == 125, done.stderr
    assert f"`ulimit -H{flag}` must be" in done.stderr
    assert done.stderr.count("\n") == 1


def _may_raise() -> bool:
    """CAP_SYS_RESOURCE, which a container's root lacks."""
    code = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (9, 9)); r.setrlimit(r.RLIMIT_FSIZE, (-1, -1))"
    return subprocess.run(["/usr/bin/python3", "-c", code], capture_output=True, check=False).returncode == 0
