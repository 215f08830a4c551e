"""`telehandler help VERB...`: the same as --help."""

import click


@click.command()
@click.argument("words", nargs=-1)
@click.pass_context
def command(context: click.Context, words: tuple[str, ...]) -> None:
    """Show the help of a command, such as: help client run."""
    parent = context.parent or context
    for word in words:
        found = parent.command.get_command(parent, word) if isinstance(parent.command, click.Group) else None
        if found is None:
            raise click.UsageError(f"no command {' '.join(words)!r}", context.parent)
        parent = click.Context(found, parent=parent, info_name=word)
    print(parent.get_help())
