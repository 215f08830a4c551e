"""`telehandler server`: the root helper and the api."""

from typing import Any

import click

from telehandler.cli import parse
from telehandler.common.bounds import MAX_CALLS_PER_USER, MAX_CONNECTIONS


@click.command()
@click.option("-l", "--listen", default=":6443", show_default=True, metavar="[HOST]:PORT", help="Where to listen.")
@click.option("-c", "--cert", default="ssl/server.pem", show_default=True, metavar="FILE", help="The certificate.")
@click.option("-k", "--key", default="ssl/server-key.pem", show_default=True, metavar="FILE", help="Its key.")
@click.option("-r", "--root", default="ssl/root.pem", show_default=True, metavar="FILE", help="The clients' root.")
@click.option("--admin", "admins", multiple=True, metavar="NAME", help="A user who may see, stop and remove every job.")
@click.option("--state-dir", metavar="DIR", help="Records and logs; default: /var/lib/telehandler as root, else XDG.")
@click.option("--keep-age", metavar="TIME", help="Keep ended jobs for so long, such as 30d; default: no bound.")
@click.option(
    "--keep-jobs", type=click.IntRange(0), default=10_000, show_default=True, help="Keep so many ended jobs; 0: all."
)
@click.option("--keep-bytes", metavar="SIZE", help="Keep so much output of ended jobs; default: no bound.")
@click.option(
    "--max-connections", type=click.IntRange(1), default=MAX_CONNECTIONS, show_default=True, help="Of all clients."
)
@click.option(
    "--max-calls-per-user",
    type=click.IntRange(1),
    default=MAX_CALLS_PER_USER,
    show_default=True,
    help="Under way at once, such as watches.",
)
@click.option(
    "--max-jobs-per-user",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Jobs of one user that run; default: three quarters of what the policy allows and others leave.",
)
@click.option(
    "--stream-workers",
    type=click.IntRange(1, 64),
    metavar="N",
    help="Processes that serve streams: the api, and N - 1 beside it on its port; default: half of the cores, 1 to 8.",
)
@click.option(
    "--on-stop",
    type=click.Choice(["kill", "drain"]),
    default="kill",
    show_default=True,
    help="What SIGTERM does to jobs.",
)
@click.option("--drain-timeout", default="1m", show_default=True, metavar="TIME", help="The most that a drain waits.")
@click.option("--user", metavar="NAME", help="As root: whom to serve as; default: sudo's user, telehandler, nobody.")
@click.option("--cgroup-root", metavar="DIR", help="Where cgroup v2 is; default: the policy's, /sys/fs/cgroup.")
@click.option("--helper-policy", metavar="FILE", help="The root policy; default: /etc/telehandler/policy.toml.")
@click.pass_context
def command(
    context: click.Context,
    /,
    keep_age: str | None,
    keep_jobs: int,
    keep_bytes: str | None,
    on_stop: str,
    drain_timeout: str,
    **given: Any,
) -> None:
    """Serve: start the root helper, give up root, listen.

    Started as root, through sudo, or by a user who may start the helper: see contrib/. SIGTERM or Ctrl-C ends it and
    every job; with --on-stop drain it first refuses new jobs and waits for those that run, and a second signal kills
    them. SIGHUP starts a new api, from the code and certificates that are there now, and no job stops.

    What is over a bound is removed when a job ends and at the start: the jobs that ended first, with their
    output.
    """
    keep = {
        "age_ms": parse.duration_ms(keep_age, "--keep-age") if keep_age is not None else 0,
        "jobs": keep_jobs,
        "output_bytes": parse.size(keep_bytes, "--keep-bytes") if keep_bytes is not None else 0,
    }
    drain_s = parse.duration_ms(drain_timeout, "--drain-timeout") / 1000
    from telehandler.supervisor.server import Options, serve

    context.exit(serve(Options(**given, keep=keep, drain_s=drain_s if on_stop == "drain" else None)))
