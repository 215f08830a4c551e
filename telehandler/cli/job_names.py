"""The job that a verb is about: by argument, else by the jidfile; whole, by its given name, or how its UUID begins."""

import os
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from telehandler.cli import jidfile, parse, terminal
from telehandler.common.errors import EXIT_OURS, OutputFailed, ServerUnavailable, TelehandlerError

if TYPE_CHECKING:
    from telehandler.client.connection import Client

_MAX_SHOWN = 4  # of the jobs that an ambiguous beginning could mean
_PREFIX = re.compile(r"[0-9a-fA-F-]{1,36}")
_REFERENCE = re.compile(rf"[0-9a-zA-Z][0-9a-zA-Z_.-]{{0,62}}|{_PREFIX.pattern}")


def find(job: str | None, settings: dict[str, str], client: "Client") -> str:
    """A job's whole name; what is no whole UUID is looked up. Raises TelehandlerError."""
    if job is None:
        job = jidfile.read(settings["jidfile"])
    parse.utf8(os.fsencode(job), "a job's name")
    parent, _, word = job.rpartition("/jobs/")
    if parent == "" and "/" in job:
        return job  # the server says what is wrong with it
    if _is_uuid(word):
        return f"{parent or client.user()}/jobs/{word}"
    if not _REFERENCE.fullmatch(word):
        raise TelehandlerError(f"{job!r} is no job's name or UUID, nor the beginning of a UUID: `client ls` lists them")
    return _complete(client, parent, word)


def for_each(jobs: Iterable[str | None], settings: dict[str, str], work: "Callable[[Client, str], int]") -> int:
    """`work` with the whole name of each job: the first of its exit codes that is not 0.

    What fails for one job is told, and its code is 125; a server that is not there and a stdout that fails end it all.
    """
    client = connect(settings)
    codes = []
    for job in jobs:
        try:
            codes.append(work(client, find(job, settings, client)))
        except (ServerUnavailable, OutputFailed):
            raise
        except TelehandlerError as error:
            terminal.note(f"{job}: {error}" if job else str(error))
            codes.append(EXIT_OURS)
    return next(filter(None, codes), 0)


def connect(settings: dict[str, str]) -> "Client":
    from telehandler.client.connection import Client

    return Client(settings["server"], settings["cert"], settings["key"], settings["root"])


def _is_uuid(text: str) -> bool:
    import uuid as uuids  # which run does without

    try:
        uuids.UUID(text)
    except ValueError:
        return False
    return True


def _complete(client: "Client", parent: str, word: str) -> str:
    """The job of `parent`, by default the caller, that has this given name; else the only one whose UUID begins so."""
    prefix = word.lower() if _PREFIX.fullmatch(word) else ""
    found = []
    for job in client.list_jobs(parent, (), _MAX_SHOWN, prefix, reference=word):
        if job.given_name == word:
            return job.name
        if prefix and job.name.rpartition("/")[2].startswith(prefix):  # of a server that knows no names, too
            found.append(job.name)
    if not found:
        raise TelehandlerError("no such job, or not yours")
    if len(found) > 1:
        shown = ", ".join(name.rpartition("/")[2] for name in found[: _MAX_SHOWN - 1])
        more = " and more" if len(found) == _MAX_SHOWN else ""
        raise TelehandlerError(f"{word} is the beginning of several jobs: {shown}{more}; give more of it")
    return found[0]
