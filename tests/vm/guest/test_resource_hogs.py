"""R7: hogs of every kind hurt no one: another job's stream stays whole and goes on, the helper answers, stop works.

R15: no process is free.
"""

import errno
import select
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from support.helper_driver import Helper, Job, read_line
from support.wait import wait_until
from vm.guest.common import MIB, cgroup_file, end, figure

from helper.wire import Stage

LINES = 150
# A line, then a wait of 20 ms without a process: nobody writes to the fifo.
STREAM = "mkfifo /tmp/f; exec 3<>/tmp/f; i=0; while :; do echo $((i += 1)); read -t 0.02 -u 3; done"
# What a hog leaves to the others of the pace the stream has alone.
LEAST_PACE = 0.4
# Above memory.high, where the kernel reclaims all the time, and below memory.max, where it would end.
MEMORY = "m = []\nwhile len(m) < 104: m.append(bytearray(1 << 20))\nwhile True: m[0] = bytes(m[-1])"
HOGS = {
    "fork bomb": (["bash", "-c", "bomb() { bomb | bomb & }; bomb; sleep 1000"], {"pids": 100}),
    "memory": (["python3", "-ISc", MEMORY], {"memory_bytes": 128 * MIB, "memory_high_bytes": 96 * MIB}),
    "processor": (["sh", "-c", "for i in 1 2 3 4 5 6 7 8; do while :; do :; done & done; wait"], {}),
    "disk": (
        ["sh", "-c", "f=$(mktemp -p /mnt); while :; do dd if=/dev/zero of=$f bs=1M count=32 conv=fsync; done"],
        {},
    ),
    "output": (["yes"], {}),
}


@pytest.fixture
def stream(helper: Helper) -> Iterator[Job]:
    job = helper.start("bash", "-c", STREAM)
    yield job
    end(helper, job)


def _read(stream: Job, number: int) -> None:
    assert read_line(stream.stdout) == b"%d\n" % number  # no line is missing


def _seconds(stream: Job, number: int) -> tuple[float, int]:
    """How long the stream takes for LINES lines, from `number` on; the number of the next one."""
    while select.select([stream.stdout], [], [], 0)[0]:  # what it wrote while nobody read
        _read(stream, number)
        number += 1
    began = time.monotonic()
    for following in range(number, number + LINES):
        _read(stream, following)
    return time.monotonic() - began, number + LINES


def _is_at_work(kind: str, job: Job) -> bool:
    """Whether the hog is what its name says; for most, whether it has met its limit."""
    found: dict[str, Callable[[], bool]] = {
        "fork bomb": lambda: figure(job, "pids.events", "max") > 0,
        "memory": lambda: figure(job, "memory.events", "high") > 0,
        "processor": lambda: figure(job, "cpu.stat", "usage_usec") > 500_000,
        "disk": lambda: "wbytes=" in cgroup_file(job, "io.stat"),
        "output": lambda: True,
    }
    return found[kind]()


@pytest.mark.parametrize("kind", [*HOGS, "all together"])
def test_r7_another_jobs_stream_goes_on(helper: Helper, stream: Job, kind: str) -> None:
    alone, number = _seconds(stream, 1)
    kinds = list(HOGS) if kind == "all together" else [kind]
    hogs = {name: helper.start(*HOGS[name][0], **HOGS[name][1]) for name in kinds}
    for name, job in hogs.items():
        wait_until(f"{name} is at work", partial(_is_at_work, name, job))
    with_hogs, _ = _seconds(stream, number)
    assert alone / with_hogs >= LEAST_PACE
    assert helper.run("echo", "a new job").stdout == b"a new job\n"
    assert all(end(helper, job)["killed"] for job in hogs.values())
    assert len(list(helper.cgroup.glob("job-*"))) == 1


@pytest.mark.parametrize("free", [0, 1])
def test_r15_no_process_is_free(helper: Helper, free: int) -> None:
    """Neither for the job's init, or for it but not for the job: refused, and as before once there are."""
    running = helper.start("sleep", "1000")
    current = int((helper.cgroup / "pids.current").read_text())
    (helper.cgroup / "pids.max").write_text(str(current + free))
    try:
        assert helper.start_error("true")[:2] == (Stage.CLONE, errno.EAGAIN)
    finally:
        (helper.cgroup / "pids.max").write_text("max")
    assert helper.run("echo", "again").stdout == b"again\n"
    end(helper, running)
    assert not list(helper.cgroup.glob("job-*"))
