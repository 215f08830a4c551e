"""R21: each missing prerequisite is named by `check` and at start-up, with a remedy; never a traceback.

Simulated for real: an old kernel's release by personality(2), the rest in mount namespaces of the test's own. How an
old kernel behaves cannot be simulated here.
"""

import json
import shlex
import subprocess
from pathlib import Path

import pytest
from support import sudo_user
from support.cgroups import cgroup_root
from support.checkout import ROOT
from support.command_line import COMMAND
from support.policies import write_policy
from support.servers import Server

from telehandler.supervisor.prerequisites import LEAST_KERNEL

pytestmark = pytest.mark.usefixtures("as_root")
NONE = "mount -t tmpfs none /sys/fs/cgroup"
# One that is there already: in a cgroup namespace no new one may be mounted.
V1 = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if line.split()[2] == "cgroup"]
OLD = f"mount --bind {V1[0]} /mnt" if V1 else "mount -t cgroup -o none,name=r21 r21 /mnt"
ONLY_V1 = f"{OLD}; {NONE}; mkdir /sys/fs/cgroup/old; mount --move /mnt /sys/fs/cgroup/old"
READ_ONLY = f"mount -o remount,bind,ro {cgroup_root()}"
# Name of the finding: how it is made so, and words of the text and of the remedy.
MISSING = {
    "only cgroup v1": (
        ONLY_V1,
        "cgroup",
        "no cgroup v2 at or below /sys/fs/cgroup (only version 1)",
        "mount -t cgroup2",
    ),
    "no cgroup": (NONE, "cgroup", "no cgroup v2 at or below", "--cgroup-root"),
    "read-only cgroupfs": (READ_ONLY, "cgroup", "is read-only", "remount,rw"),
    "old kernel": ("", "kernel", "Linux 2.6.", "Linux {}.{} or later".format(*LEAST_KERNEL)),
}


def run(how: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """The command line in a mount namespace of its own, after `how`."""
    kernel = "setarch x86_64 --uname-2.6 " if not how else ""
    script = f"{how or ':'}\nexec {kernel}{shlex.join([*COMMAND, *arguments])}"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stdout + done.stderr
    return done


@pytest.mark.parametrize("kind", MISSING)
def test_r21_check_names_what_is_missing(policy: Path, kind: str) -> None:
    how, name, text, remedy = MISSING[kind]
    done = run(how, "check", "-o", "json", "--helper-policy", str(policy))
    assert done.returncode == 1
    findings = json.loads(done.stdout)["findings"]
    missing = [
        finding for finding in findings if finding["ok"] is False and finding["name"] not in ("certificates", "S38")
    ]
    assert [finding["name"] for finding in missing] == [name]
    assert text in missing[0]["text"]
    assert remedy in missing[0]["remedy"]
    shown = run(how, "check", "--helper-policy", str(policy)).stdout
    assert f"MISSING   {name}" in shown
    assert remedy in shown


@pytest.mark.parametrize("verb", ["server", "local"])
@pytest.mark.parametrize("kind", MISSING)
def test_r21_starting_names_it_too(policy: Path, ssl: Path, place: Path, kind: str, verb: str) -> None:
    how, _, text, remedy = MISSING[kind]
    arguments = {
        "server": Server(place, ssl, policy).server_arguments(),
        "local": ["local", "--helper-policy", str(policy), "--", "true"],
    }
    done = run(how, *arguments[verb])
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.count("\n") == 1
    assert text in done.stderr
    assert remedy in done.stderr


@pytest.mark.parametrize("absent", ["io", "all"])
def test_r21_a_missing_controller_is_named(place: Path, bare_cgroup: Path, absent: str) -> None:
    """Where the policy wants its limits, jobs are refused; else check says what is not in force."""
    others = [name for name in ("cpu", "memory", "pids") if absent == "io"]
    strict = write_policy(place, "r21-strict", f"allow_missing_controllers = {others!r}\n")
    options = ["--cgroup-root", str(bare_cgroup)]
    done = run(":", "check", "-o", "json", "--helper-policy", str(strict), *options)
    (job,) = [finding for finding in json.loads(done.stdout)["findings"] if finding["name"] == "job"]
    first = "io" if absent == "io" else "cpu"
    assert (job["ok"], f"controller {first} is not available" in job["text"]) == (False, True)
    assert "allow_missing_controllers" in job["text"]
    done = run(":", "local", "--helper-policy", str(strict), *options, "--", "true")
    assert done.returncode == 125
    assert f"controller {first} is not available" in done.stderr

    loose = write_policy(place, "r21-loose", 'allow_missing_controllers = ["cpu", "memory", "io", "pids"]\n')
    done = run(":", "check", "-o", "json", "--helper-policy", str(loose), *options)
    (limits,) = [finding for finding in json.loads(done.stdout)["findings"] if finding["name"] == "limits"]
    assert (limits["ok"], limits["text"].endswith("cpu, memory, io, pids")) == (False, True)
    assert "systemd.unified_cgroup_hierarchy=1" in limits["remedy"]


def test_r21_no_way_to_root_is_named(place: Path, ssl: Path) -> None:
    """A user without sudo rule and wrapper; then one without the helper."""
    with sudo_user.installed(place, "install-group") as options:
        user = {name: options[name] for name in ("user", "group", "extra_groups", "env", "cwd")}
        command = [*options["command"], "check", "-o", "json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **user)
        findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
        assert (done.returncode, findings["helper"]["ok"]) == (1, False)
        assert "sudo does not let this user start the root helper" in findings["helper"]["text"]
        assert "contrib/telehandler.sudoers" in findings["helper"]["text"]
        subprocess.run(["make", "uninstall"], cwd=ROOT, capture_output=True, check=True)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **user)
        assert "`make install-helper`" in done.stdout
        assert "Traceback" not in done.stderr
