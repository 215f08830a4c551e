"""Options that several verbs share."""

from collections.abc import Callable
from typing import Any

import click

from telehandler.client.config import DEFAULTS, resolve
from telehandler.common.errors import TelehandlerError

Function = Callable[..., Any]
# Flags after the command belong to the job, also without `--`.
JOB_COMMAND = {"allow_interspersed_args": False}


def _connection_option(short: str, name: str, text: str) -> Callable[[Function], Function]:
    return click.option(
        short,
        f"--{name}",
        envvar=f"TELEHANDLER_{name.upper()}",
        help=f"{text}  [default: {DEFAULTS[name]}]",
        metavar="HOST:PORT" if name == "server" else "FILE",
    )


def connection(function: Function) -> Function:
    """-s, -c, -k, -r and -j."""
    for short, name, text in reversed(
        (
            ("-s", "server", "The server."),
            ("-c", "cert", "Your certificate."),
            ("-k", "key", "Its key."),
            ("-r", "root", "The root certificate of the server."),
            ("-j", "jidfile", "The file that holds the job's name."),
        )
    ):
        function = _connection_option(short, name, text)(function)
    return function


def settings(given: dict[str, Any]) -> dict[str, str]:
    """The connection's settings, taken out of a verb's arguments."""
    return resolve({name: given.pop(name) for name in DEFAULTS})


def sandbox(function: Function) -> Function:
    """Options of run and local about the job."""
    for option in reversed(
        (
            click.option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="A variable for the job."),
            click.option("--env-file", multiple=True, metavar="FILE", help="Variables, one a line."),
            click.option("-w", "--workdir", metavar="DIR", help="The job's directory."),
            click.option("--cpus", type=float, help="Cores, such as 1.5."),
            click.option("-m", "--memory", metavar="SIZE", help="Memory, such as 512m; who needs more is ended."),
            click.option("--memory-reservation", metavar="SIZE", help="Memory above which the job is slowed down."),
            click.option("--tmp-size", metavar="SIZE", help="Size of /tmp and home, within its memory; default: half."),
            click.option("--shm-size", metavar="SIZE", help="Size of /dev/shm, the same; default: a quarter."),
            click.option("--pids-limit", type=int, help="Processes and threads of the command."),
            click.option("--device-read-bps", metavar="SIZE", help="Bytes read a second from each disk."),
            click.option("--device-write-bps", metavar="SIZE", help="Bytes written a second to each disk."),
            click.option("--device-read-iops", type=int, help="Reads a second from each disk."),
            click.option("--device-write-iops", type=int, help="Writes a second to each disk."),
            click.option(
                "--ulimit", multiple=True, metavar="NAME=N", help="nofile: open files; fsize: a file's bytes."
            ),
            click.option("--timeout", metavar="TIME", help="Wall clock, such as 90s or 2h; then it is stopped."),
            click.option("--profile", metavar="NAME", default="", help="A profile of the root policy."),
            click.option("--merge-stderr", is_flag=True, help="One pipe for stdout and stderr, printed as stdout."),
            click.option("--dry-run", is_flag=True, help="Start nothing; print what the job would get."),
            click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="COMMAND [ARG]..."),
        )
    ):
        function = option(function)
    return function


def check_command(command: tuple[str, ...], context: click.Context) -> None:
    """Refuses an empty command, and one of our flags where the command should be."""
    if not command:
        raise click.UsageError("no command: say what to run, such as `-- ls -l`", context)
    if command[0].startswith("-"):
        flags = {flag for parameter in context.command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        name = command[0].partition("=")[0]
        if name in flags or name[:2] in flags:
            raise TelehandlerError(f"the command begins with {name}, a flag of ours: our flags go before `--`")
