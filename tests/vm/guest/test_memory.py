"""Memory in figures: a job under its limit is not slowed, one over it ends at once, files in memory fill up before."""

import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.command_line import local_command
from support.helper_driver import Helper, read_line
from vm.guest.common import MIB, cgroup_file, end

LIMIT = 256 * MIB
# Memory that is written to, page by page, and read again.
TAKE = "m = bytearray({bytes})\nfor i in range(0, len(m), 4096): m[i] = 1\nprint(sum(m[::4096]), flush=True)"
TOLD_WITHIN_S = 5.0


def _seconds(helper: Helper, memory_bytes: int) -> float:
    began = time.monotonic()
    ended = helper.run("python3", "-ISc", TAKE.format(bytes=220 * MIB), memory_bytes=memory_bytes)
    assert (ended.stdout, ended.facts["oom_kills"]) == (b"%d\n" % (220 * MIB // 4096), 0)
    return time.monotonic() - began


def test_r26_a_job_under_its_limit_is_as_fast_as_without_one(helper: Helper) -> None:
    """220 of 256 MiB; the best of two each, since the machine may be busy."""
    without, within = (min(_seconds(helper, limit) for _ in range(2)) for limit in (1024 * MIB, LIMIT))
    print(f"220 MiB: {without:.2f} s without a limit, {within:.2f} s within {LIMIT // MIB} MiB")
    assert within / without < 1.3


@pytest.mark.parametrize("step", [70, 1])
def test_r26_a_job_over_its_limit_is_told_within_seconds(helper: Helper, step: int) -> None:
    """It has 230 of 256 MiB, and takes 70 more, in one piece or by and by."""
    code = f"m = [bytes([1]) * {230 * MIB}]\nprint('has 230', flush=True)\n"
    code += f"for _ in range({70 // step}): m.append(bytes([1]) * {step * MIB})\nprint('survived')"
    job = helper.start("python3", "-ISc", code, memory_bytes=LIMIT)
    assert read_line(job.stdout) == b"has 230\n"
    began = time.monotonic()
    ended = helper.finish(job)
    took = time.monotonic() - began
    print(f"70 MiB more in steps of {step}: told after {took:.2f} s")
    assert ended.stdout == b""
    assert ended.facts["oom_kills"] >= 1
    assert ended.facts["signal"] == signal.SIGKILL
    assert took < TOLD_WITHIN_S


def test_r26_it_is_told_as_out_of_memory(limits_policy: Path) -> None:
    command = local_command(limits_policy, "-m", "64m", "--", "python3", "-ISc", f"bytes([1]) * {100 * MIB}")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 128 + signal.SIGKILL
    assert "was killed at its memory limit: ask for more with -m" in done.stderr


@pytest.mark.parametrize(
    ("directory", "how"), [("/tmp", "bytes"), ("/var/tmp", "bytes"), ("/dev/shm", "bytes"), ("/dev/shm", "files")]
)
def test_r26_files_in_memory_meet_enospc_before_the_limit(helper: Helper, directory: str, how: str) -> None:
    """One large file, and files without a byte, whose inodes are the job's memory too."""
    fill = f"head -c {LIMIT} /dev/zero >{directory}/x"
    if how == "files":
        fill = f'python3 -ISc \'for i in range(1 << 20): open("{directory}/%d" % i, "w").close()\''
    script = f"{fill}; echo went on; rm -rf {directory}/*; echo again >{directory}/x && cat {directory}/x"
    ended = helper.run("sh", "-c", script, memory_bytes=48 * MIB)
    assert b"No space left" in ended.stderr
    assert ended.stdout == b"went on\nagain\n"
    assert (ended.facts["oom_kills"], ended.facts["exit_code"]) == (0, 0)


def test_r26_both_full_leave_the_job_a_quarter(helper: Helper) -> None:
    script = f"for d in /tmp /dev/shm; do head -c {LIMIT} /dev/zero >$d/x; done; echo went on"
    ended = helper.run("sh", "-c", script, memory_bytes=64 * MIB)
    assert (ended.stdout, ended.facts["oom_kills"]) == (b"went on\n", 0)
    assert ended.facts["memory_peak_bytes"] >= 48 * MIB


def test_a_reservation_is_memory_high(helper: Helper) -> None:
    job = helper.start("sleep", "1000", memory_bytes=64 * MIB, memory_high_bytes=40 * MIB)
    assert (cgroup_file(job, "memory.high"), cgroup_file(job, "memory.max")) == (str(40 * MIB), str(64 * MIB))
    end(helper, job)
