"""A job's log as a stream worker has it: the files are read here, and what they do not tell comes from the api."""

from pathlib import Path

from telehandler.output.log import Cap, JobLog, State


class FollowedLog(JobLog):
    """Read only. Between two states that the api sends, what it has written since is not there yet."""

    def __init__(self, directory: Path, drops: bool, state: State) -> None:
        """`drops`: its oldest may be dropped. Raises OSError; FileNotFoundError for a job that was removed."""
        super().__init__(directory, Cap(0, drops), ended=True)
        self.follow(state)

    def follow(self, state: State) -> None:
        """The log is so far now: wakes its watchers."""
        self.size, self._count, self._last, _, self.ended = state
        self.floor = max(self.floor, state.floor)  # a watcher may have met the hole before
        self._wake()
