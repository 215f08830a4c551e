"""`telehandler client run`: start a job and watch it to its end."""

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from telehandler.cli import jidfile, job_names, options, parse, terminal
from telehandler.common.errors import OutputFailed, ReaderGone, TelehandlerError

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
@options.life
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
    life = parse.life(given | {"detach": detach})
    variables = parse.environment(given["env"], given["env_file"])
    given_input = job_input(given, detach or given["dry_run"])
    variables = given_input.variables | variables
    jidfile.check(settings["jidfile"])
    client = job_names.connect(settings)  # the handshake goes on while more is imported
    from telehandler.pb import telehandler_pb2 as pb

    message = pb.StartJobRequest(
        **command_fields(given["command"], variables, given),
        limits=pb.Limits(**limits),
        profile=parse.utf8(os.fsencode(given["profile"]), "--profile"),
        log_max_bytes=parse.size(log_max_size, "--log-max-size") if log_max_size else 0,
        log_policy=f"LOG_POLICY_{log_policy.upper().replace('-', '_')}" if log_policy else None,
        **life,
        **given_input.fields(),
    )
    if given["dry_run"]:
        terminal.show_check(given["command"], client.check(message))
        return
    context.exit(start(client, message, given_input, detach, lambda name: jidfile.write(settings["jidfile"], name)))


def command_fields(command: tuple[str, ...], variables: dict[bytes, bytes], given: dict[str, Any]) -> dict[str, Any]:
    """Of a StartJobRequest: what options.variables and the words behind them say. Raises TelehandlerError."""
    return {
        "argv": [os.fsencode(argument) for argument in command],
        "env": {parse.utf8(name, "the name of a variable"): value for name, value in variables.items()},
        "working_directory": parse.utf8(os.fsencode(given["workdir"] or ""), "--workdir"),
        "merge_stderr": given["merge_stderr"],
    }


@dataclass(frozen=True)
class JobInput:
    """What -i and -t say: `size` is that of our terminal, in rows and columns, which the job's begins with."""

    interactive: bool = False
    tty: bool = False
    detach_keys: bytes = b""
    size: tuple[int, int] | None = None
    variables: dict[bytes, bytes] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """Of a StartJobRequest."""
        from telehandler.pb import telehandler_pb2 as pb

        size = pb.TerminalSize(rows=self.size[0], columns=self.size[1]) if self.size else None
        return {"stdin": self.interactive, "terminal": self.tty, "terminal_size": size}


def job_input(given: dict[str, Any], unused: bool) -> JobInput:
    """`unused`: the command ends without passing anything on. Raises TelehandlerError where -t finds no terminal."""
    interactive, tty = given["interactive"], given["tty"]
    if not interactive and not tty:
        return JobInput()
    from telehandler.cli import keyboard

    keys = keyboard.detach_keys(given["detach_keys"])
    if not tty:
        return JobInput(interactive, detach_keys=keys)
    if not unused:
        keyboard.check_terminal()
    return JobInput(interactive, tty, keys, keyboard.size(), keyboard.terminal_variables())


def start(
    client: "Client",
    message: "pb.StartJobRequest",
    given_input: JobInput,
    detach: bool,
    started: "Callable[[str], None] | None" = None,
) -> int:
    """Starts what `message` says and prints its output to its end: its exit code. `started` is called with its name."""
    from telehandler.cli.forwarding import Forwarding
    from telehandler.pb import telehandler_pb2 as pb

    signals = Forwarding(client, raw=given_input.tty and given_input.interactive and not detach)
    name = client.start(message, terminal.note)
    signals.to(name)
    if started:
        started(name)
    try:
        if detach:
            print(name, flush=True)
            code = 0
        else:
            if given_input.interactive:
                from telehandler.cli import keyboard

                keyboard.Keyboard(client, name, given_input.tty, given_input.detach_keys).begin()
            code = watch(client, pb.WatchJobOutputRequest(name=name), True, write)
            while message.restart_policy == pb.RESTART_POLICY_ON_FAILURE and (
                name := client.next_run(name, terminal.note)
            ):
                terminal.note(f"the job is started again, as {name}")
                signals.to(name)
                code = watch(client, pb.WatchJobOutputRequest(name=name), True, write)
            if message.HasField("remove_after"):
                _remove(client, name)
    except OutputFailed as error:
        signals.settle(reader_gone=isinstance(error, ReaderGone))
        terminal.note(f"the job runs on: {terminal.come_back(name)}")
        raise
    signals.settle()
    return code


def _remove(client: "Client", name: str) -> None:
    try:
        client.delete(name, False)
    except TelehandlerError:
        pass  # the server does it in a minute


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
