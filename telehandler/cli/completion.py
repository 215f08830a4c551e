"""`telehandler completion`: a script for the shell."""

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print a completion script for the shell.

    \b
    bash:  source <(telehandler completion bash)
    zsh:   source <(telehandler completion zsh)
    fish:  telehandler completion fish | source
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"no completion for {shell}", context)
    root = context.find_root()
    # source_vars and not source(): that one runs bash to look at its version.
    script = found(root.command, {}, "telehandler", "_TELEHANDLER_COMPLETE")
    print(script.source_template % script.source_vars())
