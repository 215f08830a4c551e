"""Starts with limits in force, beside bubblewrap's, crun's and systemd-run's: run in the guest, in turns.

Each runs /bin/true to its end with what it has of a job's isolation (ISOLATES). bwrap sets no limits, and systemd of
Debian 12 makes no pid namespace: what a peer does not do, it does not pay for.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.helper_driver import Helper
from support.policies import policy_text, write_policy

from bench.starts import BWRAP, IN_FLIGHT, job, ms, rate
from helper import confine, policy

ISOLATES = {
    "telehandler's helper": "namespaces: pid, mount, network, UTS, IPC; a uid of the job's own; no capabilities; "
    "NoNewPrivs; its filter; a view built from nothing; limits: cpu, memory, pids, io, rlimits",
    "bwrap": "namespaces: pid, mount, network, UTS, IPC; root's uid; no capabilities; NoNewPrivs; the helper's filter; "
    "the host's root read-only, /tmp and /dev of its own; no limits",
    "crun": "namespaces: pid, mount, network, UTS, IPC, cgroup; one uid for all; no capabilities; NoNewPrivs; "
    "the filter's denied calls, without its rules for arguments; the host's root read-only; limits: cpu, memory, pids, "
    "rlimits, devices",
    "systemd-run --wait": "namespaces: mount, network, UTS, IPC, none for pids; a dynamic uid; no capabilities; "
    "NoNewPrivs; the filter's denied calls that it knows; the host's root read-only; limits: cpu, memory, pids, "
    "rlimits, devices",
}
_UID = 199_999
_DENIED = policy.data("seccomp.toml")["denied"]
_OPEN_FILES, _MEMORY, _PIDS, _FILE_BYTES = (
    policy.data("policy.toml")["limits"]["default"][f"{name}"]
    for name in ("open_files", "memory_bytes", "pids", "file_bytes")
)
Start = Callable[[int], int]  # of the start with a number: its pid


def main() -> None:
    """ROUNDS of each in turns and COUNT with IN_FLIGHT under way, as JSON on stdout."""
    rounds, count = map(int, sys.argv[1:])
    if "TELEHANDLER_GUEST" not in os.environ:
        sys.exit("bench.peers: it binds the root and starts services: for the virtual machine alone")
    # Never removed: the root is bound below it, and the guest's files go with the guest.
    place = Path(tempfile.mkdtemp(dir="/run"))
    place.chmod(0o755)
    starts = {"bwrap": _bwrap(place), "crun": _crun(place), "systemd-run --wait": _systemd_run()}
    with Helper(write_policy(place, "peers", policy_text("starts_per_second = 100000\n"))) as helper:
        missing: Any = helper.welcome["missing_controllers"]
        assert missing == [], f"limits are not in force: {missing}"
        print(json.dumps(_measure(helper, starts, rounds, count)))


def _measure(helper: Helper, starts: dict[str, Start], rounds: int, count: int) -> list[dict[str, Any]]:
    numbers = iter(range(10**9))
    ours = next(iter(ISOLATES))
    ways: dict[str, Callable[[], object]] = {ours: lambda: job(helper)}
    ways |= {name: lambda start=start: _wait(start(next(numbers))) for name, start in starts.items()}  # type: ignore[misc]
    taken: dict[str, list[float]] = {name: [] for name in ways}
    absent: dict[str, str] = {}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            if name in absent:
                continue
            try:
                found = ms(way)
            except AssertionError as error:
                absent[name] = str(error)
                continue
            if turn:  # the first warms up
                taken[name].append(found)
    rates = {ours: rate(helper, count)}
    rates |= {name: _rate(start, numbers, count) for name, start in starts.items() if name not in absent}
    return [
        summary(name, taken[name], rates[name]) if name in rates else {"name": name, "absent": absent[name]}
        for name in ways
    ]


def summary(name: str, taken: list[float], jobs_a_second: float) -> dict[str, Any]:
    """Times in ms. p99 is the time that one start in a hundred exceeds: of fewer than a hundred, the longest."""
    times = sorted(taken)
    found = {"p50_ms": statistics.median(times), "p99_ms": times[int(len(times) * 0.99)], "rate_s": jobs_a_second}
    return {"name": name, "starts": len(times), **found}


def _rate(start: Start, numbers: Any, count: int) -> float:
    began, running = time.perf_counter(), set[int]()
    for _ in range(count):
        if len(running) == IN_FLIGHT:
            running.remove(_wait(-1))
        running.add(start(next(numbers)))
    for _ in list(running):
        _wait(-1)
    return count / (time.perf_counter() - began)


def _wait(pid: int) -> int:
    pid, status = os.waitpid(pid, 0)
    assert status == 0, f"it ended with {os.waitstatus_to_exitcode(status)}: {Path('/run/peers').read_text()[-500:]}"
    return pid


def _spawn(command: list[str], *, filter_: Path | None = None) -> int:
    """stderr is kept for the message of a failure."""
    null = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1)]
    actions: list[Any] = [*null, (os.POSIX_SPAWN_OPEN, 2, "/run/peers", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)]
    actions += [(os.POSIX_SPAWN_OPEN, 3, str(filter_), os.O_RDONLY, 0)] if filter_ else []
    return os.posix_spawnp(command[0], command, os.environ, file_actions=actions)


def _bwrap(place: Path) -> Start:
    filter_ = place / "filter"
    filter_.write_bytes(confine.FILTER)
    command = [*BWRAP[:-1], "--seccomp", "3", BWRAP[-1]]
    return lambda _: _spawn(command, filter_=filter_)


def _crun(place: Path) -> Start:
    root = place / "root"
    root.mkdir()
    subprocess.run(["mount", "--bind", "/", str(root)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(root)], check=True)
    bundles: dict[int, Path] = {}
    for slot in range(IN_FLIGHT):
        bundles[slot] = place / f"bundle{slot}"
        bundles[slot].mkdir()
        (bundles[slot] / "config.json").write_text(json.dumps(bundle(root)))
    command = ["crun", "--cgroup-manager=cgroupfs", "run", "--bundle"]
    return lambda number: _spawn([*command, str(bundles[number % IN_FLIGHT]), f"peer-{number}"])


def bundle(root: Path) -> dict[str, Any]:
    """config.json of an OCI bundle with what a job has, as far as the format goes."""
    none: list[str] = []
    capabilities = dict.fromkeys(("bounding", "effective", "inheritable", "permitted", "ambient"), none)
    limits = {"RLIMIT_NOFILE": _OPEN_FILES, "RLIMIT_FSIZE": _FILE_BYTES, "RLIMIT_CORE": 0}
    mounts = [
        ("/proc", "proc", none),
        ("/dev", "tmpfs", ["nosuid", "mode=755", "size=64k"]),
        ("/tmp", "tmpfs", ["nosuid", "nodev", "mode=1777", "size=256m"]),
        ("/dev/shm", "tmpfs", ["nosuid", "nodev", "mode=1777", "size=128m"]),
    ]
    return {
        "ociVersion": "1.0.2",
        "hostname": "job",
        "root": {"path": str(root), "readonly": True},
        "process": {
            "args": ["/bin/true"],
            "cwd": "/",
            "env": ["PATH=/usr/bin:/bin"],
            "user": {"uid": _UID, "gid": _UID},
            "noNewPrivileges": True,
            "capabilities": capabilities,
            "rlimits": [{"type": name, "hard": most, "soft": most} for name, most in limits.items()],
        },
        "mounts": [{"destination": at, "type": kind, "source": kind, "options": words} for at, kind, words in mounts],
        "linux": {
            "namespaces": [{"type": name} for name in ("pid", "mount", "network", "uts", "ipc", "cgroup")],
            "resources": {
                "cpu": {"quota": 100_000, "period": 100_000},
                "memory": {"limit": _MEMORY, "swap": _MEMORY},
                "pids": {"limit": _PIDS},
                "devices": [{"allow": False, "access": "rwm"}],
            },
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{"names": sorted(_DENIED), "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
            },
        },
    }


def _systemd_run() -> Start:
    # --wait asks over D-Bus, which the guest does not start by itself.
    subprocess.run(["systemctl", "start", "dbus.socket", "dbus.service"], check=False)
    command = ["systemd-run", "--wait", "--quiet", "--collect"]
    for text in properties():
        command += ["-p", text]
    return lambda number: _spawn([*command, f"--unit=peer-{number}", "/bin/true"])


def properties() -> list[str]:
    """systemd.exec(5), systemd.resource-control(5): what a job has, as far as they go."""
    on = "NoNewPrivileges PrivateTmp PrivateNetwork PrivateDevices PrivateIPC ProtectHome ProtectHostname DynamicUser"
    return [
        *(f"{name}=yes" for name in on.split()),
        "ProtectSystem=strict",
        "ProtectProc=invisible",
        "CapabilityBoundingSet=",
        f"SystemCallFilter=~{' '.join(sorted(_DENIED))}",
        "SystemCallErrorNumber=EPERM",
        "CPUQuota=100%",
        f"MemoryMax={_MEMORY}",
        "MemorySwapMax=0",
        f"TasksMax={_PIDS}",
        f"LimitNOFILE={_OPEN_FILES}",
        f"LimitFSIZE={_FILE_BYTES}",
        "LimitCORE=0",
    ]


if __name__ == "__main__":
    main()
