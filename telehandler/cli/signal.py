"""`telehandler client signal`: sends one signal to jobs that run."""

from typing import TYPE_CHECKING, Any

import click

from telehandler.cli import job_names, options, parse
from telehandler.cli.terminal import printable

if TYPE_CHECKING:
    from telehandler.client.connection import Client


@click.command()
@options.connection
@click.option(
    "--signal",
    "number",
    default="TERM",
    callback=parse.signal_number,
    show_default=True,
    metavar="SIGNAL",
    help="By name or number, such as HUP, SIGHUP or 1.",
)
@click.argument("jobs", nargs=-1, metavar="[JOB]...")
@click.pass_context
def command(context: click.Context, /, number: int, jobs: tuple[str, ...], **given: Any) -> None:
    """Send a signal to jobs that run.

    Prints the name of each job that got it. INT and QUIT go to the command's whole process group, as from a terminal;
    others to the command alone. JOB is a job's --name, its whole name or UUID, or as much of that as is unique;
    without any, the one of the jidfile. The exit code is 125 when one could not be signalled; the others are.
    """

    def send(client: "Client", name: str) -> int:
        client.signal(name, number)
        print(printable(name), flush=True)
        return 0

    context.exit(job_names.for_each(jobs or [None], options.settings(given), send))
