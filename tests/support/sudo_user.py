"""An unprivileged user with a way in to the helper, made for a test and removed with all that belongs to it."""

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.checkout import ROOT
from support.policies import policy_text

INSTALLED = Path("/usr/local/lib/telehandler")
CONFIG = Path("/etc/telehandler")
NAME = "telehandler-test"
_NOT_NEEDED = shutil.ignore_patterns("mypy*", "ruff*", "grpc_tools*", "hypothesis*", "_pytest*", "pip*", "__pycache__")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)


@contextmanager
def installed(place: Path, target: str) -> Iterator[dict[str, Any]]:
    """Options of `support.servers.Server` to run as that user, the helper installed by `make target`."""
    if INSTALLED.exists() or CONFIG.exists():
        text = f"{INSTALLED} or {CONFIG} is there: the test would change an installation"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)
    try:
        _run("make", target)
        (CONFIG / "policy.toml").write_text(policy_text())
        _run("useradd", "--system", "--create-home", "--groups", "telehandler", NAME)
        user = pwd.getpwnam(NAME)
        code = _copy_code(place / "code")
        environment = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": user.pw_dir, "PYTHONPATH": code}
        groups = [group for group in os.getgrouplist(NAME, user.pw_gid) if group != user.pw_gid]
        yield {
            "command": ["/usr/bin/python3", "-m", "telehandler"],
            "user": user.pw_uid,
            "group": user.pw_gid,
            "extra_groups": groups,
            "env": environment,
            "cwd": user.pw_dir,
            "ssl": _copy_certificates(place, user),
        }
    finally:
        subprocess.run(["userdel", "--remove", NAME], capture_output=True, check=False)
        _run("make", "uninstall")


def _copy_code(target: Path) -> str:
    """The code where every user can read it, whatever the checkout's directories allow; a PYTHONPATH."""
    for package in ("telehandler", "helper"):
        shutil.copytree(ROOT / package, target / package, ignore=_NOT_NEEDED, dirs_exist_ok=True)
    site = next(path for path in sys.path if path.startswith(sys.prefix) and path.endswith("site-packages"))
    shutil.copytree(site, target / "site", ignore=_NOT_NEEDED, dirs_exist_ok=True)
    return f"{target}:{target / 'site'}"


def _copy_certificates(place: Path, user: pwd.struct_passwd) -> Path:
    """A set whose server key is that user's."""
    target = place / "ssl-of-user"
    shutil.copytree(place / "ssl", target, dirs_exist_ok=True)
    os.chown(target / "server-key.pem", user.pw_uid, user.pw_gid)
    return target
