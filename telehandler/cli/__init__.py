"""The command line: one verb, one file, loaded when it is used.

Runs in the user's process. Nothing imports it. It reaches jobs and helper through `local` and `check` alone;
`telehandler server` is the one verb that imports `supervisor`.
"""

import gc
import importlib
import os
import sys

# What is imported is no garbage, and to look for some among it again and again takes 5 ms of each start.
gc.set_threshold(100_000)

import click  # noqa: E402

from telehandler import __version__  # noqa: E402
from telehandler.cli.terminal import note  # noqa: E402
from telehandler.common.errors import EXIT_OURS, TelehandlerError  # noqa: E402

EXIT_INTERRUPTED = 130


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
    """Every way out ends in an exit code; no traceback reaches a user."""
    code = _run()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        pass  # nobody reads any more
    # grpc's threads take 10 ms to end in order, which no command needs.
    os._exit(code)


def _run() -> int:
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
    except TelehandlerError as error:
        note(str(error))
        return error.exit_code
    except SystemExit as end:  # click's own, when nobody reads what is printed
        return end.code if isinstance(end.code, int) else EXIT_OURS
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
