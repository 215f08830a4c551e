"""`telehandler client`: the verbs that ask a server."""

import click

from telehandler.cli import LazyGroup


@click.group(
    cls=LazyGroup,
    modules={"run": "run", "watch": "watch", "stop": "stop", "status": "status", "benchmark": "benchmark"},
)
def command() -> None:
    """Ask a server: run a job, watch its output, stop it."""
