"""`telehandler client run`: start a job and watch it to its end."""

import os
from typing import TYPE_CHECKING, Any

import click

from telehandler.cli import jidfile, job_names, options, parse, terminal
from telehandler.common.errors import OutputFailed, ReaderGone

if TYPE_CHECKING:
    from collections.abc import Callable

    from telehandler.client.connection import Client
    from telehandler.pb import telehandler_pb2 as pb


@click.command(context_settings=options.JOB_COMMAND)
@options.connection
@click.option("-d", "--detach", is_flag=True, help="Print the job's name and leave it running.")
@click.option("--log-max-size", metavar="SIZE", help="The most output that is kept, such as 1g; default: all of it.")
@click.option(
    "--log-policy",
    type=click.Choice(["block", "drop-oldest", "kill"]),
    help="At that size: the job waits (default), the oldest output goes, or the job is killed.",
)
@options.job_input
@options.detach_keys
@options.sandbox
@click.pass_context
def command(
    context: click.Context, /, detach: bool, log_max_size: str | None, log_policy: str | None, **given: Any
) -> None:
    """Run COMMAND on the server and print its output.

    The job's name is written to the jidfile. Ctrl-C is passed to the job, the second one kills it; so are SIGTERM and
    SIGHUP. Ctrl-\\ detaches: the job runs on. The exit code is the job's own, or 128 + n when signal n ended it. With
    -it every key goes to the job, but for the detach keys, and a signal detaches.
    """
    settings = options.settings(given)
    options.check_command(given["command"], context)
    limits = parse.limits(given)
    variables = parse.environment(given["env"], given["env_file"])
    interactive, tty, keys, size = given["interactive"], given["tty"], b"", None
    if interactive or tty:
        from telehandler.cli import keyboard

        keys = keyboard.detach_keys(given["detach_keys"])
        if tty:
            if not detach and not given["dry_run"]:
                keyboard.check_terminal()
            variables, size = keyboard.terminal_variables() | variables, keyboard.size()
    jidfile.check(settings["jidfile"])
    client = job_names.connect(settings)  # the handshake goes on while more is imported
    from telehandler.cli.forwarding import Forwarding
    from telehandler.pb import telehandler_pb2 as pb

    message = pb.StartJobRequest(
        argv=[os.fsencode(argument) for argument in given["command"]],
        env={parse.utf8(name, "the name of a variable"): value for name, value in variables.items()},
        working_directory=parse.utf8(os.fsencode(given["workdir"] or ""), "--workdir"),
        limits=pb.Limits(**limits),
        profile=parse.utf8(os.fsencode(given["profile"]), "--profile"),
        merge_stderr=given["merge_stderr"],
        log_max_bytes=parse.size(log_max_size, "--log-max-size") if log_max_size else 0,
        stdin=interactive,
        terminal=tty,
        terminal_size=pb.TerminalSize(rows=size[0], columns=size[1]) if size else None,
        log_policy=f"LOG_POLICY_{log_policy.upper().replace('-', '_')}" if log_policy else None,
    )
    if given["dry_run"]:
        terminal.show_check(given["command"], client.check(message))
        return
    signals = Forwarding(client, raw=tty and interactive and not detach)
    name = client.start(message, terminal.note)
    signals.to(name)
    jidfile.write(settings["jidfile"], name)
    try:
        if detach:
            print(name, flush=True)
            code = 0
        else:
            if interactive:
                keyboard.Keyboard(client, name, tty, keys).begin()
            code = watch(client, pb.WatchJobOutputRequest(name=name), True, write)
    except OutputFailed as error:
        signals.settle(reader_gone=isinstance(error, ReaderGone))
        terminal.note(f"the job runs on: {terminal.come_back(name)}")
        raise
    signals.settle()
    context.exit(code)


def watch(
    client: "Client", request: "pb.WatchJobOutputRequest", started: bool, write: "Callable[[pb.JobOutput], None]"
) -> int:
    """Prints a job's output to its end: the job's exit code, 0 while it runs on."""
    from telehandler.client.connection import End

    ended: list[End] = []
    for output in client.watch(request, started, ended, terminal.note):
        if output.gap_bytes:
            terminal.note(f"{output.gap_bytes} bytes before byte {output.offset} are no longer kept: the log has a cap")
        write(output)
    if not ended:
        return 0
    return terminal.report_end(ended[0].reason, ended[0].exit_code, ended[0].signal, ended[0].detail)


def write(output: "pb.JobOutput") -> None:
    """A job's bytes to their own stream."""
    terminal.write(output.stream == 2, output.data)
