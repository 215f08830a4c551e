"""Which jobs a list has: by what they are found, and where its next page begins."""

from typing import NamedTuple


class Cursor(NamedTuple):
    """Where in the list a record is: by its start, and by its name among those of one start."""

    start_ns: int
    uuid: str


class Marks(NamedTuple):
    """What a job is found by: a name that contains one of `names`, and all of `labels`; the job it is a command in.

    A label is a key and its value, None for any. Without either: all jobs. `exec_in` is a UUID; empty: all but commands
    in jobs, or with a prefix of UUIDs all.
    """

    names: tuple[str, ...] = ()
    labels: tuple[tuple[str, str | None], ...] = ()
    exec_in: str = ""


ANY_MARKS = Marks()
