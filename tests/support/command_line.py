"""The command line of telehandler."""

import os
import subprocess
import sys
from pathlib import Path

from support.checkout import ROOT

COMMAND = [sys.executable, "-m", "telehandler"]


def local_command(policy: Path, *arguments: str) -> list[str]:
    """The command line of `telehandler local`."""
    return [*COMMAND, "local", "--helper-policy", str(policy), *arguments]


def telehandler(
    *arguments: str, env: dict[str, str] | None = None, cwd: Path = ROOT
) -> "subprocess.CompletedProcess[str]":
    """One run of the command line, its output captured."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    command = [*COMMAND, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False)
