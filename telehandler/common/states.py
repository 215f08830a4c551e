"""A job's states and reasons, and the one table of what may follow what. Imports nothing of ours."""

from enum import IntEnum


class State(IntEnum):
    """As in the API's JobState. A job is recorded when it runs; the other three are final."""

    RUNNING = 1
    FAILED = 2
    COMPLETED = 3
    STOPPED = 4


class Reason(IntEnum):
    """As in the API's JobReason: why a job is no longer running."""

    NONE = 0
    EXITED = 1
    SIGNALED = 2
    OOM = 3
    STOPPED = 4
    LOST = 5
    TIMEOUT = 6
    PIDS = 7
    OUTPUT_LOST = 8


NEXT = {State.RUNNING: (State.FAILED, State.COMPLETED, State.STOPPED)}


def check(old: State, new: State) -> None:
    """Raises ValueError when a job in `old` cannot become `new`."""
    if new not in NEXT.get(old, ()):
        raise ValueError(f"a job that is {old.name} cannot become {new.name}")


def end(facts: dict[str, int], stopped: bool, output_lost: bool = False) -> tuple[State, Reason]:
    """The final state and its reason, from the facts that the helper attests: EXITED's fields.

    `output_lost`: some of what the job wrote is not kept, though its policy was to wait. That is no success.
    """
    failed = facts["signal"] or facts["exit_code"]
    if stopped:
        return State.STOPPED, Reason.STOPPED
    if facts["timed_out"]:
        return State.FAILED, Reason.TIMEOUT
    if facts["signal"] and facts["oom_kills"]:
        return State.FAILED, Reason.OOM
    if failed and facts["pids_refused"]:
        return State.FAILED, Reason.PIDS
    if facts["signal"]:
        return State.FAILED, Reason.SIGNALED
    if output_lost and not failed:
        return State.FAILED, Reason.OUTPUT_LOST
    return (State.FAILED if failed else State.COMPLETED), Reason.EXITED
