"""`telehandler check --security`: which security properties this installation holds, found by trying.

Findings are named as in docs/security.md. What shows only in the code is proved by the tests, and is not judged here.
"""

import json
import os
import socket
import ssl
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helper import wire
from telehandler import local
from telehandler.check.machine import Target, certificates, controllers, request, verdict
from telehandler.common.errors import HelperRefused, TelehandlerError
from telehandler.jobs.request import Request
from telehandler.supervisor import helper_process
from telehandler.supervisor.prerequisites import Finding

PROBE = Path(__file__).with_name("probe.py")
_TIMEOUT_S = 10.0
_EPERM, _ENOSYS = 1, 38
_FAR_TOO_MUCH = 1 << 62
# Kernel file systems of a job's own, by their places, and its limits beside those that it asks for.
_OWN_MOUNTS = {"/proc", "/proc/sys", "/dev/pts", "/sys/fs/cgroup", "/sys/devices/system/cpu"}
_KERNELS = set("proc sysfs devtmpfs devpts mqueue cgroup cgroup2 debugfs tracefs securityfs configfs bpf".split())
_DEFINED = {"CORE": [0, 0], "NICE": [0, 0], "RTPRIO": [0, 0], "SIGPENDING": [4096, 4096], "CPU": [-1, -1]}
_WRITABLE = {"/proc", "/tmp", "/var/tmp", "/home", "/dev/shm", "/dev/pts"}


def security(target: Target) -> Iterator[Finding]:
    """The properties of docs/security.md that can be tried on a running installation."""
    rows = verdict(target)
    probe = json.loads(_output(_probe_request(), target))
    yield from _protocol(target)
    yield controllers(rows)._replace(name="S10")
    yield _refusal(target, "S10", "a limit beyond the policy's maximum is refused", limits={"pids": _FAR_TOO_MUCH})
    yield _files(target)
    yield _refusal(target, "S15", "a working directory in /proc is refused", cwd=b"/proc/self/fd")
    yield from _inside(probe, rows)
    yield from _processes()
    yield from _server(target)
    yield from (finding for finding in certificates(target) if finding.name == "S38")


def _probe_request() -> Request:
    return request(argv=[b"/usr/bin/python3", b"-I", b"-S", b"-c", PROBE.read_bytes()])


def _output(request: Request, target: Target) -> bytes:
    """A job's stdout. Raises TelehandlerError with its stderr when it fails."""
    stdout_fd, stderr_fd = os.memfd_create("stdout"), os.memfd_create("stderr")
    try:
        sinks = local.Sinks(stdout_fd, stderr_fd, lambda _: None)
        end = local.run(request, target.cgroup_root, target.policy, sinks)
        stdout, stderr = (os.pread(fd, os.fstat(fd).st_size, 0) for fd in (stdout_fd, stderr_fd))
    finally:
        os.close(stdout_fd)
        os.close(stderr_fd)
    if end.exit_code != 0:
        raise TelehandlerError(f"the probe failed: {stderr.decode('utf-8', 'replace')[-300:]}")
    return stdout


def _refusal(target: Target, name: str, text: str, **changes: Any) -> Finding:
    try:
        local.check(request(**changes), target.cgroup_root, target.policy)
    except HelperRefused:
        return Finding(name, True, text)
    return Finding(name, False, f"not so: {text}", "install the helper anew")


def _protocol(target: Target) -> Iterator[Finding]:
    """A violation ends the helper; so does a stdin that is no socket. Its other habits show while it lives."""
    process, sock = helper_process.start(target.cgroup_root, target.policy, stderr=subprocess.DEVNULL)
    helpers = [pid for pid in _with_command("/helper", 0) if _descends(pid, process.pid)]
    with sock:
        limits = [_proc(pid, "limits") for pid in helpers]
        threads = [len(os.listdir(f"/proc/{pid}/task")) for pid in helpers]
        sock.send(b"not a message")
        sock.settimeout(_TIMEOUT_S)
        ended = sock.recv(wire.MAX_MESSAGE) == b""
    status = process.wait(_TIMEOUT_S)
    yield Finding("S1", ended and status == 3, f"a violation of the protocol ends the helper (exit status {status})")
    command = helper_process.command(target.cgroup_root, target.policy)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=False)
    yield Finding("S7", done.returncode == 125, "the helper serves nothing but a connected socket")
    yield Finding("S30", bool(threads) and set(threads) == {1}, "the helper has one thread")
    core = [line.split()[4:6] for text in limits for line in text.splitlines() if line.startswith("Max core")]
    yield Finding("S35", bool(core) and all(pair == ["0", "0"] for pair in core), "the helper dumps no core")


def _files(target: Target) -> Finding:
    """The helper checks the same, and all it imports, at each start; it has just started."""
    command = helper_process.command(target.cgroup_root, target.policy)
    words = [word for word in command if word.startswith("/") and os.path.exists(word)]
    paths = {parent for word in words for parent in (Path(word).resolve(), *Path(word).resolve().parents)}
    open_ = [str(path) for path in sorted(paths) if not _roots_alone(path)]
    remedy = f"chown root:root and chmod go-w {' '.join(open_)}"
    return Finding("S11", not open_, "the helper's code and policy are root's alone to write", remedy)


def _roots_alone(path: Path) -> bool:
    status = path.stat()
    sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    return status.st_uid == 0 and not (status.st_mode & 0o022 and not sticky)


def _inside(seen: dict[str, Any], rows: dict[str, str]) -> Iterator[Finding]:
    """What the probe saw from inside a job."""
    remedy = "a profile of the policy gives more than it should, or the helper is not ours"
    status, (uids, gids, groups) = seen["status"], seen["ids"]
    capabilities = {status[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
    sid, pid, terminal = seen["session"]
    own = {name: os.readlink(f"/proc/self/ns/{name}") for name in ("pid", "mnt", "net", "uts", "ipc", "cgroup")}
    shared = [name for name, link in own.items() if seen["namespaces"][name] == link]
    unset = set(seen["environment"]) - {"PATH", "HOME", "USER", "LANG", "TERM", "LC_CTYPE"}
    signals = {int(status[name], 16) for name in ("SigBlk", "SigCgt")} <= {0, 2}  # python's own SIGINT
    mounts = {fields[4]: set(fields[5].split(",")) for fields in seen["mounts"]}
    loose = [point for point, options in mounts.items() if "nosuid" not in options]
    loose += [point for point, options in mounts.items() if "ro" not in options and not _may_write(point, rows)]
    devices = {"null": [1, 3], "zero": [1, 5], "full": [1, 7], "random": [1, 8], "urandom": [1, 9], "tty": [5, 0]}
    denied = all(error == _EPERM for error in seen["denied"].values()) and seen["clone3"] == seen["x32"] == _ENOSYS
    odd = [name for name, pair in _DEFINED.items() if seen["rlimits"][name] != pair]
    doors = [fields[4] for fields in seen["mounts"] if fields[fields.index("-") + 1] in _KERNELS]
    doors = [point for point in doors if point not in _OWN_MOUNTS and point not in _bound(rows)]
    for name, ok, text in (
        ("S9", len({*uids, *gids}) == 1 and uids[0] >= 1000 and not groups, f"a job's uid is its own: {uids[0]}"),
        ("S14", seen["fds"] == [0, 1, 2], f"a job has the fds {seen['fds']} alone"),
        ("S16", seen["cgroup"][-1] == "0::/", "a job is in a cgroup of its own, which is its root"),
        ("S17", capabilities == {"0" * 16} and 0 not in seen["setuid"], "a job has no capability and no way to root"),
        ("S18", (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"), "no_new_privs and a seccomp filter"),
        ("S19", denied, f"{len(seen['denied'])} dangerous system calls are denied"),
        ("S21", not unset, "a job's environment is built from empty"),
        ("S22", sid == pid and terminal is None and signals and seen["umask"] == 0o022, "own session, no terminal"),
        ("S23", 0 not in seen["init"], "the job's init cannot be read"),
        ("S24", not loose, f"mounts are nosuid and read-only{': not ' + ', '.join(loose) if loose else ''}"),
        ("S25", seen["devices"] == devices, "device nodes are the real ones"),
        ("S26", seen["processes"] == [1, 2] and 0 not in seen["writes"].values(), "own /proc"),
        ("S26", seen["sys"] == [["system"], ["cpu"], ["cgroup"]], "/sys has the processors and the job's cgroup alone"),
        (
            "S46",
            not odd and seen["scheduling"] == [0, 0, ["0"]],
            f"limits and scheduling are ours {' '.join(odd)}".strip(),
        ),
        ("S47", set(seen["unknown"]) == {_ENOSYS}, "system calls that are not known here are not there"),
        ("S48", set(seen["sockets"].values()) == {_EPERM}, f"{len(seen['sockets'])} kinds of sockets are denied"),
        ("S49", not doors, f"no mount shows the host's kernel{': but ' + ', '.join(doors) if doors else ''}"),
        ("S27", seen["interfaces"] == {"lo": 1}, f"network interfaces: {', '.join(seen['interfaces'])}"),
        ("S27", not shared, f"namespaces shared with the host: {', '.join(shared) or 'none'}"),
    ):
        yield Finding(name, ok, text, remedy)


def _may_write(point: str, rows: dict[str, str]) -> bool:
    """Private file systems, and what the policy binds for writing."""
    bound = _bound(rows, "writable")
    return point in _WRITABLE or any(point == target or point.startswith(f"{target}/") for target in bound)


def _bound(rows: dict[str, str], *keys: str) -> list[str]:
    """Where the policy binds something."""
    binds = [bind for key in keys or ("read_only", "writable") for bind in rows.get(key, "").split(", ")]
    return [bind.partition(":")[2] for bind in binds if bind]


def _processes() -> Iterator[Finding]:
    """The apis and stream workers that run on this machine."""
    pids = _with_command("telehandler.api")
    if not pids:
        yield Finding("S13", None, "no server runs here")
        return
    workers = _with_command("telehandler.stream_worker")
    for pid in (*pids, *workers):
        status = dict(line.split(":\t", 1) for line in _proc(pid, "status").splitlines() if ":\t" in line)
        powers = {status[f"Cap{name}"] for name in ("Prm", "Eff")}
        ok = "0" not in status["Uid"].split() and powers == {"0" * 16} and status["NoNewPrivs"] == "1"
        dumpable = os.stat(f"/proc/{pid}/stat").st_uid != 0  # proc(5): root's when it is not
        what = "stream worker" if pid in workers else "api"
        text = f"the {what} {pid} has no privileges and no debugger: uid {status['Uid'].split()[0]}"
        yield Finding("S13", ok and not dumpable, text, "start the server anew with this version")


def _server(target: Target) -> Iterator[Finding]:
    """Whether the server answers those it should not."""
    host, _, port = target.server.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _TIMEOUT_S).close()
    except (OSError, ValueError):
        yield Finding("S36", None, f"no server listens on {target.server}")
        return
    yield Finding("S36", not _shakes_hands(target, with_pair=False), "a client without a certificate is refused")
    yield Finding("S36", not _shakes_hands(target, ssl.TLSVersion.TLSv1_2), "TLS 1.2 is refused")


def _shakes_hands(target: Target, version: ssl.TLSVersion | None = None, with_pair: bool = True) -> bool:
    """Whether the server accepts a connection; in TLS 1.3 its refusal comes with the first read."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    context.check_hostname = False
    host, _, port = target.server.rpartition(":")
    try:
        context.load_verify_locations(target.root)
        if with_pair:
            context.load_cert_chain(*target.pairs["client"])
        if version:
            context.maximum_version = version
        with (
            socket.create_connection((host, int(port)), _TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            return bool(connection.recv(1))
    except OSError:
        return False


def _with_command(word: str, uid: int | None = None) -> list[int]:
    """The pids of processes with an argument that contains `word`, and of that user."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        arguments = _proc(int(pid), "cmdline").split("\0")
        if "python" in arguments[0] and any(word in argument for argument in arguments[1:]):
            status = _proc(int(pid), "status")
            if uid is None or f"\nUid:\t{uid}\t{uid}\t" in status:
                found.append(int(pid))
    return found


def _descends(pid: int, ancestor: int) -> bool:
    """Whether `pid` is `ancestor` or below it: sudo may stand between."""
    while pid > 1 and pid != ancestor:
        pid = int(_proc(pid, "status").partition("\nPPid:\t")[2].partition("\n")[0] or 0)
    return pid == ancestor


def _proc(pid: int, name: str) -> str:
    """A file of /proc, empty when its process has gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""
