"""The command line: one verb, one file, loaded when it is asked for."""

import importlib
import sys

import click

from telehandler.errors import EXIT_OURS, TelehandlerError

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
        "completion": "completion",
        "help": "help",
        "version": "version",
    },
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
def cli() -> None:
    """Run commands in sandboxes of their own and stream their output.

    `local` needs no server; `client run` asks one.
    """


def main() -> None:
    """Every way out ends in an exit code; no traceback reaches a user."""
    try:
        sys.exit(cli.main(prog_name="telehandler", standalone_mode=False))
    except click.Abort:
        sys.exit(EXIT_INTERRUPTED)
    except click.ClickException as error:
        _say(error.format_message().replace("\n", " "))
        if isinstance(error, click.UsageError) and error.ctx:
            print(f"See '{error.ctx.command_path} --help'.", file=sys.stderr)
        sys.exit(EXIT_OURS)
    except TelehandlerError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _say(text: str) -> None:
    from telehandler.terminal import note

    note(text)
