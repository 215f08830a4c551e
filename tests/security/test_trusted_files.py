"""Which files and environment variables the helper trusts before it starts (S11): those that only root can change."""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import sudo_user
from support.checkout import ROOT
from support.helper_startup import ISOLATED_PYTHON, helper_command, run_helper, startup_outcome
from support.policies import policy_text, write_policy

pytestmark = pytest.mark.usefixtures("as_root")

NOBODY = 65534
EXIT_SETUP = 125


@pytest.fixture
def code(place: Path) -> Iterator[Path]:
    """A copy of the helper that a test may spoil."""
    directory = place / "code of the helper"
    shutil.copytree(ROOT / "helper", directory / "helper", ignore=shutil.ignore_patterns("__pycache__"))
    for path in [directory, *directory.rglob("*")]:
        os.chown(path, 0, 0)
        path.chmod(0o755 if path.is_dir() else 0o644)
    yield directory
    shutil.rmtree(directory)


def _others(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o002)


def _group(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o020)


def _owned(path: Path) -> None:
    os.chown(path, NOBODY, 0)


@pytest.mark.parametrize("spoil", [_others, _group, _owned], ids=["others", "group", "owner"])
@pytest.mark.parametrize("name", [".", "helper", "helper/spawn.py", "helper/policy.toml", "helper/seccomp.bpf"])
def test_s11_code_that_is_not_roots_alone_does_not_start(
    code: Path, policy: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    assert startup_outcome(*helper_command(code, policy)) == (0, "")
    spoil(code / name)
    status, said = startup_outcome(*helper_command(code, policy))
    assert status == EXIT_SETUP
    assert f"{(code / name).resolve()} is not root's alone" in said


def test_s11_cached_bytecode_is_code(code: Path, policy: Path) -> None:
    assert startup_outcome(*helper_command(code, policy)) == (0, "")
    cached = next((code / "helper").rglob("*.pyc"))
    _owned(cached)
    status, said = startup_outcome(*helper_command(code, policy))
    assert (status, "is not root's alone" in said) == (EXIT_SETUP, True)


def test_s11_a_policy_that_is_not_roots_alone_does_not_start(place: Path) -> None:
    path = write_policy(place, "open", policy_text())
    assert startup_outcome(*helper_command(ROOT, path)) == (0, "")
    for spoil in (_others, _owned):
        spoil(path)
        status, said = startup_outcome(*helper_command(ROOT, path))
        assert (status, "is not root's alone" in said) == (EXIT_SETUP, True)
        os.chown(path, 0, 0)
        path.chmod(0o644)
    directory = place / "open directory"
    directory.mkdir()
    directory.chmod(0o777)
    status, said = startup_outcome(*helper_command(ROOT, write_policy(directory, "inside", policy_text())))
    assert (status, "is not root's alone" in said) == (EXIT_SETUP, True)
    link = place / "link.toml"
    link.symlink_to(directory / "inside.toml")
    assert startup_outcome(*helper_command(ROOT, link))[0] == EXIT_SETUP
    assert "cannot be read" in startup_outcome(*helper_command(ROOT, place / "none.toml"))[1]


@pytest.fixture(scope="module")
def trap(place: Path) -> Path:
    """A directory of modules and a library that tell in `mark` who loaded them."""
    directory = place / "trap"
    directory.mkdir()
    mark = directory / "mark"
    text = f"open({str(mark)!r}, 'a').write(__name__)\n"
    for name in "struct json socket resource tomllib sitecustomize usercustomize prctl capng helper startup".split():
        (directory / f"{name}.py").write_text(text)
    source = "#include <fcntl.h>\n#include <unistd.h>\n__attribute__((constructor)) static void told(void)\n"
    source += f'{{ if (geteuid() == 0) close(open("{mark}", O_CREAT | O_WRONLY, 0600)); }}\n'
    (directory / "trap.c").write_text(source)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", "trap.so", "trap.c"], cwd=directory, check=True)
    directory.chmod(0o755)
    return directory


def _environment(trap: Path) -> dict[str, str]:
    names = {name: str(trap) for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "HOME", "PYTHONPLATLIBDIR")}
    return names | {"PYTHONSTARTUP": str(trap / "startup.py"), "PYTHONINSPECT": "1", "PYTHONMALLOC": "debug"}


def test_s11_environment_and_directory_have_no_say_in_what_is_loaded(policy: Path, trap: Path) -> None:
    mark = trap / "mark"
    search = {"PYTHONPATH": str(trap)}
    subprocess.run(["/usr/bin/python3", "-c", "import json, struct"], cwd=trap, env=search, check=True)
    assert mark.read_text()  # the trap works
    mark.unlink()
    assert startup_outcome(*helper_command(ROOT, policy), cwd=trap, env=_environment(trap)) == (0, "")
    assert not mark.exists()


@pytest.mark.parametrize("target", ["install", "install-sudoers"])
def test_s11_a_users_environment_does_not_reach_root(place: Path, ssl: Path, trap: Path, target: str) -> None:
    """LD_PRELOAD too, through the setuid wrapper and through sudo."""
    mark = trap / "mark"
    environment = _environment(trap) | {"LD_PRELOAD": str(trap / "trap.so"), "LD_LIBRARY_PATH": str(trap)}
    subprocess.run(["/bin/true"], env=environment, check=True)
    assert mark.exists()  # the trap works for who is root already
    mark.unlink()
    commands = {
        "install": [str(sudo_user.INSTALLED / "telehandler-helper")],
        "install-sudoers": ["sudo", "-n", *ISOLATED_PYTHON, str(sudo_user.INSTALLED / "helper")],
    }
    with sudo_user.installed(place, target) as options:
        who = {name: options[name] for name in ("user", "group", "extra_groups")}
        os.seteuid(who["user"])  # the socket is the user's
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        finally:
            os.seteuid(0)
        with theirs:
            ours.close()
            environment |= {"PATH": "/usr/bin:/bin"}
            assert run_helper(theirs.fileno(), *commands[target], cwd=trap, env=environment, **who) == (0, "")
    assert not mark.exists()
