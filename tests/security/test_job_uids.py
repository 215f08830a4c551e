"""A job's uid is its own until it is forgotten, also when the range has gone round (S9)."""

from pathlib import Path

import pytest
from support.helper_driver import Helper
from support.policies import policy_text, write_policy

pytestmark = pytest.mark.usefixtures("as_root")
UIDS = 3


def test_s9_a_dead_jobs_uid_is_nobodys_until_it_is_released(place: Path) -> None:
    """Until then the api holds its pipes, and by its uid what it left is told from another's."""
    text = policy_text(f"max_jobs = {UIDS}\n[job_uids]\nfirst = 82000\ncount = {UIDS}\n")
    with Helper(write_policy(place, "three uids", text)) as helper:
        lasting, dead = helper.start("sleep", "100"), helper.start("true")
        helper.exited(dead)
        for _ in range(2 * UIDS):
            job = helper.start("true")
            assert job.uid not in (lasting.uid, dead.uid)
            helper.finish(job)
        helper.finish(dead)
        seen = set()
        for _ in range(2 * UIDS):
            job = helper.start("true")
            seen.add(job.uid)
            helper.finish(job)
        assert dead.uid in seen
        lasting.close()
