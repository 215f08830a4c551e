"""What a sandbox looks like from inside, compared with what the helper must give. Names are security.md's."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.checkout import ROOT
from support.helper_driver import ENV, Helper

from helper.wire import Type

pytestmark = pytest.mark.usefixtures("as_root")
PROBE = (ROOT / "telehandler" / "check" / "probe.py").read_bytes()


@pytest.fixture(scope="module")
def helper(policy: Path, as_root: None) -> Iterator[Helper]:
    with Helper(policy) as helper:
        yield helper


@pytest.fixture(scope="module")
def seen(helper: Helper) -> dict[str, Any]:
    """What the probe saw, and the uid the helper said."""
    job = helper.start("/usr/bin/python3", "-I", "-S", "-c", PROBE)
    ended = helper.finish(job)
    assert ended.stderr == b""
    found: dict[str, Any] = json.loads(ended.stdout)
    return found | {"uid": job.uid}


def test_s9_the_uid_is_the_policys_and_never_0(seen: dict[str, Any]) -> None:
    uid = seen["uid"]
    assert 70_000 <= uid < 100_000
    assert seen["ids"] == [[uid] * 3, [uid] * 3, []]


def test_s14_job_sees_only_three_fds(seen: dict[str, Any]) -> None:
    assert seen["fds"] == [0, 1, 2]
    assert seen["targets"][0] == "/dev/null"
    assert all(target.startswith("pipe:") for target in seen["targets"][1:])


def test_s17_every_capability_set_is_empty_and_root_is_gone(seen: dict[str, Any]) -> None:
    assert {seen["status"][f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert 0 not in seen["setuid"]


def test_s18_no_new_privs_and_seccomp(seen: dict[str, Any], helper: Helper) -> None:
    assert (seen["status"]["NoNewPrivs"], seen["status"]["Seccomp"]) == ("1", "2")
    setuid = next(path for path in ("/usr/bin/su", "/usr/bin/passwd", "/usr/bin/mount") if _is_setuid(path))
    ended = helper.run(
        "sh", "-c", f"cp {setuid} /tmp/x 2>/dev/null; {setuid} --help >/dev/null; grep ^Uid /proc/self/status"
    )
    assert re.search(rb"Uid:\t([7-9]\d{4})\t\1\t\1\t\1", ended.stdout)


def _is_setuid(path: str) -> bool:
    return os.path.exists(path) and bool(os.stat(path).st_mode & 0o4000)


def test_s19_seccomp_denies(seen: dict[str, Any]) -> None:
    assert {name: number for name, number in seen["denied"].items() if number != 1} == {}
    assert {name: number for name, number in seen["sockets"].items() if number != 1} == {}
    assert {seen["clone3"], seen["x32"], *seen["unknown"]} == {38}  # ENOSYS
    assert seen["unshare files"] == 0  # no namespace: allowed


def test_s19_a_32_bit_call_ends_the_process(helper: Helper) -> None:
    """int 0x80 from 64-bit code enters by the 32-bit table."""
    code = "import ctypes, mmap; m = mmap.mmap(-1, 4096, prot=7); m.write(b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3'); "
    code += "ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(m)))(); print('survived')"
    ended = helper.run("/usr/bin/python3", "-I", "-S", "-c", code)
    assert ended.stdout == b""
    assert ended.facts["signal"] == 31  # SIGSYS


def test_s21_environment_is_built_from_empty(seen: dict[str, Any]) -> None:
    given = dict(entry.decode().split("=", 1) for entry in ENV)
    assert {name: value for name, value in seen["environment"].items() if name != "LC_CTYPE"} == given


def test_s22_signals_session_umask_and_core(seen: dict[str, Any]) -> None:
    assert {int(seen["status"][name], 16) for name in ("SigBlk", "SigCgt")} <= {0, 2}  # python's own SIGINT
    assert int(seen["status"]["SigIgn"], 16) & ~(1 << 12 | 1 << 24) == 0  # python's own SIGPIPE and SIGXFSZ
    sid, pid, terminal = seen["session"]
    assert sid == pid
    assert terminal is None
    assert seen["umask"] == 0o022
    assert seen["rlimits"]["CORE"] == [0, 0]
    assert seen["rlimits"]["NOFILE"] == [1024, 1024]


def test_s22_a_shell_sees_no_ignored_or_blocked_signal(helper: Helper) -> None:
    ended = helper.run("cat", "/proc/self/status")
    assert set(re.findall(rb"Sig(?:Blk|Ign|Cgt):\t(\w+)", ended.stdout)) == {b"0" * 16}


def test_s23_the_init_cannot_be_read(seen: dict[str, Any]) -> None:
    assert 0 not in seen["init"]


def test_s24_mounts_are_read_only_nosuid_and_nodev(seen: dict[str, Any]) -> None:
    writable = {"/proc", "/tmp", "/var/tmp", "/home", "/dev/shm", "/dev/pts"}
    for fields in seen["mounts"]:
        point, options = fields[4], set(fields[5].split(","))
        assert "nosuid" in options, point
        # Device nodes that are ours: the file system of /dev, and /dev/null over what is masked.
        own_devices = point in ("/dev", "/dev/pts") or (point.startswith("/proc/") and fields[3] == "/null")
        assert "nodev" in options or own_devices, point
        assert "ro" in options or point in writable, point
    # What the job's /tmp covers is ours, and out of its reach: the files of its names, and what its /tmp is a part of.
    covered = [("/tmp", "names", "/"), ("/tmp", "files", "/")]
    points = [fields[4] for fields in seen["mounts"] if (fields[4], fields[-2], fields[3]) not in covered]
    assert len({*points}) == len(points), "one covers another: the host's is still there"
    root = [fields for fields in seen["mounts"] if fields[4] == "/"]
    assert len(root) == 1
    assert "master" not in " ".join(root[0])  # nothing travels to or from the host


def test_s25_devices_are_the_real_ones(seen: dict[str, Any]) -> None:
    expected = {"null": [1, 3], "zero": [1, 5], "full": [1, 7], "random": [1, 8], "urandom": [1, 9], "tty": [5, 0]}
    assert seen["devices"] == expected


def test_s26_proc_is_its_own_and_the_rest_is_absent_or_read_only(seen: dict[str, Any]) -> None:
    assert seen["processes"] == [1, 2]
    assert seen["sys"] == [["system"], ["cpu"], ["cgroup"]]
    assert not any(seen["empty"].values())
    assert 0 not in seen["writes"].values()
    assert seen["cgroup"][-1] == "0::/"


def test_s27_network_none_is_loopback_up(seen: dict[str, Any]) -> None:
    assert seen["interfaces"] == {"lo": 1}


def test_s27_namespaces_are_not_the_hosts(seen: dict[str, Any]) -> None:
    own = {name: os.readlink(f"/proc/self/ns/{name}") for name in ("pid", "mnt", "net", "uts", "ipc", "cgroup")}
    assert not {name for name, link in own.items() if seen["namespaces"][name] == link}
    assert seen["hostname"] == "sandbox"


def test_s28_two_jobs_do_not_see_each_other(helper: Helper) -> None:
    script = "echo secret >/tmp/f; echo secret >/dev/shm/f; echo up; sleep 100"
    first = helper.start("sh", "-c", script)
    assert os.read(first.stdout, 10) == b"up\n"
    seen = helper.run("sh", "-c", "cat /tmp/f /dev/shm/f; ls /proc | grep -c '^[0-9]'; kill -9 -1; echo alive")
    assert b"secret" not in seen.stdout
    host_pid = (helper.cgroup / f"job-{first.handle}" / "cgroup.procs").read_text().split()[0]
    assert Path(f"/proc/{host_pid}").exists()
    helper.request(Type.KILL, handle=first.handle)
    helper.finish(first)
