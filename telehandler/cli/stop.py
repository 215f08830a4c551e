"""`telehandler client stop`: a signal, a grace, then the whole tree is killed."""

from typing import Any

import click

from telehandler.cli import job_names, options, parse


@click.command()
@options.connection
@click.option(
    "--stop-signal", "number", default="TERM", callback=parse.signal_number, show_default=True, help="Sent first."
)
@click.option(
    "-t", "--stop-timeout", type=click.FloatRange(0, 3600), default=10, show_default=True, help="Seconds until SIGKILL."
)
@click.argument("job", required=False)
def command(number: int, stop_timeout: float, job: str | None, **given: Any) -> None:
    """Stop a job and all that it started; wait for its end.

    JOB is a job's name, its UUID, or as much of that as is unique; without it, the one of the jidfile.
    """
    settings = options.settings(given)
    client = job_names.connect(settings)
    client.stop(job_names.find(job, settings, client), number, stop_timeout)
