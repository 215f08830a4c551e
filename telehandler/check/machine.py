"""What this machine, the helper, the policy and the certificates can and cannot do, with remedies."""

import datetime
import os
import shlex
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509

from helper.wire import Stage
from telehandler import local
from telehandler.common.errors import HelperRefused, TelehandlerError
from telehandler.jobs.request import Request
from telehandler.supervisor import helper_process, prerequisites
from telehandler.supervisor.prerequisites import Finding

CONTROLLERS = {"cpu": "cpu.max", "memory": "memory.max", "io": "io.max", "pids": "pids.max"}
EXPIRY_DAYS = 30


class Target(NamedTuple):
    """Where to look."""

    server: str
    pairs: dict[str, tuple[str, str]]  # certificate and key files, by whose they are
    root: str
    cgroup_root: str | None
    policy: str | None


def machine(target: Target) -> Iterator[Finding]:
    """Kernel, cgroup v2, helper, controllers, certificates."""
    needed = list(prerequisites.findings(target.cgroup_root, target.policy))
    yield from needed
    if not all(finding.ok for finding in needed):
        yield from certificates(target)
        return  # the helper would not start
    command = shlex.join(helper_process.command(target.cgroup_root, target.policy))
    try:
        rows = verdict(target)
    except HelperRefused as refused:
        yield Finding("helper", True, f"starts: {command}")
        yield Finding("job", False, f"an ordinary job would be refused: {refused}", _remedy(refused))
    else:
        yield Finding("helper", True, f"starts: {command}")
        yield Finding("job", True, f"an ordinary job may run, in the profile {rows.get('profile_name', '')}")
        yield controllers(rows)
        yield from _open_files(rows)
    yield from certificates(target)


def run(target: Target, what: Callable[[Target], Iterator[Finding]]) -> list[Finding]:
    """All findings; what makes looking impossible is one of them."""
    found: list[Finding] = []
    try:
        found.extend(what(target))
    except HelperRefused as refused:
        found.append(Finding("job", False, str(refused), f"{_remedy(refused)}; nothing more can be seen before"))
    except (TelehandlerError, OSError, subprocess.TimeoutExpired, ValueError) as error:
        found.append(Finding("helper", False, str(error), "nothing more can be seen without it"))
    return found


def _remedy(refused: HelperRefused) -> str:
    if refused.stage != Stage.LIMIT:
        return "see the policy, /etc/telehandler/policy.toml or --helper-policy"
    if "io_devices" in str(refused):
        return 'name the disk in the policy: io_devices = ["/dev/sda"]'
    return "give cgroup v2 the controller, or live without limits: --helper-policy contrib/policy-no-limits.toml"


def request(**changes: Any) -> Request:
    fields = {"owner": "check", "argv": [b"true"], "env": {}, "cwd": b"/", "limits": {}, "profile": ""}
    return Request(**(fields | changes))


def verdict(target: Target) -> dict[str, str]:
    """The rows of a dry run, those of one name joined."""
    found: dict[str, str] = {}
    for row in local.check(request(), target.cgroup_root, target.policy):
        name, _, value = row.decode("utf-8", "replace").partition(" ")
        found[name] = f"{found[name]} {value}" if name in found else value
    return found


def _figure(value: str) -> int:
    """Of a row that may be marked as not enforced."""
    return int(value.split()[0])


def controllers(rows: dict[str, str]) -> Finding:
    missing = [name for name, file in CONTROLLERS.items() if file not in rows]
    remedy = "give cgroup v2 these controllers (boot with systemd.unified_cgroup_hierarchy=1), or live without limits"
    text = f"limits are not in force, as the policy allows: {', '.join(missing)}" if missing else ""
    return Finding("limits", not missing, text or "limits of cpu, memory, io and processes are in force", remedy)


def _open_files(rows: dict[str, str]) -> Iterator[Finding]:
    """The one pool of the machine that nothing but a job's limits bounds: docs/security.md."""
    pool, job = int(Path("/proc/sys/fs/file-max").read_text()), _figure(rows["pids"]) * _figure(rows["open_files"])
    if pool < 2 * job:
        text = f"an ordinary job may open {job} files, and the machine has {pool} for all users but root"
        yield Finding("files", None, f"{text}: sysctl fs.file-max={1 << 62}, as systemd does, or lower limits.default")


def certificates(target: Target) -> Iterator[Finding]:
    for whose, (cert, key) in target.pairs.items():
        try:
            certificate = x509.load_pem_x509_certificate(Path(cert).read_bytes())
            mode = stat.S_IMODE(os.stat(key).st_mode)
        except (OSError, ValueError) as error:
            yield Finding("certificates", None, f"the {whose}'s cannot be read: {error}")
            continue
        left = (certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)).days
        remedy = f"move {cert} and {key} away, and `make certs`"
        yield Finding("certificates", left > EXPIRY_DAYS, f"the {whose}'s {cert} ends in {left} days", remedy)
        yield Finding("S38", not mode & 0o077, f"the {whose}'s key {key} has mode {mode:04o}", f"chmod 600 {key}")
