"""States of a job: the final state and its reason follow from what the helper says of the end."""

import pytest

from telehandler.common.states import Reason, State, end

FACTS = dict.fromkeys(("exit_code", "signal", "oom_kills", "pids_refused", "timed_out"), 0)


@pytest.mark.parametrize(
    ("facts", "stopped", "expected"),
    [
        ({}, False, (State.COMPLETED, Reason.EXITED)),
        ({"exit_code": 3}, False, (State.FAILED, Reason.EXITED)),
        ({"signal": 9}, False, (State.FAILED, Reason.SIGNALED)),
        ({"signal": 9, "oom_kills": 1}, False, (State.FAILED, Reason.OOM)),
        ({"exit_code": 1, "oom_kills": 1}, False, (State.FAILED, Reason.EXITED)),
        ({"exit_code": 2, "pids_refused": 4}, False, (State.FAILED, Reason.PIDS)),
        ({"pids_refused": 4}, False, (State.COMPLETED, Reason.EXITED)),
        ({"signal": 15, "timed_out": 1}, False, (State.FAILED, Reason.TIMEOUT)),
        ({"timed_out": 1}, False, (State.FAILED, Reason.TIMEOUT)),
        ({"signal": 9, "oom_kills": 1, "timed_out": 1}, True, (State.STOPPED, Reason.STOPPED)),
    ],
)
def test_the_reason_follows_from_the_facts(facts: dict[str, int], stopped: bool, expected: object) -> None:
    assert end(FACTS | facts, stopped) == expected
