"""What keeps a helper from starting and may pass does not end a server or a `local` for good."""

import os
import shlex
import time
from pathlib import Path

import pytest

from telehandler.common.errors import HelperNotNow, HelperUnavailable
from telehandler.supervisor import helper_process

AGAIN, FATAL = 75, 125


def _failing(directory: Path, command: list[str], status: int | str, times: int) -> list[str]:
    """A command that fails so many times and is `command` then; `status`: or what the shell does instead."""
    count = directory / "count"
    count.write_text("")
    ending = f"exit {status}" if isinstance(status, int) else status
    script = f"echo >> {count}; [ $(wc -l < {count}) -gt {times} ] || {{ {ending}; }}; exec {shlex.join(command)}"
    return ["/bin/sh", "-c", script]


@pytest.mark.parametrize("status", [AGAIN, "kill -9 $$"], ids=["again", "killed"])
@pytest.mark.parametrize("who", ["local", "server-of-a-user", "server-of-root"])
def test_a_start_that_fails_is_tried_again(
    as_root: None, tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch, status: int | str, who: str
) -> None:
    if who == "server-of-root" and status != AGAIN:
        return  # a keeper that somebody kills is not started again
    real = helper_process.command(None, str(policy))
    failing = _failing(tmp_path, real, status, times=3)
    monkeypatch.setattr(helper_process, "command", lambda *_: failing)
    began = time.monotonic()
    if who == "local":
        process, sock = helper_process.start(None, str(policy))
        sock.close()
        assert process.wait(30) == 0
    else:
        helpers = helper_process.Helpers(None, str(policy))
        if who == "server-of-a-user":
            helpers._by_keeper = False
        helpers.start()
        assert helpers.end(30)
    assert (tmp_path / "count").read_text().count("\n") == 4
    assert time.monotonic() - began > 0.7  # with a pause that grows


@pytest.mark.parametrize("who", ["local", "server"])
def test_what_does_not_pass_is_told_at_once(
    as_root: None, tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    failing = _failing(tmp_path, ["true"], FATAL, times=1)
    monkeypatch.setattr(helper_process, "command", lambda *_: failing)
    with pytest.raises(HelperUnavailable, match="did not start") as caught:
        helper_process.start(None, None) if who == "local" else helper_process.Helpers(None, None).start()
    assert not isinstance(caught.value, HelperNotNow)
    assert (tmp_path / "count").read_text().count("\n") == 1


def test_the_patience_is_bounded(as_root: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = _failing(tmp_path, ["true"], AGAIN, times=1000)
    monkeypatch.setattr(helper_process, "command", lambda *_: failing)
    monkeypatch.setattr(helper_process, "_PAUSES_S", (0.01, 0.01))
    with pytest.raises(HelperNotNow, match="did not start"):
        helper_process.start(None, None)
    assert (tmp_path / "count").read_text().count("\n") == 3


def test_no_process_to_be_had_passes(as_root: None, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EAGAIN at fork, which the kernel gives over a limit of processes."""
    run, failures = helper_process._run, [BlockingIOError(11, os.strerror(11))] * 2

    def fail_first(arguments: list[str], stdin: object, stderr: int | None = None) -> object:
        if failures:
            stdin.close()  # type: ignore[attr-defined]
            raise failures.pop()
        return run(arguments, stdin, stderr)  # type: ignore[arg-type]

    monkeypatch.setattr(helper_process, "_run", fail_first)
    helpers = helper_process.Helpers(None, str(policy))
    helpers.start()
    assert helpers.end(30)
    assert not failures
