"""`telehandler client exec`: run a further command in a job that runs."""

from typing import Any

import click

from telehandler.cli import job_names, options, parse, run


@click.command(context_settings=options.JOB_COMMAND)
@options.connection
@click.option("-d", "--detach", is_flag=True, help="Print the command's name and leave it running.")
@options.job_input
@options.detach_keys
@options.variables
@click.argument("job")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="COMMAND [ARG]...")
@click.pass_context
def command(context: click.Context, /, detach: bool, job: str, command: tuple[str, ...], **given: Any) -> None:
    """Run a further COMMAND in a JOB that runs.

    It is in the job's sandbox and within its limits, and sees the job's files and processes. It has a name, an output
    and an exit code of its own, for `watch`, `status` and `stop`; it ends with the job. Ctrl-C is passed to it, the
    second one kills it; Ctrl-\\ detaches.
    """
    settings = options.settings(given)
    command = command[1:] if command[:1] == ("--",) else command  # behind JOB it is a word like any other
    options.check_command(command, context)
    given_input = run.job_input(given, detach)
    variables = given_input.variables | parse.environment(given["env"], given["env_file"])
    client = job_names.connect(settings)
    from telehandler.pb import telehandler_pb2 as pb

    message = pb.StartJobRequest(
        exec_in_job=job_names.find(job, settings, client),
        **run.command_fields(command, variables, given),
        **given_input.fields(),
    )
    context.exit(run.start(client, message, given_input, detach))
