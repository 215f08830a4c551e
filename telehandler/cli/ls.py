"""`telehandler client ls`: a user's jobs, the newest first."""

import datetime
import itertools
import json
import os
import shlex
from typing import TYPE_CHECKING, Any

import click

from telehandler.cli import job_names, options, parse
from telehandler.cli.status import fields
from telehandler.cli.terminal import note, printable
from telehandler.common.states import State

if TYPE_CHECKING:
    from telehandler.pb import telehandler_pb2 as pb

SCHEMA = 1
_EVERYBODY = "users/-"
_SHORT, _COMMAND = 8, 50  # letters of a UUID, and of a command
_STATES = [state.name.lower() for state in State]


def _filters(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, list[str]]:
    """The values by key."""
    found: dict[str, list[str]] = {"label": [], "name": [], "state": []}
    for entry in given:
        key, _, value = entry.partition("=")
        if key not in found or not value:
            raise click.BadParameter(f"{entry!r} is no filter: there are label=KEY[=VALUE], name=PART and state=STATE")
        if key == "state" and value not in _STATES:
            raise click.BadParameter(f"{value!r} is no state: there are {', '.join(_STATES)}")
        found[key].append(parse.utf8(os.fsencode(value), "--filter"))
    return found


@click.command()
@options.connection
@click.option("-a", "--all", "everybody", is_flag=True, help="Everybody's jobs; for admins.")
@click.option("--state", "states", multiple=True, type=click.Choice(_STATES), help="Only these; may be given again.")
@click.option("--in", "exec_in", metavar="JOB", help="The commands that `exec` has run in JOB.")
@click.option(
    "--filter",
    "filters",
    multiple=True,
    callback=_filters,
    metavar="KEY=VALUE",
    help="label=KEY[=VALUE], all of them; name=PART or state=STATE, any of them. May be given again.",
)
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="How many at most.")
@click.option("-q", "--quiet", is_flag=True, help="Print names alone.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print them.")
@click.pass_context
def command(
    context: click.Context,
    /,
    everybody: bool,
    states: tuple[str, ...],
    exec_in: str | None,
    filters: dict[str, list[str]],
    limit: int,
    quiet: bool,
    output: str,
    **given: Any,
) -> None:
    """List your jobs, the newest first."""
    if quiet and output != "text":
        raise click.UsageError("-q goes without -o", context)
    settings = options.settings(given)
    client = job_names.connect(settings)
    within = job_names.find(exec_in, settings, client) if exec_in else ""
    names = [f"JOB_STATE_{name.upper()}" for name in (*states, *filters["state"])]
    # One more than is shown tells whether there are more.
    parent = _EVERYBODY if everybody else ""
    listed = client.list_jobs(parent, names, limit + 1, names=filters["name"], labels=filters["label"], exec_in=within)
    jobs = list(itertools.islice(listed, limit))
    more = next(listed, None) is not None
    if output == "json":
        print(json.dumps({"schema": SCHEMA, "jobs": [fields(job) for job in jobs], "more": more}))
        return
    if quiet:
        for job in jobs:
            print(printable(job.name))
    else:
        named = any(job.given_name for job in jobs)
        _print_table([_head(named), *(_row(job, everybody, named) for job in jobs)])
    if more:
        note(f"there are more than these {limit}: ask for them with --limit")


def _head(named: bool) -> tuple[str, ...]:
    return ("JOB", *(["NAME"] if named else []), "STATE", "REASON", "EXIT", "STARTED", "COMMAND")


def _row(job: "pb.JobStatus", whole: bool, named: bool) -> tuple[str, ...]:
    values = fields(job)
    name = job.name if whole else job.name.rpartition("/")[2][:_SHORT]
    try:
        started = datetime.datetime.fromtimestamp(job.start_time.seconds).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # a year that this machine's time zone has not
        started = values["start_time"]
    ended = values["end_time"] is not None
    code = "" if not ended else "-" if values["exit_code"] is None else str(values["exit_code"])
    reason = values["reason"] if ended else ""
    words = printable(shlex.join(values["command"]))
    words = words if len(words) <= _COMMAND else f"{words[: _COMMAND - 3]}..."
    given_name = [printable(job.given_name) or "-"] if named else []
    return printable(name), *given_name, values["state"], reason, code, started, words


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
