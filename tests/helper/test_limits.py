"""What limits a job gets, of what it asks for and the policy: all of a cgroup's, memory, and files in memory.

That the kernel enforces what is asked of it, and that the bounds of R7 and R26 hold so: tests/vm/guest.
"""

import errno
import os
import socket
from pathlib import Path

import pytest
from support.cgroups import CONTROLLERS
from support.helper_driver import ENV, TAG, Helper
from support.policies import write_policy

from helper import cgroup, spawn, wire
from helper.jobs import Job, Jobs
from helper.link import Events, Link
from helper.policy import Policy, Refusal, SetupError, limits_of, load, parse
from helper.uids import Uids
from helper.wire import Stage, Stdio

MIB = 1 << 20
NOTHING = dict.fromkeys(wire.LIMITS.split(), 0)


def _limits(policy: Policy, **asked: int) -> tuple[int, int, int, int]:
    """memory, high, tmp, shm in MiB."""
    final = limits_of(policy, policy.profiles["host"], NOTHING | {name: size * MIB for name, size in asked.items()})
    names = ("memory_bytes", "memory_high_bytes", "tmp_bytes", "shm_bytes")
    return tuple(final[name] // MIB for name in names)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({}, (512, 512, 256, 128)),
        ({"memory_bytes": 64}, (64, 64, 32, 16)),
        ({"memory_bytes": 4096}, (4096, 4096, 256, 256)),
        ({"memory_bytes": 64, "memory_high_bytes": 48}, (64, 48, 32, 16)),
        ({"memory_high_bytes": 100}, (512, 100, 256, 128)),
        ({"tmp_bytes": 400}, (512, 512, 400, 112)),
        ({"shm_bytes": 400}, (512, 512, 112, 400)),
        ({"tmp_bytes": 300, "shm_bytes": 200}, (512, 512, 300, 200)),
    ],
)
def test_r26_files_in_memory_are_bounded_by_the_jobs_memory(asked: dict[str, int], wanted: tuple[int, ...]) -> None:
    assert _limits(parse("", ""), **asked) == wanted


def test_a_maximum_may_be_asked_for() -> None:
    policy = parse("", "[limits.maximum]\ntmp_bytes = 8\nshm_bytes = 9\n")
    asked = NOTHING | policy.maximum
    assert limits_of(policy, policy.profiles["host"], asked) == policy.maximum
    for name, most in policy.maximum.items():
        with pytest.raises(Refusal, match=f"{name} is over {most}"):
            limits_of(policy, policy.profiles["host"], asked | {name: most + 1})


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("directory", ["/tmp", "/var/tmp", "/dev/shm"])
def test_r26_files_in_memory_end_at_their_size(policy: Path, directory: str) -> None:
    """Whether or not the job's memory is limited here."""
    script = f"head -c {32 * MIB} /dev/zero >{directory}/x; echo $(($(stat -c %s {directory}/x) >> 20))"
    with Helper(policy) as helper:
        ended = helper.run("sh", "-c", script, memory_bytes=32 * MIB)
    assert b"No space left" in ended.stderr
    assert ended.stdout == (b"8\n" if directory == "/dev/shm" else b"16\n")


def test_r7_every_limit_is_asked_of_the_jobs_cgroup() -> None:
    """Of one on a machine that has every controller; the processes are one more, our init."""
    base = object.__new__(cgroup.Base)
    base.root, base.controllers = "/sys/fs/cgroup", set(CONTROLLERS)
    limits = {"cpu_millis": 250, "memory_bytes": 96 * MIB, "memory_high_bytes": 80 * MIB, "pids": 33}
    limits |= {"read_bps": 5, "write_bps": 4, "read_iops": 3, "write_iops": 2}
    rows = base.rows(limits, [], ["8:0", "9:1"])
    assert sorted(rows) == [
        ("cpu.max", "25000 100000"),
        ("io.max", "8:0 rbps=5 wbps=4 riops=3 wiops=2"),
        ("io.max", "9:1 rbps=5 wbps=4 riops=3 wiops=2"),
        ("memory.high", str(80 * MIB)),
        ("memory.max", str(96 * MIB)),
        ("memory.oom.group", "1"),
        ("memory.swap.max", "0"),
        ("pids.max", "34"),
    ]


@pytest.mark.usefixtures("as_root")
def test_r7_a_limit_that_the_kernel_does_not_take_starts_nothing(bare_cgroup: Path) -> None:
    """All are written before there is a process; here two that need no controller, the second a bad one."""
    policy, (ours, theirs) = parse("", ""), socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    base, uids, profile = cgroup.Base(str(bare_cgroup)), Uids(policy), policy.profiles["host"]
    rows = [("cgroup.max.depth", "3"), ("cgroup.max.descendants", "some")]
    limits = limits_of(policy, profile, NOTHING)
    order = spawn.Order([b"true"], ENV, b"/", profile, uids.take(), limits, rows, Stdio(0))
    with ours, theirs:
        jobs = Jobs(base, uids, Events(), Link(ours))
        try:
            with pytest.raises(Refusal) as raised:
                jobs.start(Job(1, 7, TAG, order, None))
        finally:
            cgroup.end(base.fd, base.path)
            for fd in (base.fd, uids.fd):
                os.close(fd)
    assert raised.value.args[:2] == (Stage.CGROUP, errno.EINVAL)
    assert (jobs.table, uids.taken) == ({}, set())


def test_a_policy_can_slow_jobs_down_before_their_limit() -> None:
    policy = parse("", f"[limits.default]\nmemory_high_bytes = {300 * MIB}\n[profile.host]\ntmp_bytes = {8 * MIB}\n")
    assert _limits(policy) == (512, 300, 8, 8)
    assert _limits(policy, memory_bytes=1024) == (1024, 1024, 8, 8)
    with pytest.raises(SetupError, match=r"memory_high_bytes must be at most memory_bytes"):
        parse("x", f"[limits.default]\nmemory_high_bytes = {600 * MIB}\n")


def test_no_size_is_zero_which_would_be_no_limit() -> None:
    policy = parse("", "")
    final = limits_of(policy, policy.profiles["host"], NOTHING | {"memory_bytes": 2})
    assert (final["tmp_bytes"], final["shm_bytes"]) == (1, 1)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"memory_bytes": 64, "memory_high_bytes": 65}, "memory_high_bytes is over the job's memory_bytes"),
        ({"memory_bytes": 64, "tmp_bytes": 40, "shm_bytes": 40}, "tmp_bytes and shm_bytes"),
        ({"memory_bytes": 64, "tmp_bytes": 65}, "tmp_bytes and shm_bytes"),
        ({"tmp_bytes": 1 << 21}, "tmp_bytes is over 1099511627776, the policy's maximum"),
    ],
)
def test_what_cannot_be_is_refused(asked: dict[str, int], words: str) -> None:
    with pytest.raises(Refusal, match=words) as raised:
        _limits(parse("", ""), **asked)
    assert raised.value.args[0] is Stage.LIMIT


@pytest.mark.usefixtures("as_root")
def test_an_io_device_that_is_none_is_an_error_at_the_start(place: Path) -> None:
    path = write_policy(place, "device", 'io_devices = ["/dev/null"]\n')
    with pytest.raises(SetupError, match="io_devices: /dev/null is not a block device"):
        load(str(path), set())
