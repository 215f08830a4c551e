"""The bounds of the policy: how many jobs, how many starts a second (S8), and the limits of a job (S10)."""

import errno
from pathlib import Path

import pytest
from support.cgroups import CONTROLLERS
from support.helper_driver import Helper
from support.policies import policy_text, write_policy

from helper import policy as rules
from helper import wire
from helper.wire import Stage, Type

pytestmark = pytest.mark.usefixtures("as_root")


def test_s8_the_number_of_jobs_and_the_rate_of_starts_are_the_policys(place: Path) -> None:
    with Helper(write_policy(place, "two", policy_text("max_jobs = 2\n"))) as helper:
        assert helper.welcome["max_jobs"] == 2
        jobs = [helper.start("sleep", "100") for _ in range(2)]
        stage, number, text = helper.start_error("true")
        assert (stage, number) == (Stage.CAPACITY, errno.EAGAIN)
        assert "2 jobs" in text
        assert len(list(helper.cgroup.glob("job-*"))) == 2
        helper.request(Type.KILL, handle=jobs[0].handle)
        helper.exited(jobs[0])
        assert helper.start_error("true")[0] is Stage.CAPACITY  # until it is released, it holds fds and memory
        helper.finish(jobs[0])
        assert helper.run("true").facts["exit_code"] == 0
    with Helper(write_policy(place, "slow", policy_text("starts_per_second = 2\n"))) as helper:
        # Failed starts count too.
        assert helper.start_error("/no/such")[0] is Stage.EXEC
        assert [helper.request_start("true")[0].type for _ in range(2)] == [Type.STARTED, Type.ERROR]


@pytest.mark.parametrize("name", wire.LIMITS.split())
def test_s10_one_over_a_maximum_is_refused(policy: Path, name: str) -> None:
    maximum = rules.parse("", "").maximum[name]
    with Helper(policy) as helper:
        stage, number, text = helper.start_error("true", **{name: maximum + 1})
        assert (stage, number) == (Stage.LIMIT, errno.EINVAL)
        assert f"{name} is over {maximum}" in text
        assert not list(helper.cgroup.glob("job-*"))


def test_s10_a_limit_is_in_force_as_asked_and_zero_is_the_policys_default(place: Path) -> None:
    text = policy_text("[limits.maximum]\nopen_files = 2000\n")
    with Helper(write_policy(place, "limits", text)) as helper:
        assert helper.start_error("true", open_files=2001)[0] is Stage.LIMIT
        assert helper.run("sh", "-c", "ulimit -Hn; ulimit -Sn", open_files=77).stdout == b"77\n77\n"
        assert helper.run("sh", "-c", "ulimit -Hn").stdout == b"1024\n"


def test_s10_a_missing_controller_is_named_unless_the_policy_allows_it(place: Path, bare_cgroup: Path) -> None:
    root = ("--cgroup-root", str(bare_cgroup))
    for number, missing in enumerate(CONTROLLERS):
        partly = write_policy(place, "partly", f"allow_missing_controllers = {list(CONTROLLERS[:number])}")
        with Helper(partly, *root) as helper:
            assert helper.welcome["missing_controllers"] == [name.encode() for name in CONTROLLERS]
            stage, error, text = helper.start_error("true")
            assert (stage, error) == (Stage.LIMIT, errno.EOPNOTSUPP)
            assert f"the cgroup controller {missing} is not available" in text
            assert "allow_missing_controllers" in text
    allowed = write_policy(place, "partly", f"allow_missing_controllers = {list(CONTROLLERS)}")
    with Helper(allowed, *root) as helper:
        assert helper.run("true").facts["exit_code"] == 0
