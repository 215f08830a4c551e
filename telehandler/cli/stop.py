"""`telehandler client stop`: a signal, a grace, then the whole tree is killed."""

from typing import Any

import click

from telehandler.cli import job_names, options, parse


@click.command()
@options.connection
@click.option(
    "--stop-signal",
    "number",
    callback=parse.signal_number,
    metavar="SIGNAL",
    help="Sent first.  [default: what run was given, else TERM]",
)
@click.option(
    "-t",
    "--stop-timeout",
    type=click.FloatRange(0, 3600),
    metavar="SECONDS",
    help="Seconds until SIGKILL.  [default: what run was given, else 10]",
)
@click.argument("job", required=False)
def command(number: int | None, stop_timeout: float | None, job: str | None, **given: Any) -> None:
    """Stop a job and all that it started; wait for its end.

    A job that is restarted is not restarted any more. JOB is a job's --name, its whole name or UUID, or as much of
    that as is unique; without it, the one of the jidfile.
    """
    settings = options.settings(given)
    client = job_names.connect(settings)
    client.stop(job_names.find(job, settings, client), number, stop_timeout)
