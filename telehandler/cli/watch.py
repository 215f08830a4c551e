"""`telehandler client watch`: a job's output from its first byte."""

from typing import Any

import click

from telehandler import terminal
from telehandler.cli import EXIT_INTERRUPTED, jobname, options
from telehandler.cli.run import watch


@click.command()
@options.connection
@click.option("-f/-F", "--follow/--no-follow", default=True, help="Go on to the job's end, or end with what is there.")
@click.argument("job", required=False)
@click.pass_context
def command(context: click.Context, /, follow: bool, job: str | None, **given: Any) -> None:
    """Print a job's output from the first byte, to its end.

    JOB is a job's name, its UUID, or as much of that as is unique; without it, the one of the jidfile. Ctrl-C
    detaches; the job is untouched. The exit code is the job's own, as of run.
    """
    settings = options.settings(given)
    client = jobname.connect(settings)
    name = jobname.find(job, settings, client)
    try:
        context.exit(watch(client, name, no_follow=not follow, started=False))
    except KeyboardInterrupt:
        terminal.note("detached; the job is untouched")
        context.exit(EXIT_INTERRUPTED)
