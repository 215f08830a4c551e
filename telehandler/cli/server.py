"""`telehandler server`: the root helper and the api."""

from typing import Any

import click


@click.command()
@click.option("-l", "--listen", default=":6443", show_default=True, metavar="[HOST]:PORT", help="Where to listen.")
@click.option("-c", "--cert", default="ssl/server.pem", show_default=True, metavar="FILE", help="The certificate.")
@click.option("-k", "--key", default="ssl/server-key.pem", show_default=True, metavar="FILE", help="Its key.")
@click.option("-r", "--root", default="ssl/root.pem", show_default=True, metavar="FILE", help="The clients' root.")
@click.option("--admin", "admins", multiple=True, metavar="NAME", help="A user who may see and stop every job.")
@click.option("--state-dir", metavar="DIR", help="Records and logs; default: /var/lib/telehandler as root, else XDG.")
@click.option("--user", metavar="NAME", help="As root: whom to serve as; default: sudo's user, telehandler, nobody.")
@click.option("--cgroup-root", metavar="DIR", help="Where cgroup v2 is; default: the policy's, /sys/fs/cgroup.")
@click.option("--helper-policy", metavar="FILE", help="The root policy; default: /etc/telehandler/policy.toml.")
@click.pass_context
def command(context: click.Context, /, **given: Any) -> None:
    """Serve: start the root helper, give up root, listen.

    Started as root, through sudo, or by a user who may start the helper: see contrib/. SIGTERM or Ctrl-C ends it and
    every job.
    """
    from telehandler.supervisor import Options, serve

    context.exit(serve(Options(**given)))
