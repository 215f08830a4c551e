"""`telehandler client run`: start a job and watch it to its end."""

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import click

from telehandler.cli import job_names, options, parse, terminal
from telehandler.common.errors import TelehandlerError

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
@options.sandbox
@click.pass_context
def command(
    context: click.Context, /, detach: bool, log_max_size: str | None, log_policy: str | None, **given: Any
) -> None:
    """Run COMMAND on the server and print its output.

    The job's name is written to the jidfile. Ctrl-C is passed to the job; the second one kills it. The exit code is
    the job's own, or 128 + n when signal n ended it.
    """
    settings = options.settings(given)
    options.check_command(given["command"], context)
    limits = parse.limits(given)
    variables = parse.environment(given["env"], given["env_file"])
    client = job_names.connect(settings)  # the handshake goes on while more is imported
    from telehandler.pb import telehandler_pb2 as pb

    message = pb.StartJobRequest(
        argv=[os.fsencode(argument) for argument in given["command"]],
        env={os.fsdecode(name): value for name, value in variables.items()},
        working_directory=given["workdir"] or "",
        limits=pb.Limits(**limits),
        profile=given["profile"],
        merge_stderr=given["merge_stderr"],
        log_max_bytes=parse.size(log_max_size, "--log-max-size") if log_max_size else 0,
        log_policy=f"LOG_POLICY_{log_policy.upper().replace('-', '_')}" if log_policy else None,
    )
    if given["dry_run"]:
        terminal.show_check(given["command"], client.check(message))
        return
    name = client.start(message, terminal.note)
    _write_jidfile(settings["jidfile"], name)
    if detach:
        print(name)
        return
    _pass_interrupts(client, name)
    context.exit(watch(client, pb.WatchJobOutputRequest(name=name), True, write))


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


def _write_jidfile(path: str, name: str) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"{name}\n")
    except OSError as error:
        terminal.note(f"the job runs, but its name {name} cannot be written to {path}: {error.strerror}")


def _pass_interrupts(client: "Client", name: str) -> None:
    """The first Ctrl-C goes to the job, the second kills it; from a thread, as a handler must not call grpc."""
    count = 0

    def send(number: int) -> None:
        try:
            if number == 1:
                client.signal(name, signal.SIGINT)
            else:
                client.stop(name, signal.SIGTERM, 0)
        except TelehandlerError as error:
            terminal.note(str(error))

    def interrupted(*_: object) -> None:
        nonlocal count
        count += 1
        if count == 1:
            terminal.note(f"interrupt passed to the job; once more kills it; Ctrl-\\ detaches: watch it as {name}")
        threading.Thread(target=send, args=(count,), daemon=True).start()

    signal.signal(signal.SIGINT, interrupted)
    # Ctrl-\\ leaves the job running.
    signal.signal(signal.SIGQUIT, lambda *_: os._exit(0))
