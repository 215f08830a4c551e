"""How the helper behaves as a root process: signals, fds, core dumps, forks."""

import ast
import os
import re
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.helper_driver import Helper, Job, read_line
from support.wait import wait_until

from helper.wire import Type

pytestmark = pytest.mark.usefixtures("as_root")
SOURCES = {path.name: ast.parse(path.read_text()) for path in (ROOT / "helper").glob("*.py")}


@pytest.fixture
def busy(policy: Path) -> Iterator[tuple[Helper, Job]]:
    """A helper with jobs in several states."""
    with Helper(policy) as helper:
        job = helper.start("sh", "-c", "echo up; sleep 100")
        ended = helper.start("true")
        helper.exited(ended)
        assert read_line(job.stdout) == b"up\n"
        yield helper, job
        for one in (job, ended):
            one.close()


def _calls(name: str) -> Iterator[tuple[str, ast.Call]]:
    """Calls of a function or method of that name, with the file each is in."""
    for file, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == name:
                yield file, node


def test_s31_signal_handlers_have_no_logic() -> None:
    found = [ast.unparse(node.args[1]) for _, node in _calls("signal")]
    assert found
    assert set(found) <= {"lambda *_: None", "signal.SIG_IGN", "signal.SIG_DFL"}


def test_s31_the_helper_signals_by_pidfd_and_cgroup_alone() -> None:
    """Only the job's init uses a pid, of the child that it has yet to reap: it can mean nothing else."""
    tree = SOURCES["init.py"]
    init = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "_serve")
    for name in ("kill", "killpg"):
        for file, node in _calls(name):
            by_cgroup = ast.unparse(node.func) in ("cgroup.kill", "kill") and file in ("jobs.py", "cgroup.py")
            assert by_cgroup or (file == "init.py" and init.lineno <= node.lineno <= (init.end_lineno or 0))
    uses = {
        ast.unparse(node) for tree in SOURCES.values() for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    }
    assert {use for use in uses if use.endswith((".kill", ".killpg"))} == {"cgroup.kill", "os.kill", "os.killpg"}
    assert "os.kill" in ast.unparse(init)
    assert [file for file, _ in _calls("pidfd_send_signal")]


def test_s31_signals_of_a_terminal_are_for_the_server(busy: tuple[Helper, Job]) -> None:
    helper, job = busy
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
        helper.process.send_signal(number)
    assert helper.request(Type.KILL, handle=job.handle).type is Type.DONE
    assert helper.exited(job)["killed"] == 1


def test_s35_no_core_can_be_dumped(policy: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    assert before[1] != 0, "the test needs a limit above what the helper sets"
    with Helper(policy) as helper:
        assert resource.prlimit(helper.process.pid, resource.RLIMIT_CORE) == (0, 0)
        assert os.stat(f"/proc/{helper.process.pid}/environ").st_uid == 0
        job = helper.start("sleep", "100")
        pids = [int(pid) for pid in (helper.cgroup / f"job-{job.handle}" / "cgroup.procs").read_text().split()]
        for pid in pids:
            assert re.search(r"^Max core file size +0 +0 ", Path(f"/proc/{pid}/limits").read_text(), re.MULTILINE)
        # Not dumpable: its init's files in /proc are root's, not the job's uid's.
        assert os.stat(f"/proc/{min(pids)}/environ").st_uid == 0
        job.close()


def test_s35_every_fd_of_the_helper_closes_on_exec(busy: tuple[Helper, Job]) -> None:
    helper, _ = busy
    proc = Path(f"/proc/{helper.process.pid}/fdinfo")
    flags = {int(path.name): _flags(path) for path in proc.iterdir()}
    own = {fd: flag for fd, flag in flags.items() if fd > 2}  # 0 to 2 are those it was started with
    assert len(own) >= 9  # the base, signals, and of the jobs: pipes, pidfd, cgroup
    assert not [os.readlink(proc.parent / "fd" / str(fd)) for fd, flag in own.items() if not flag & os.O_CLOEXEC]


def _flags(path: Path) -> int:
    return int(path.read_text().partition("flags:")[2].split()[0], 8)


def test_s35_every_fork_is_of_a_function_that_never_returns() -> None:
    """`_child` and the init's `_run` end in os._exit whatever happens in them."""
    assert [file for file, _ in _calls("fork")] == ["init.py"]
    assert [file for file, _ in _calls("clone3")] == ["spawn.py"]
    for file, name, last in (("spawn.py", "_child", "init.begin("), ("init.py", "_run", "_serve(main)")):
        functions = {node.name: node for node in SOURCES[file].body if isinstance(node, ast.FunctionDef)}
        guard = functions[name].body[-1]
        assert isinstance(guard, ast.Try)
        assert [ast.unparse(line) for line in guard.finalbody] == ["os._exit(125)"]
        assert guard.handlers[0].type is not None
        assert ast.unparse(guard.handlers[0].type) == "BaseException"
        assert last in ast.unparse(guard.body[-1])


def test_s35_a_killed_init_leaves_no_second_helper(busy: tuple[Helper, Job]) -> None:
    """What was forked never runs the helper's loop: with the init dead, there is one process of that name."""
    helper, job = busy
    pids = [int(pid) for pid in (helper.cgroup / f"job-{job.handle}" / "cgroup.procs").read_text().split()]
    os.kill(min(pids), signal.SIGKILL)
    assert helper.exited(job)["signal"] == signal.SIGKILL
    children = Path(f"/proc/{helper.process.pid}/task/{helper.process.pid}/children")
    wait_until("no child is left", lambda: not children.read_text())
