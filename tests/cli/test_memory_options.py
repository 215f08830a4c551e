"""--memory-reservation, --tmp-size and --shm-size: what they set, in a dry run and in a job."""

import subprocess
from pathlib import Path

import pytest
from support.command_line import local_command

pytestmark = pytest.mark.usefixtures("as_root")


def _local(policy: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(local_command(policy, *words), capture_output=True, text=True, check=False)


def test_they_are_the_jobs_limits(policy: Path) -> None:
    flags = ["-m", "100m", "--memory-reservation", "80m", "--tmp-size", "30m", "--shm-size", "5m"]
    shown = _local(policy, "--dry-run", *flags, "--", "true").stdout.splitlines()
    # Where the machine has no controller, the first is marked as not enforced.
    rows = {
        name: value.strip().removesuffix(" (not enforced)") for name, _, value in (row.partition(" ") for row in shown)
    }
    assert (rows["memory_high_bytes"], rows["tmp_bytes"], rows["shm_bytes"]) == ("83886080", "31457280", "5242880")
    done = _local(policy, *flags, "--", "df", "--output=size", "/tmp", "/dev/shm")
    assert done.stdout.split()[1:] == ["30720", "5120"]


def test_what_they_must_be_is_said(policy: Path) -> None:
    for flags, words in (
        (["--tmp-size", "much"], "--tmp-size 'much' is not a size such as 512m or 2g"),
        (["--shm-size", "0"], "--shm-size '0' must be more than 0"),
        (["-m", "64m", "--tmp-size", "65m"], "tmp_bytes and shm_bytes"),
        (["-m", "64m", "--memory-reservation", "65m"], "memory_high_bytes is over the job's memory_bytes"),
    ):
        done = _local(policy, *flags, "--", "true")
        assert (done.returncode, done.stdout) == (125, "")
        assert words in done.stderr
