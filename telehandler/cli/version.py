"""`telehandler version`."""

import click

from telehandler import __version__


@click.command()
def command() -> None:
    """Print the version."""
    print(f"telehandler {__version__}")
