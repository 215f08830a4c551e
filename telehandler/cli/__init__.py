"""The command line: one verb, one file, loaded when it is used.

Runs in the user's process. Nothing imports it. It reaches jobs and helper through `local` and `check` alone;
`telehandler server` is the one verb that imports `supervisor`.
"""

import gc
import importlib
import os
import signal
import sys

# What is imported is no garbage, and to look for some among it again and again takes 5 ms of each start.
gc.set_threshold(100_000)

from telehandler.cli import lazy_modules  # noqa: E402

lazy_modules.install()

import click  # noqa: E402

from telehandler import __version__  # noqa: E402
from telehandler.cli.terminal import leave, note  # noqa: E402
from telehandler.common import process_state, streams  # noqa: E402
from telehandler.common.errors import EXIT_INTERRUPTED, EXIT_OURS, TelehandlerError  # noqa: E402

EXIT_MAX = 255
_MAX_LINE = 500  # characters


class LazyGroup(click.Group):
    """A group whose commands are imported by name: `telehandler.cli.<module>`, attribute `command`."""

    def __init__(self, *args: object, modules: dict[str, str], **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]  # as click's own
        self.modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = self.modules.get(cmd_name)
        if module is None:
            return None
        found: click.Command = importlib.import_module(f"telehandler.cli.{module}").command
        return found


@click.group(
    cls=LazyGroup,
    modules={
        "local": "local",
        "server": "server",
        "client": "client",
        "check": "check",
        "completion": "completion",
        "help": "help",
        "version": "version",
    },
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Run commands in sandboxes of their own and stream their output.

    `local` needs no server; `client run` asks one.
    """


def main() -> None:
    """Every way out ends in an exit code, at once; no traceback reaches a user."""
    process_state.establish()
    sys.stdout = streams.results()
    code = _run()
    # Not by the interpreter's end: grpc's threads, or what is left unread on stdout, could hold that up for ever.
    leave(code if 0 <= code <= EXIT_MAX else EXIT_OURS)


def _run() -> int:
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = _command()
        sys.stdout.flush()
        return code
    except TelehandlerError as error:
        if str(error):
            note(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BaseException as error:
        note(_unforeseen(error))
        return EXIT_OURS


def _command() -> int:
    try:
        return int(cli.main(prog_name="telehandler", standalone_mode=False) or 0)
    except click.Abort:
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        bare = isinstance(error, click.exceptions.NoArgsIsHelpError)  # its message is the whole help
        note("no command" if bare else error.format_message().replace("\n", " "))
        if isinstance(error, click.UsageError) and error.ctx:
            print(f"See '{error.ctx.command_path} --help'.", file=sys.stderr)
        return EXIT_OURS
    except SystemExit as end:  # click's own
        return end.code if isinstance(end.code, int) else EXIT_OURS


def _unforeseen(error: BaseException) -> str:
    """One line of what nobody has thought of: what the machine refused, or a fault of ours and its place."""
    if isinstance(error, OSError) and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return "out of memory"
    place = error.__traceback__
    while place and place.tb_next:
        place = place.tb_next
    where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else "an unknown place"
    return f"a fault in telehandler itself: {type(error).__name__} at {where}: {error}"[:_MAX_LINE]
