"""Limits of processor, memory, processes and files, in figures, with every controller of cgroup v2 there is."""

import errno
import signal
import time
from pathlib import Path

import pytest
from support.cgroups import CONTROLLERS, cgroup_root, missing_controllers
from support.helper_driver import Helper, Job, read_line
from support.wait import wait_until
from vm.guest.common import MIB, POLICY, WHOLE, cgroup_file, device_number, end, figure

from helper import wire
from helper.policy import load
from helper.wire import Stage

BUSY = "while :; do :; done"


def test_no_controller_is_missing_here(helper: Helper) -> None:
    assert missing_controllers() == []
    assert helper.welcome["missing_controllers"] == []


def test_limits_are_written_as_asked(helper: Helper) -> None:
    limits = {"cpu_millis": 250, "memory_bytes": 96 * MIB, "memory_high_bytes": 80 * MIB, "pids": 33}
    limits |= {"read_bps": 5 * MIB, "write_bps": 4 * MIB, "read_iops": 300, "write_iops": 200}
    job = helper.start("sleep", "1000", **limits)
    expected = {
        "cpu.max": "25000 100000",
        "memory.max": str(96 * MIB),
        "memory.high": str(80 * MIB),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": "34",  # our init is one more
        "io.max": f"{device_number('vda')} rbps={5 * MIB} wbps={4 * MIB} riops=300 wiops=200",
    }
    assert {name: cgroup_file(job, name) for name in expected} == expected
    end(helper, job)


def test_what_is_not_asked_for_is_the_policys_default(helper: Helper, limits_policy: Path) -> None:
    default = load(str(limits_policy), set()).default
    job = helper.start("sleep", "1000")
    assert int(cgroup_file(job, "memory.max")) == default["memory_bytes"]
    assert int(cgroup_file(job, "memory.high")) == default["memory_bytes"]
    assert int(cgroup_file(job, "pids.max")) == default["pids"] + 1
    assert cgroup_file(job, "cpu.max") == f"{default['cpu_millis'] * 100} 100000"
    assert f"wbps={default['write_bps']} " in cgroup_file(job, "io.max")
    end(helper, job)
    job = helper.start("sleep", "1000", memory_bytes=64 * MIB)
    assert int(cgroup_file(job, "memory.high")) == 64 * MIB
    end(helper, job)


def _rate(job: Job, seconds_of_cpu: float) -> float:
    """Processor time over wall time, while that much of it is used."""
    first, began = figure(job, "cpu.stat", "usage_usec"), time.monotonic()
    wait_until("that much is used", lambda: figure(job, "cpu.stat", "usage_usec") - first >= seconds_of_cpu * 1e6)
    return (figure(job, "cpu.stat", "usage_usec") - first) / 1e6 / (time.monotonic() - began)


@pytest.mark.parametrize("millis", [200, 600])
def test_a_busy_job_gets_its_quota_of_a_core(helper: Helper, millis: int) -> None:
    job = helper.start("sh", "-c", BUSY, cpu_millis=millis)
    rate = _rate(job, millis / 1000 * 3)
    facts = end(helper, job)
    assert 0.6 * millis <= rate * 1000 <= 1.15 * millis
    assert facts["cgroup_usec"] >= millis * 3 * 1000


def test_the_quota_is_for_all_processes_of_a_job_together(helper: Helper) -> None:
    job = helper.start("sh", "-c", f"({BUSY}) & ({BUSY}) & {BUSY}", cpu_millis=400)
    wait_until("all three run", lambda: int(cgroup_file(job, "pids.current")) == 4)
    rate = _rate(job, 1.2)
    assert 0.6 * 0.4 <= rate <= 1.15 * 0.4
    assert figure(job, "cpu.stat", "nr_throttled") > 0
    end(helper, job)


HOG = "import mmap; m = mmap.mmap(-1, {bytes}); open('/dev/zero', 'rb', 0).readinto(m); print('survived')"


def test_r7_a_memory_hog_is_killed_within_its_limit(helper: Helper) -> None:
    limit = 64 * MIB
    ended = helper.run("python3", "-ISc", HOG.format(bytes=4 * limit), memory_bytes=limit)
    assert ended.stdout == b""
    assert ended.facts["signal"] == signal.SIGKILL
    assert ended.facts["oom_kills"] >= 1
    assert limit * 3 // 4 <= ended.facts["memory_peak_bytes"] <= limit
    fits = helper.run("python3", "-ISc", HOG.format(bytes=limit // 4), memory_bytes=limit)
    assert (fits.stdout, fits.facts["oom_kills"]) == (b"survived\n", 0)
    assert limit // 4 <= fits.facts["memory_peak_bytes"] <= limit


def test_above_memory_high_a_hog_is_slowed_and_not_yet_killed(helper: Helper) -> None:
    limits = {"memory_bytes": 64 * MIB, "memory_high_bytes": 48 * MIB}
    job = helper.start("python3", "-ISc", "m = []\nwhile True: m.append(bytearray(1 << 20))", **limits)
    wait_until("it met memory.high", lambda: figure(job, "memory.events", "high") > 10)
    assert 40 * MIB <= int(cgroup_file(job, "memory.current")) <= 64 * MIB
    assert figure(job, "memory.events", "oom_kill") == 0
    assert end(helper, job)["memory_peak_bytes"] <= 64 * MIB


def test_r7_running_out_of_memory_ends_the_whole_job(helper: Helper) -> None:
    """memory.oom.group: no half of a job lives on."""
    limit = 64 * MIB
    script = f'sleep 1000 & sleep 1000 & python3 -ISc "{HOG.format(bytes=4 * limit)}"; echo lived on; wait'
    ended = helper.run("sh", "-c", script, memory_bytes=limit)
    assert ended.stdout == b""
    assert ended.facts["signal"] == signal.SIGKILL


@pytest.mark.parametrize("directory", ["/tmp", "/var/tmp", "/dev/shm"])
def test_files_in_memory_are_the_jobs_memory(helper: Helper, directory: str) -> None:
    job = helper.start(
        "sh", "-c", f"head -c {8 * MIB} /dev/zero >{directory}/x; echo up; sleep 1000", memory_bytes=32 * MIB
    )
    assert read_line(job.stdout) == b"up\n"
    assert figure(job, "memory.stat", "shmem") >= 8 * MIB
    end(helper, job)


def test_r7_the_number_of_processes_never_passes_its_limit(helper: Helper) -> None:
    limit = 40
    other = helper.start("sh", "-c", "while read -r line; do echo $line; done </dev/zero; sleep 1000")
    job = helper.start("bash", "-c", "bomb() { bomb | bomb & }; bomb; sleep 1000", pids=limit)
    counts = []

    def refusals() -> bool:
        counts.append(len(cgroup_file(job, "cgroup.procs").split()))
        counts.append(int(cgroup_file(job, "pids.current")))
        return figure(job, "pids.events", "max") >= 100

    wait_until("a hundred forks were refused", refusals)
    assert max(counts) <= limit + 1  # our init
    assert max(counts) >= limit // 2
    assert helper.run("echo", "unharmed").stdout == b"unharmed\n"
    assert int(cgroup_file(other, "pids.current")) >= 2
    for each in (job, other):
        assert end(helper, each)["killed"] == 1


def test_a_file_over_its_limit_is_sigxfsz(helper: Helper) -> None:
    assert (
        helper.run("dd", "if=/dev/zero", "of=/mnt/exact", "bs=64k", "count=16", file_bytes=MIB).facts["exit_code"] == 0
    )
    for place in ("/tmp", "/mnt"):
        facts = helper.run("dd", "if=/dev/zero", f"of={place}/big", "bs=64k", "count=17", file_bytes=MIB).facts
        assert facts["signal"] == signal.SIGXFSZ
    assert (WHOLE / "big").stat().st_size == (WHOLE / "exact").stat().st_size == MIB
    # Output is a pipe: no file, and not limited.
    ended = helper.run("head", "-c", str(4 * MIB), "/dev/zero", file_bytes=MIB)
    assert len(ended.stdout) == 4 * MIB


def test_open_files_end_at_their_limit(helper: Helper) -> None:
    code = "import os\nn = 0\ntry:\n  while True: n = os.open('/dev/null', 0)\nexcept OSError as e: print(n, e.errno)"
    assert helper.run("python3", "-ISc", code, open_files=50).stdout == f"49 {errno.EMFILE}\n".encode()


@pytest.mark.parametrize("name", wire.LIMITS.split())
def test_s10_over_the_maximum_is_refused(helper: Helper, limits_policy: Path, name: str) -> None:
    maximum = load(str(limits_policy), set()).maximum[name]
    stage, number, text = helper.start_error("touch", f"/mnt/over-{name}", **{name: maximum + 1})
    assert (stage, number) == (Stage.LIMIT, errno.EINVAL)
    assert f"{name} is over {maximum}" in text
    assert not (WHOLE / f"over-{name}").exists()


@pytest.mark.parametrize("name", CONTROLLERS)
def test_s10_a_missing_controller_is_named(limits_policy: Path, name: str) -> None:
    outer = cgroup_root() / f"without-{name}"
    inner = outer / "inner"
    inner.mkdir(parents=True)
    try:
        others = [other for other in CONTROLLERS if other != name]
        (outer / "cgroup.subtree_control").write_text(" ".join(f"+{other}" for other in others))
        with Helper(limits_policy, "--cgroup-root", str(inner)) as helper:
            assert helper.welcome["missing_controllers"] == [name.encode()]
            stage, number, text = helper.start_error("touch", f"/mnt/without-{name}")
            assert (stage, number) == (Stage.LIMIT, errno.EOPNOTSUPP)
            assert f"the cgroup controller {name} is not available in {inner}" in text
        assert not (WHOLE / f"without-{name}").exists()
    finally:
        inner.rmdir()
        outer.rmdir()


def test_s10_allowing_one_to_be_missing_keeps_the_others_in_force(place: Path, disks: None) -> None:
    root = cgroup_root() / "without"
    inner = root / "inner"
    inner.mkdir(parents=True)
    policy = place / "without-io.toml"
    policy.write_text(f'allow_missing_controllers = ["io"]\n{POLICY}')
    try:
        (root / "cgroup.subtree_control").write_text("+cpu +memory +pids")
        with Helper(policy, "--cgroup-root", str(inner)) as helper:
            job = helper.start("sleep", "1000", pids=9)
            assert cgroup_file(job, "pids.max") == "10"  # our init is one more
            assert cgroup_file(job, "memory.max") != "max"
            end(helper, job)
    finally:
        inner.rmdir()
        root.rmdir()


def test_s16_the_first_process_counts_and_the_second_may_not_be(helper: Helper) -> None:
    """Our init is not counted: with a limit of 1 the main process runs, and its first fork is refused."""
    ended = helper.run("sh", "-c", "echo one; /bin/true; touch /mnt/pids-1; echo not reached", pids=1)
    assert ended.stdout == b"one\n"
    assert ended.facts["pids_refused"] >= 1
    assert not (WHOLE / "pids-1").exists()
    ended = helper.run("sh", "-c", "/bin/true && echo two", pids=2)
    assert (ended.stdout, ended.facts["pids_refused"]) == (b"two\n", 0)


def test_s16_the_first_page_counts(helper: Helper) -> None:
    """So little memory that the init dies of it on its way: what was asked for is never executed."""
    stage, _, text = helper.start_error("touch", "/mnt/page", memory_bytes=512 * 1024)
    assert stage is Stage.CLONE
    assert "died before exec" in text
    assert not (WHOLE / "page").exists()


def test_s16_a_job_is_in_its_cgroup_with_its_limits_when_it_is_announced(helper: Helper) -> None:
    job = helper.start("cat", "/proc/self/cgroup", pids=17, memory_bytes=32 * MIB)
    assert (cgroup_file(job, "pids.max"), cgroup_file(job, "memory.max")) == ("18", str(32 * MIB))
    assert helper.finish(job).stdout == b"0::/\n"


def test_s16_a_limit_that_the_kernel_does_not_take_starts_nothing(place: Path, disks: None) -> None:
    policy = place / "too-many.toml"
    policy.write_text(f"[limits.maximum]\npids = 100000000\n{POLICY}")
    with Helper(policy) as helper:
        stage, number, _ = helper.start_error("touch", "/mnt/refused", pids=100_000_000)
        assert (stage, number) == (Stage.CGROUP, errno.EINVAL)
        assert not list(helper.cgroup.glob("job-*"))
        assert not (WHOLE / "refused").exists()


def test_s26_a_job_cannot_raise_its_own_limits(helper: Helper) -> None:
    script = "cd /sys/fs/cgroup; for file in pids.max cgroup.procs; do echo 50 >$file; done; mount -t cgroup2 none /tmp"
    ended = helper.run("sh", "-c", f"{script}; cat pids.max", pids=20)
    assert ended.stdout == b"21\n"
    assert ended.stderr.count(b"Read-only file system") == 2
    assert ended.stderr.count(b"mount: ") == 1


def test_a_job_reads_its_own_limits(helper: Helper) -> None:
    """As a JVM, node and Go do, to size their heaps and pools."""
    files = " ".join(f"/sys/fs/cgroup/{name}" for name in ("memory.max", "memory.swap.max", "cpu.max", "pids.max"))
    limits = {"memory_bytes": 256 * MIB, "cpu_millis": 1500, "pids": 64}
    ended = helper.run("sh", "-c", f"cat {files}; grep -c . /sys/devices/system/cpu/online", **limits)
    assert ended.stdout.decode().split() == [str(256 * MIB), "0", "150000", "100000", "65", "1"]
