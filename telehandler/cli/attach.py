"""`telehandler client attach`: write to a job that runs, and see its output."""

from typing import Any

import click

from telehandler.cli import job_names, keyboard, options, terminal
from telehandler.cli.run import watch, write
from telehandler.common.errors import TelehandlerError


@click.command()
@options.connection
@click.option("--offset", type=click.IntRange(0, (1 << 64) - 1), help="Begin at this byte of the output.")
@click.option("-n", "--tail", type=click.IntRange(0, 1_000_000), metavar="N", help="Begin with the last N lines.")
@options.detach_keys
@click.argument("job", required=False)
@click.pass_context
def command(
    context: click.Context, /, job: str | None, offset: int | None, tail: int | None, detach_keys: str, **given: Any
) -> None:
    """Join a job that was started with -i or -t.

    What is typed is written to it, and its output is printed from now on, if not from --offset or --tail. JOB is as of
    watch. One client writes at a time: whoever attaches takes over from the one before. Signals are as of run, and so
    is the exit code.
    """
    settings = options.settings(given)
    keys = keyboard.detach_keys(detach_keys)
    if offset is not None and tail is not None:
        raise TelehandlerError("--offset and --tail do not go together")
    client = job_names.connect(settings)
    name = job_names.find(job, settings, client)
    from telehandler.cli.forwarding import Forwarding
    from telehandler.pb import telehandler_pb2 as pb

    status = client.status(name)
    if not status.stdin and not status.terminal:
        raise TelehandlerError(f"the job takes no input: {terminal.come_back(name)}")
    if status.terminal:
        keyboard.check_terminal()
    if status.HasField("end_time"):
        raise TelehandlerError(f"the job has ended: {terminal.come_back(name)}")
    # From now on: not from when the server gets it, by which time there may be an answer to what is typed.
    now = status.stdout_bytes + status.stderr_bytes
    request = pb.WatchJobOutputRequest(name=name, tail_lines=tail)
    if tail is None:
        request.offset = now if offset is None else offset
    signals = Forwarding(client, raw=status.terminal)
    signals.to(name)
    keyboard.Keyboard(client, name, status.terminal, keys).begin(redraw=True)
    code = watch(client, request, True, write)
    signals.settle()
    context.exit(code)
