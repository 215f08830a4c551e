"""`telehandler client rm`: removes jobs that have ended, with their output."""

from typing import TYPE_CHECKING, Any

import click

from telehandler.cli import job_names, options
from telehandler.cli.terminal import printable

if TYPE_CHECKING:
    from telehandler.client.connection import Client


@click.command()
@options.connection
@click.option("-f", "--force", is_flag=True, help="Kill a job that runs.")
@click.argument("jobs", nargs=-1, required=True, metavar="JOB...")
@click.pass_context
def command(context: click.Context, /, force: bool, jobs: tuple[str, ...], **given: Any) -> None:
    """Remove jobs that have ended, with their output.

    Prints the names of those removed. JOB is a job's --name, its whole name or UUID, or as much of that as is
    unique. The exit code is 125 when one could not be removed; the others are.
    """

    def remove(client: "Client", name: str) -> int:
        client.delete(name, force)
        print(printable(name), flush=True)
        return 0

    context.exit(job_names.for_each(jobs, options.settings(given), remove))
