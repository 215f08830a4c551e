"""Fixtures of the guest: its two disks, a policy whose jobs may write to them, a helper."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.helper_driver import Helper
from vm.guest.common import PARTITION, POLICY, WHOLE


@pytest.fixture(scope="session")
def disks() -> None:
    """Both disks with a file system each, that every job may write to."""
    for device, point in (("/dev/vda", WHOLE), ("/dev/vdb1", PARTITION)):
        subprocess.run(["mkfs.ext4", "-q", device], check=True)
        point.mkdir()
        subprocess.run(["mount", device, str(point)], check=True)
        point.chmod(0o1777)


@pytest.fixture(scope="session")
def limits_policy(disks: None, place: Path) -> Path:
    """The built-in policy, every controller needed; jobs may write to a disk."""
    path = place / "limits.toml"
    path.write_text(POLICY)
    return path


@pytest.fixture(scope="module")
def helper(limits_policy: Path) -> Iterator[Helper]:
    with Helper(limits_policy) as helper:
        yield helper
