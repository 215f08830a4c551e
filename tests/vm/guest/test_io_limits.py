"""io.max in figures: bytes and operations a second, read and written, by direct I/O to a disk and to a partition."""

import time

import pytest
from support.helper_driver import Helper
from vm.guest.common import MIB, PARTITION, WHOLE, cgroup_file, device_number, end

FREE = {"read_bps": 1 << 40, "write_bps": 1 << 40, "read_iops": 10**7, "write_iops": 10**7}
# Name of the limit, its value, dd's block size and count; each takes about three seconds under its limit.
LIMITS = [
    ("write_bps", 4 * MIB, MIB, 12),
    ("read_bps", 4 * MIB, MIB, 12),
    ("write_iops", 60, 4096, 180),
    ("read_iops", 60, 4096, 180),
]


def _dd(helper: Helper, reads: bool, size: int, count: int, **limits: int) -> float:
    """Seconds for so many blocks, past the cache."""
    words = ["if=/mnt/dd", "of=/dev/null", "iflag=direct"] if reads else ["if=/dev/zero", "of=/mnt/dd", "oflag=direct"]
    began = time.monotonic()
    job = helper.start("dd", *words, "conv=notrunc", f"bs={size}", f"count={count}", place=[b"host", b""], **limits)
    facts = helper.finish(job).facts
    assert facts["exit_code"] == 0
    return time.monotonic() - began


@pytest.mark.parametrize(("name", "value", "size", "count"), LIMITS, ids=[row[0] for row in LIMITS])
def test_a_disk_is_no_faster_than_the_limit(helper: Helper, name: str, value: int, size: int, count: int) -> None:
    reads = name.startswith("read")
    (WHOLE / "dd").write_bytes(bytes(12 * MIB))
    (WHOLE / "dd").chmod(0o666)
    free = _dd(helper, reads, size, count, **FREE)
    limited = _dd(helper, reads, size, count, **{**FREE, name: value})
    expected = count * (size if name.endswith("bps") else 1) / value
    assert limited >= 0.85 * expected
    assert limited <= 2 * expected + 2
    assert free < 0.5 * limited, "without a limit it would be as slow: the limit was not what slowed it"


def test_a_partition_is_limited_by_its_disk(helper: Helper) -> None:
    job = helper.start("sleep", "1000", place=[b"partition", b""], write_bps=4 * MIB)
    assert cgroup_file(job, "io.max").startswith(f"{device_number('vdb')} ")
    assert f" wbps={4 * MIB} " in cgroup_file(job, "io.max")
    end(helper, job)
    words = ["dd", "if=/dev/zero", "of=/mnt/dd", "oflag=direct", "bs=1M", "count=12"]
    began = time.monotonic()
    ended = helper.run(*words, place=[b"partition", b""], write_bps=4 * MIB)
    assert ended.facts["exit_code"] == 0
    assert time.monotonic() - began >= 0.85 * 3
    assert (PARTITION / "dd").stat().st_size == 12 * MIB


def test_what_a_job_writes_through_the_cache_is_limited_too(helper: Helper) -> None:
    """Memory and io are controllers of one tree, so the kernel knows whose pages it writes back."""
    began = time.monotonic()
    ended = helper.run("dd", "if=/dev/zero", "of=/mnt/cached", "bs=1M", "count=12", "conv=fsync", write_bps=4 * MIB)
    assert ended.facts["exit_code"] == 0
    assert time.monotonic() - began >= 0.85 * 3
