"""A root without a disk behind it, as the guest's overlay: io limits say what to do, and doing it helps."""

import errno
from pathlib import Path

from support.helper_driver import Helper
from support.policies import write_policy
from vm.guest.common import cgroup_file, device_number, end

from helper.wire import Stage


def test_a_root_without_a_disk_names_the_remedy(place: Path) -> None:
    with Helper(write_policy(place, "no-disk", "")) as helper:
        stage, number, text = helper.start_error("true")
    assert (stage, number) == (Stage.LIMIT, errno.EOPNOTSUPP)
    assert "io finds no disk behind the job's files, as on an overlay" in text
    assert 'io_devices = ["/dev/sda"]' in text


def test_with_the_remedy_jobs_start_under_their_limits(place: Path) -> None:
    with Helper(write_policy(place, "named-disk", 'io_devices = ["/dev/vda"]\n')) as helper:
        job = helper.start("sleep", "1000", write_bps=1 << 20)
        assert cgroup_file(job, "io.max").startswith(f"{device_number('vda')} ")
        assert "wbps=1048576" in cgroup_file(job, "io.max")
        end(helper, job)
