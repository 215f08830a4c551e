"""Options that several verbs share."""

from collections.abc import Callable
from typing import Any

import click

from telehandler.cli import parse
from telehandler.client.config import DEFAULTS, resolve
from telehandler.common.errors import TelehandlerError

Function = Callable[..., Any]
# Flags after the command belong to the job, also without `--`.
DETACH_KEYS = "ctrl-p,ctrl-q"
JOB_COMMAND = {"allow_interspersed_args": False}
_VARIABLES = (
    click.option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="A variable for the job."),
    click.option("--env-file", multiple=True, metavar="FILE", help="Variables, one a line."),
    click.option("-w", "--workdir", metavar="DIR", help="The job's directory."),
    click.option("--merge-stderr", is_flag=True, help="One pipe for stdout and stderr, printed as stdout."),
)


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


def variables(function: Function) -> Function:
    """Options about a command in a sandbox that is there."""
    for option in reversed(_VARIABLES):
        function = option(function)
    return function


def sandbox(function: Function) -> Function:
    """Options of run and local about the job."""
    for option in reversed(
        (
            *_VARIABLES,
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
            click.option("--dry-run", is_flag=True, help="Start nothing; print what the job would get."),
            click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="COMMAND [ARG]..."),
        )
    ):
        function = option(function)
    return function


def life(function: Function) -> Function:
    """Options of run about how the job is found, stopped, removed and restarted."""
    for option in reversed(
        (
            click.option("--name", metavar="NAME", help="A name that no other job of yours has."),
            click.option("-l", "--label", multiple=True, metavar="KEY[=VALUE]", help="For `ls --filter`."),
            click.option("--rm", is_flag=True, help="Remove the job and its output when it has ended."),
            click.option(
                "--restart",
                default="no",
                show_default=True,
                metavar="POLICY",
                help="no, on-failure, or on-failure:N: start it again when it fails, N times at most.",
            ),
            click.option(
                "--stop-signal",
                callback=parse.signal_number,
                metavar="SIGNAL",
                help="What a stop sends first.  [default: TERM]",
            ),
            click.option(
                "--stop-timeout",
                type=click.FloatRange(0, 3600),
                metavar="SECONDS",
                help="Seconds from then to SIGKILL.  [default: 10]",
            ),
        )
    ):
        function = option(function)
    return function


def job_input(function: Function) -> Function:
    """-i and -t, of run and local."""
    function = click.option("-t", "--tty", is_flag=True, help="A terminal of the job's own.")(function)
    return click.option("-i", "--interactive", is_flag=True, help="Pass stdin on to the job.")(function)


def detach_keys(function: Function) -> Function:
    text = "Keys that leave a job with a terminal running; empty: none."
    option = click.option("--detach-keys", metavar="KEYS", default=DETACH_KEYS, show_default=True, help=text)
    return option(function)


def check_command(command: tuple[str, ...], context: click.Context) -> None:
    """Refuses an empty command, and one of our flags where the command should be."""
    if not command:
        raise click.UsageError("no command: say what to run, such as `-- ls -l`", context)
    if command[0].startswith("-"):
        flags = {flag for parameter in context.command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        name = command[0].partition("=")[0]
        if name in flags or name[:2] in flags:
            raise TelehandlerError(f"the command begins with {name}, a flag of ours: our flags go before `--`")
