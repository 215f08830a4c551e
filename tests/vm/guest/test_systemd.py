"""Under systemd: limits at the root of the tree, and in a subtree that systemd delegated."""

import subprocess
from pathlib import Path

from support.cgroups import CONTROLLERS, cgroup_root
from support.checkout import ROOT
from support.command_line import COMMAND
from support.helper_driver import Helper
from support.servers import Server, free_address
from support.wait import wait_until
from vm.guest.common import cgroup_file, end

SLICE = cgroup_root() / "system.slice"
LIMITS = ["--cpus", "0.3", "--memory", "96m", "--pids-limit", "21"]
WRITTEN = {"cpu.max": "30000 100000", "memory.max": str(96 << 20), "pids.max": "22"}  # our init is one more


def _systemctl(*words: str) -> str:
    return subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False).stdout.strip()


def _limits(job: Path) -> dict[str, str]:
    return {name: (job / name).read_text().strip() for name in WRITTEN}


def test_systemd_runs_this_machine_and_has_the_tree() -> None:
    assert Path("/proc/1/comm").read_text() == "systemd\n"
    assert Path("/proc/self/cgroup").read_text() == "0::/system.slice/vm.service\n"


def test_at_the_root_of_the_tree_limits_survive_what_systemd_does(policy: Path) -> None:
    """systemd turns off controllers that no unit of its own needs; not under a job that has them."""
    with Helper(policy) as helper:
        assert helper.welcome["missing_controllers"] == []
        job = helper.start("sleep", "1000", pids=21, cpu_millis=300)
        _systemctl("daemon-reload")
        for unit in ("passing-1", "passing-2"):
            properties = ["-p", "CPUWeight=50", "-p", "IOWeight=50", "-p", "TasksMax=9"]
            subprocess.run(["systemd-run", "--scope", "--unit", unit, *properties, "true"], check=True)
        assert (cgroup_file(job, "pids.max"), cgroup_file(job, "cpu.max")) == ("22", "30000 100000")
        assert end(helper, job)["killed"] == 1


def test_a_job_in_a_delegated_scope_has_its_limits(policy: Path) -> None:
    """The helper starts in the very subtree that it is given: it must leave it for a leaf first."""
    scope = SLICE / "delegated.scope"
    command = ["systemd-run", "--scope", "--unit=delegated", "-p", "Delegate=yes", *COMMAND, "local"]
    command += [
        "--cgroup-root",
        str(scope),
        "--helper-policy",
        str(policy),
        *LIMITS,
        "--",
        "sh",
        "-c",
        "echo up; exec sleep 1000",
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        (job,) = scope.glob("telehandler.*/job-*")
        assert _limits(job) == WRITTEN
        assert set((scope / "cgroup.subtree_control").read_text().split()) >= set(CONTROLLERS)
        assert (scope / "cgroup.procs").read_text() == ""
        process.terminate()
        process.communicate(timeout=30)
    wait_until("systemd removed the scope", lambda: not scope.exists())


def test_a_server_as_a_service_with_a_delegated_subtree(place: Path, ssl: Path, policy: Path) -> None:
    unit = SLICE / "telehandler-test.service"
    server = Server(place, ssl, policy, listen=free_address(), options=("--cgroup-root", str(unit)))
    properties = ["Delegate=yes", f"WorkingDirectory={ROOT}", f"StandardError=file:{server.log}"]
    command = ["systemd-run", "--unit", unit.name, *(f"--property={text}" for text in properties), *COMMAND]
    subprocess.run([*command, *server.server_arguments()], check=True)
    try:
        wait_until("the server listens", lambda: server.log.exists() and b"listening on" in server.log.read_bytes())
        server.port = int(server.listen.rpartition(":")[2])
        done = server.client("run", "--detach", *LIMITS, "--", "sleep", "1000")
        assert (done.returncode, done.stderr) == (0, b""), server.log_text()
        (job,) = unit.glob("telehandler.*/job-*")
        assert _limits(job) == WRITTEN
        assert _systemctl("is-active", unit.name) == "active"
    finally:
        _systemctl("stop", unit.name)
    assert not unit.exists()
    assert _systemctl("is-failed", unit.name) != "failed"
