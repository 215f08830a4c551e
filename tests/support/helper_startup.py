"""A start of the helper that ends at once, with a refusal or with nothing to say."""

import socket
import subprocess
from pathlib import Path

PYTHON = ["/usr/bin/python3", "-I", "-S"]


def outcome(*command: str, **options: object) -> tuple[int, str]:
    """(0, nothing said) of a helper that started and met the end of its socket; else its refusal."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()
    with theirs:
        return run(theirs.fileno(), *command, **options)


def run(stdin: int, *command: str, **options: object) -> tuple[int, str]:
    done = subprocess.run(  # type: ignore[call-overload]
        command, stdin=stdin, capture_output=True, text=True, check=False, timeout=60, **({"cwd": "/"} | options)
    )
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == (done.returncode != 0)
    return done.returncode, done.stderr


def helper_of(code: Path, policy: Path) -> list[str]:
    return [*PYTHON, str(code / "helper"), "--policy", str(policy)]
