"""How the helper is started, and starts that end at once: with a refusal, or with nothing to say."""

import socket
import subprocess
from pathlib import Path

ISOLATED_PYTHON = ["/usr/bin/python3", "-I", "-S"]


def startup_outcome(*command: str, **options: object) -> tuple[int, str]:
    """(0, nothing said) of a helper that started and met the end of its socket; else its refusal."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()
    with theirs:
        return run_helper(theirs.fileno(), *command, **options)


def run_helper(stdin: int, *command: str, **options: object) -> tuple[int, str]:
    """Exit status and stderr of a helper whose socket is `stdin`."""
    done = subprocess.run(  # type: ignore[call-overload]
        command, stdin=stdin, capture_output=True, text=True, check=False, timeout=60, **({"cwd": "/"} | options)
    )
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == (done.returncode != 0)
    return done.returncode, done.stderr


def helper_command(code: Path, policy: Path, *options: str) -> list[str]:
    """The command that starts the helper of the checkout, or copy, `code`."""
    return [*ISOLATED_PYTHON, str(code / "helper"), "--policy", str(policy), *options]
