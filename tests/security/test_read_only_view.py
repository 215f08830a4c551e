"""What tells about or steers the kernel is mounted read-only, whatever the modes of its files say (S26)."""

from pathlib import Path

import pytest
from support.helper_driver import Helper

pytestmark = pytest.mark.usefixtures("as_root")
READ_ONLY = ["/", "/proc/sys", "/sys", "/sys/fs/cgroup", "/sys/devices/system/cpu", "/dev"]
WRITABLE = ["/tmp", "/home", "/dev/shm"]


def test_s26_the_kernels_settings_are_mounted_read_only(policy: Path) -> None:
    """Their files are root's, so a job's uid could not write them anyway: this holds for what has another mode."""
    with Helper(policy) as helper:
        seen = helper.probe(
            f"tell({{path: os.statvfs(path).f_flag & os.ST_RDONLY for path in {READ_ONLY + WRITABLE}}})"
        )
    assert {path for path, read_only in seen.items() if read_only} == {*READ_ONLY}
