"""`telehandler client`: the verbs that ask a server."""

import click

from telehandler.cli import LazyGroup


@click.group(
    cls=LazyGroup, modules={name: name for name in "run watch stop signal status ls wait rm benchmark help".split()}
)
def command() -> None:
    """Ask a server: run, watch, stop, signal, list and remove jobs."""
