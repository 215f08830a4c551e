"""What is told of a job that was lost, of a limit that is not enforced, of a benchmark whose job fails."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cgroups import missing_controllers
from support.command_line import local_command, telehandler
from support.scripted_server import ENDED, NAME, ScriptedServer
from support.servers import Server

from telehandler.common import limits
from telehandler.pb import telehandler_pb2 as pb

LOST = {"state": "JOB_STATE_FAILED", "reason": "JOB_REASON_LOST"}


@pytest.fixture
def scripted(ssl: Path) -> Iterator[ScriptedServer]:
    server = ScriptedServer(ssl)
    yield server
    server.close()


@pytest.mark.parametrize("code", [0, -1])
def test_a_lost_job_has_no_exit_code(scripted: ScriptedServer, tmp_path: Path, code: int) -> None:
    """Whatever the server, perhaps an older one, has there."""
    scripted.status = pb.JobStatus(name=NAME, exit_code=code, **LOST)  # type: ignore[arg-type]
    scripted.status.end_time.seconds = 1
    scripted.pages = lambda _: pb.ListJobsResponse(jobs=[scripted.status]).SerializeToString()
    reason = {"telehandler-state": "failed", "telehandler-reason": "lost", "telehandler-exit-code": str(code)}
    scripted.end = tuple((dict(ENDED) | reason).items())
    for verb in ("status", "ls"):
        shown = json.loads(scripted.client(tmp_path, verb, "-o", "json", *([NAME] if verb == "status" else [])).stdout)
        job = shown if verb == "status" else shown["jobs"][0]
        assert (job["state"], job["reason"], job["exit_code"]) == ("failed", "lost", None)
    rows = scripted.client(tmp_path, "status", NAME).stdout.decode().splitlines()
    assert [row.split() for row in rows if row.startswith("exit code")] == [["exit", "code", "-"]]
    assert scripted.client(tmp_path, "ls").stdout.decode().splitlines()[1].split()[1:4] == ["failed", "lost", "-"]
    for verb, *words in (["wait", NAME], ["watch", NAME], ["run", "--", "true"]):
        seen = scripted.client(tmp_path, verb, *words)
        assert (seen.code, seen.stderr.count(b"was lost")) == (125, 1)


def test_a_benchmark_whose_job_was_lost_fails(scripted: ScriptedServer, tmp_path: Path) -> None:
    scripted.status = pb.JobStatus(name=NAME, **LOST)  # type: ignore[arg-type]
    scripted.status.end_time.seconds = 1
    seen = scripted.client(tmp_path, "benchmark", "--discard", "--watchers", "1", "--", "true")
    assert seen.code == 1
    assert b"the job did not succeed: lost, exit code -" in seen.stderr


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (["sh", "-c", "echo x; exit 3"], "the job did not succeed: exited, exit code 3"),
        (["sh", "-c", "kill -9 $$"], "the job did not succeed: signaled, exit code 137"),
    ],
)
def test_a_benchmark_whose_job_fails_says_so(server: Server, job: list[str], words: str) -> None:
    done = server.client("benchmark", "--discard", "--watchers", "2", "--", *job)
    assert done.returncode == 1
    assert words in done.stderr.decode()
    assert b"all 2 watchers got what the server has" in done.stdout  # which they did


ASKED = ["-m", "64m", "--cpus", "0.5", "--pids-limit", "50", "--device-read-iops", "100"]
FLAGS = {"memory": "--memory", "cpu": "--cpus", "pids": "--pids-limit", "io": "--device-read-iops"}
NAMES = {"memory": "memory_bytes", "cpu": "cpu_millis", "pids": "pids", "io": "read_iops"}


@pytest.mark.parametrize("where", ["server", "local"])
def test_a_limit_that_is_not_enforced_is_told_at_each_start(server: Server, policy: Path, where: str) -> None:
    """Each that was asked for, and no other; all of them in a dry run."""

    def run(*words: str) -> tuple[int, str, str]:
        if where == "server":
            done = server.client("run", *words)
            return done.returncode, done.stdout.decode(), done.stderr.decode()
        here = telehandler(*local_command(policy, *words)[3:])
        return here.returncode, here.stdout, here.stderr

    missing = missing_controllers()
    for _ in range(2):
        code, _, errors = run(*ASKED, "--", "true")
        assert code == 0
        assert errors.count("\n") == bool(missing)
        for controller, flag in FLAGS.items():
            assert (flag in errors) == (controller in missing)
    for controller, flag in FLAGS.items():
        value = ASKED[([*ASKED, "--memory"].index(flag)) % len(ASKED) + 1] if flag in ASKED else "64m"
        _, _, errors = run(flag, value, "--", "true")
        assert (f"not enforced on this job: {flag};" in errors) == (controller in missing)
        assert errors.count("\n") == (controller in missing)
    assert run("--timeout", "1m", "--ulimit", "nofile=99", "--", "true") == (0, "", "")
    code, shown, _ = run(*ASKED, "--dry-run", "--", "true")
    assert code == 0
    for controller, name in NAMES.items():
        (row,) = [row for row in shown.splitlines() if row.split()[0] == name]
        assert row.endswith(" (not enforced)") == (controller in missing)


def test_which_limits_a_dry_run_shows_as_enforced() -> None:
    """By the files of the job's cgroup; so it is in the VM, too, which has every controller."""
    rows = [b"uid 5", b"memory_bytes 1", b"pids 7", b"memory.max 1", b"memory.high max", b"cpu.max 1 2", b"env A=b.c"]
    assert limits.without_file(rows) == ["pids", "read_bps", "write_bps", "read_iops", "write_iops"]
    assert limits.marked(rows, ["pids"])[2] == b"pids 7 (not enforced)"
    assert limits.marked(rows, ["pids"])[:2] == rows[:2]
    assert limits.warning([]) == ""
    assert limits.without_file([*rows, b"io.max 8:0 rbps=1", b"pids.max 7"]) == []
