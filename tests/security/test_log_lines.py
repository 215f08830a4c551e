"""Whatever is in a path or a policy, the helper's log gets one line of it, escaped and bounded (S33)."""

import subprocess
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.helper_startup import ISOLATED_PYTHON, helper_command, startup_outcome
from support.policies import policy_text, write_policy

pytestmark = pytest.mark.usefixtures("as_root")
HOSTILE = "a\nfake: line\r\x1b[31m\x07\x9b2J\u202e\u2028\udcff\xe9"
ESCAPED = r"a\nfake: line\r\x1b[31m\x07\x9b2J\u202e\u2028\udcff\xe9"
LINE_MOST = 600


def _said(*options: str) -> str:
    status, said = startup_outcome(*ISOLATED_PYTHON, str(ROOT / "helper"), *options)
    assert status == 125
    assert said.endswith("\n")
    assert said.isascii()
    assert said[:-1].isprintable()
    assert len(said) < LINE_MOST
    return said


def test_s33_a_path_is_escaped_in_the_helpers_log(policy: Path) -> None:
    said = _said("--policy", str(policy), "--cgroup-root", f"/{HOSTILE}")
    assert f"no cgroup v2 at or below /{ESCAPED}" in said
    assert said.endswith(" with --cgroup-root\n")  # to its end


def test_s33_a_policys_name_and_keys_are_escaped_in_the_helpers_log(place: Path) -> None:
    path = write_policy(place, HOSTILE, policy_text('[profile."a\\nb\\u001b[31m"]\nroot = "x"\n'))
    said = _said("--policy", str(path))
    assert ESCAPED in said
    assert r"profile.a\nb\x1b[31m.root must be" in said


def test_s33_a_line_of_the_helpers_log_is_bounded(policy: Path) -> None:
    said = _said("--policy", str(policy), "--cgroup-root", "/" + "long/" * 10_000)
    assert "no cgroup v2 at or below /long/long" in said
    assert len(said) == len("telehandler-helper: ") + 500 + 1


def test_s33_who_does_not_read_the_helpers_log_does_not_stop_it(place: Path) -> None:
    """A closed stderr: the exit status is the message's."""
    command = helper_command(ROOT, place / "none.toml")
    done = subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *command], stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 125
