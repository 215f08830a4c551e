"""`client signal`: one signal to jobs that run."""

import pytest
from support.servers import Server
from support.wait import wait_until

TRAPS = "trap 'echo hup' HUP; trap 'exit 7' TERM; echo ready; while :; do sleep 0.02; done"
NO_JOB = b"no such job, or not yours\n"


def _trapping(server: Server) -> str:
    """A job that says `hup` at each SIGHUP and exits with 7 at SIGTERM."""
    name = server.detach("sh", "-c", TRAPS)
    wait_until("it has its traps", lambda: _output(server, name) == b"ready\n")
    return name


def _output(server: Server, name: str) -> bytes:
    return server.client("watch", "-F", name).stdout


@pytest.mark.parametrize("word", ["HUP", "SIGHUP", "hup", "1"])
def test_a_signal_has_names_and_a_number(server: Server, word: str) -> None:
    name = _trapping(server)
    done = server.client("signal", "--signal", word)  # the jidfile's
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"{name}\n", b"")
    wait_until("it got it", lambda: _output(server, name) == b"ready\nhup\n")
    assert server.client("signal", name[-36:-20]).stdout.decode() == f"{name}\n"  # TERM
    assert server.client("wait", name).returncode == 7


def test_jobs_that_cannot_be_signalled_are_told_and_the_others_are(server: Server) -> None:
    ended = server.detach("true")
    assert server.client("wait", ended).returncode == 0
    runs = _trapping(server)
    others = server.detach("sleep", "1000", user="bubba")
    never = "users/tele-tester/jobs/4f1c2a9e-0b1d-4c52-9d0a-3f6f1f5b7a10"
    done = server.client("signal", ended, others, never, runs)
    assert (done.returncode, done.stdout.decode()) == (125, f"{runs}\n")
    assert done.stderr.splitlines(True) == [
        f"telehandler: {ended}: the job has ended\n".encode(),
        f"telehandler: {others}: ".encode() + NO_JOB,
        f"telehandler: {never}: ".encode() + NO_JOB,
    ]
    assert server.client("wait", runs).returncode == 7
    assert server.job_status(ended)["state"] == "completed"
    assert server.client("stop", "-t", "0", others, user="bubba").returncode == 0


@pytest.mark.parametrize("word", ["NOPE", "0", "65", "-1", ""])
def test_an_unknown_signal_is_a_usage_error_with_a_list(server: Server, word: str) -> None:
    done = server.client("signal", "--signal", word, "0")
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"1 HUP, 2 INT" in done.stderr
    assert b"15 TERM" in done.stderr
