"""A job's init, the compiled one and the helper's own: both start, reap, pass on and report alike."""

import errno
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.helper_driver import Helper, read_line
from support.process_usage import private_kib
from support.processes import alive
from support.wait import wait_until

from helper.wire import Stage, Type

pytestmark = pytest.mark.usefixtures("as_root")


def test_exit_codes_and_signals_are_told_apart(policy: Path, code: Path) -> None:
    with Helper(policy, code=code) as helper:
        for number in (0, 1, 125, 137, 255):
            facts = helper.run("sh", "-c", f"exit {number}").facts
            assert (facts["exit_code"], facts["signal"]) == (number, 0)
        for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1, signal.SIGPIPE):
            facts = helper.run("sh", "-c", f"kill -{number} $$").facts
            assert (facts["exit_code"], facts["signal"]) == (0, number)


@pytest.mark.parametrize(
    ("argv", "path", "number"),
    [
        ("no-such-program", b"/usr/bin:/bin", errno.ENOENT),
        ("no-such-program", b"", errno.ENOENT),
        ("/no/such", b"/bin", errno.ENOENT),
        ("/etc/passwd/x", b"/bin", errno.ENOTDIR),
        ("passwd/x", b"/etc", errno.ENOENT),
        ("/etc/passwd", b"/bin", errno.EACCES),
        ("passwd", b"/etc:/no/such", errno.EACCES),  # the first that is not "not there", whatever comes behind it
        ("passwd", b"/etc/passwd:/etc:", errno.EACCES),
        ("true", b"/" + b"x" * 5000, errno.ENAMETOOLONG),
        ("x" * 5000, b"/bin:/usr/bin", errno.ENAMETOOLONG),
        ("/usr", b"/bin", errno.EACCES),
    ],
)
def test_a_program_that_cannot_be_executed_is_told(
    policy: Path, code: Path, argv: str, path: bytes, number: int
) -> None:
    with Helper(policy, code=code) as helper:
        assert helper.start_error(argv, env=[b"PATH=" + path])[:2] == (Stage.EXEC, number)


def test_path_is_searched_as_exec_does(policy: Path, code: Path) -> None:
    with Helper(policy, code=code) as helper:
        for path in (b"/no/such:/etc/passwd:/bin:/etc", b"/usr/bin/:", b":/bin", b"/bin"):
            assert helper.run("true", env=[b"XPATH=/no", b"PATH=" + path]).facts["exit_code"] == 0, path
        assert helper.run("true", env=[b"A=1"]).facts["exit_code"] == 0  # without PATH
        # An empty part is the working directory; so is PATH when it is empty.
        for path in (b"", b":", b"/no/such:"):
            ended = helper.run("true", env=[b"PATH=" + path], place=[b"", os.path.realpath("/bin").encode()])
            assert ended.facts["exit_code"] == 0, path


def test_a_directory_that_is_refused_is_told(policy: Path, code: Path) -> None:
    with Helper(policy, code=code) as helper:
        for path, number in ((b"/no/such", errno.ENOENT), (b"/etc/passwd", errno.ENOTDIR), (b"/dev/fd", errno.EINVAL)):
            assert helper.start_error("true", place=[b"", path])[:2] == (Stage.CHDIR, number), path
        assert helper.run("pwd", place=[b"", b"/usr//bin/../bin"]).stdout == b"/usr/bin\n"


def test_words_and_environment_go_through_as_they_are(policy: Path, code: Path) -> None:
    env = [b"PATH=/usr/bin", b"LD_PRELOAD=", b"GLIBC_TUNABLES=x", b"NAME=a=b\xff", b"EMPTY="]
    with Helper(policy, code=code) as helper:
        ended = helper.run("env", "-0", env=env)
        assert sorted(ended.stdout.split(b"\0")[:-1]) == sorted(env)
        ended = helper.run("printf", "%s|", "", b"\xff\xfe", "a b", "-c", env=env)
        assert ended.stdout == b"|\xff\xfe|a b|-c|"


def test_what_the_main_process_inherits(policy: Path, code: Path) -> None:
    """Its own session, no fd but three, no signal blocked or ignored, and a parent that it cannot look into."""
    with Helper(policy, code=code) as helper:
        seen = helper.probe("""
def look(path):
    return attempt(opened, f"/proc/1/{path}", os.O_RDONLY)
status = open("/proc/self/status").read().split("\\n")
tell({
    "session": os.getsid(0) == os.getpid(), "group": os.getpgid(0) == os.getpid(), "parent": os.getppid(),
    "fds": sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1],
    "signals": [line.split()[1] for line in status if line[:6] in ("SigBlk", "SigIgn", "SigPnd")],
    "init": [look("mem"), look("environ"), look("maps"), attempt(os.listdir, "/proc/1/fd"),
             attempt(os.readlink, "/proc/1/exe")],
    "umask": os.umask(0),
})""")
        ignored = int(seen["signals"][2], 16) & ~(1 << signal.SIGPIPE - 1) & ~(1 << signal.SIGXFSZ - 1)  # Python's own
    assert (seen["session"], seen["group"]) == (True, True)
    assert (seen["parent"], seen["fds"], seen["umask"]) == (1, [0, 1, 2], 0o022)
    assert (int(seen["signals"][0], 16), int(seen["signals"][1], 16), ignored) == (0, 0, 0)
    assert set(seen["init"]) == {"EACCES"}


def test_orphans_are_reaped_and_end_with_the_main_process(policy: Path, code: Path) -> None:
    script = "for i in 1 2 3 4 5; do (setsid sh -c 'exit 3' &); done; (setsid sleep 1000 &); read line; exit 4"
    script = script.replace("read line", "trap 'exit 4' TERM; echo up; while :; do sleep 0.02; done")
    with Helper(policy, code=code) as helper:
        job = helper.start("sh", "-c", script)
        assert read_line(job.stdout) == b"up\n"

        def settled() -> bool:
            """Init, shell, its sleep and the orphan; no zombie."""
            pids = helper.host_pids(job)
            return len(pids) <= 4 and all(alive(pid) for pid in pids)

        wait_until("the orphans are reaped", settled)
        pids = helper.host_pids(job)
        assert helper.request(Type.SIGNAL, handle=job.handle, signal=signal.SIGTERM).type is Type.DONE
        assert helper.finish(job).facts["exit_code"] == 4
        assert not any(alive(pid) for pid in pids)


def test_orphans_that_end_together_are_all_reaped(policy: Path, code: Path) -> None:
    """One SIGCHLD may stand for several: they end while the init is stopped."""
    script = "trap 'exit 5' TERM; for i in 1 2 3; do (setsid sleep 1000 &); done; echo up; while :; do sleep 0.02; done"
    with Helper(policy, code=code) as helper:
        job = helper.start("sh", "-c", script)
        assert read_line(job.stdout) == b"up\n"
        init = helper.host_pids(job)[0]

        def orphans() -> list[int]:
            found = []
            for pid in helper.host_pids(job):
                with suppress(OSError):  # the shell's sleep, just ended
                    found += [pid] * (Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x001000\0")
            return found

        pids = wait_until("three sleep", lambda: found if len(found := orphans()) == 3 else None)
        os.kill(init, signal.SIGSTOP)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        wait_until("they have ended", lambda: not any(alive(pid) for pid in pids))
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
        os.kill(init, signal.SIGCONT)
        wait_until("they are reaped", lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
        assert helper.request(Type.SIGNAL, handle=job.handle, signal=signal.SIGTERM).type is Type.DONE
        assert helper.finish(job).facts["exit_code"] == 5


def test_a_stopped_job_goes_on(policy: Path, code: Path) -> None:
    with Helper(policy, code=code) as helper:
        job = helper.start("sh", "-c", "trap 'exit 6' USR1; echo up; while :; do sleep 0.02; done")
        assert read_line(job.stdout) == b"up\n"
        main = helper.host_pids(job)[1]

        def state() -> str:
            return Path(f"/proc/{main}/stat").read_text().rpartition(")")[2].split()[0]

        for number in (signal.SIGSTOP, signal.SIGUSR1):
            assert helper.request(Type.SIGNAL, handle=job.handle, signal=number).type is Type.DONE
            wait_until("it is stopped", lambda: state() == "T")
        assert helper.request(Type.SIGNAL, handle=job.handle, signal=signal.SIGCONT).type is Type.DONE
        assert helper.finish(job).facts["exit_code"] == 6


def test_a_job_that_closes_its_outputs_runs_on(policy: Path, code: Path) -> None:
    with Helper(policy, code=code) as helper:
        job = helper.start("sh", "-c", "trap 'exit 7' USR1; exec >&- 2>&-; while :; do sleep 0.02; done")
        assert (os.read(job.stdout, 1), os.read(job.stderr, 1)) == (b"", b"")  # the init holds neither
        assert helper.request(Type.SIGNAL, handle=job.handle, signal=signal.SIGUSR1).type is Type.DONE
        assert helper.finish(job).facts["exit_code"] == 7


def test_a_live_job_costs_little_memory(policy: Path) -> None:
    """With the compiled init: what its private pages and those of a small command take together."""
    with Helper(policy) as helper:
        job = helper.start("/bin/sleep", "1000")
        init, main = helper.host_pids(job)
        # Whoever looks for the command finds the command alone.
        assert Path(f"/proc/{init}/cmdline").read_bytes().rstrip(b"\0") == b"telehandler-init"
        assert private_kib(init) <= 64
        assert private_kib(init) + private_kib(main) <= 300
        assert helper.request(Type.KILL, handle=job.handle).type is Type.DONE
        helper.finish(job)


def test_the_compiled_init_is_what_the_source_says() -> None:
    """It is not checked in: a stale one is built again by `make build`."""
    assert (ROOT / "helper" / "init").stat().st_mtime >= (ROOT / "contrib" / "telehandler-init.c").stat().st_mtime
    assert (ROOT / "helper" / "init").stat().st_mode & 0o7777 == 0o755


def test_without_arguments_it_does_nothing() -> None:
    assert os.spawnv(os.P_WAIT, str(ROOT / "helper" / "init"), ["telehandler-init", "/"]) == 125
