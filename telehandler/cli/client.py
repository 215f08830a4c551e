"""`telehandler client`: the verbs that ask a server."""

import click

from telehandler.cli import LazyGroup

_VERBS = "run exec cp attach watch stop signal status ls wait rm benchmark help"


@click.group(cls=LazyGroup, modules={name: name for name in _VERBS.split()})
def command() -> None:
    """Ask a server: run, watch, stop, signal, list and remove jobs."""
