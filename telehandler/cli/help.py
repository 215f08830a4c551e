"""`telehandler help VERB...`: the same as --help."""

import click


def _verbs(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """The verbs that may follow the words that are there, for completion."""
    group = (context.parent or context).command
    for word in context.params.get("words") or ():
        group = group.get_command(context, word) if isinstance(group, click.Group) else None  # type: ignore[assignment]
    names = group.list_commands(context) if isinstance(group, click.Group) else []
    return [name for name in names if name.startswith(incomplete)]


@click.command()
@click.argument("words", nargs=-1, shell_complete=_verbs)
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
