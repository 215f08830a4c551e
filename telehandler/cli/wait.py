"""`telehandler client wait`: returns when jobs have ended."""

from typing import TYPE_CHECKING, Any

import click

from telehandler.cli import job_names, options, terminal
from telehandler.common.errors import TelehandlerError

if TYPE_CHECKING:
    from telehandler.client.connection import Client


@click.command()
@options.connection
@click.argument("jobs", nargs=-1, metavar="[JOB]...")
@click.pass_context
def command(context: click.Context, /, jobs: tuple[str, ...], **given: Any) -> None:
    """Wait until every JOB has ended; print nothing of their output.

    JOB is a job's --name, its whole name or UUID, or as much of that as is unique; without any, the one of the
    jidfile. The exit code is the job's own, as of run; of several jobs, the first that is not 0. Ctrl-C leaves the
    jobs as they are.
    """

    def wait(client: "Client", name: str) -> int:
        from telehandler.client import answers

        status = client.status(name, True, terminal.note)
        if not status.HasField("end_time"):
            raise TelehandlerError("the server does not know how the job ended: its log says more")
        reason = answers.reason_name(status)
        subject = f"the job {name}" if len(jobs) > 1 else "the job"
        return terminal.report_end(reason, answers.exit_code(status), status.signal, job=subject)

    context.exit(job_names.for_each(jobs or [None], options.settings(given), wait))
