"""`telehandler local`: run a job here, with no server."""

import os
from typing import Any

import click

from telehandler.cli import keyboard, options, parse, raw_mode, terminal
from telehandler.common.streams import STDERR_FD, STDIN_FD, STDOUT_FD


@click.command(context_settings=options.JOB_COMMAND)
@click.option("--cgroup-root", metavar="DIR", help="Where cgroup v2 is; default: the policy's, /sys/fs/cgroup.")
@click.option("--helper-policy", metavar="FILE", help="The root policy; default: /etc/telehandler/policy.toml.")
@options.job_input
@options.sandbox
@click.pass_context
def command(context: click.Context, /, cgroup_root: str | None, helper_policy: str | None, **given: Any) -> None:
    """Run COMMAND in a sandbox on this machine and print its output.

    It takes root, sudo or the setuid wrapper to start the helper. The exit code is the job's own, or 128 + n when
    signal n ended it. With -it every key goes to the job.
    """
    options.check_command(given["command"], context)
    limits = parse.limits(given)
    env = parse.environment(given["env"], given["env_file"])
    if given["tty"]:
        if not given["dry_run"]:
            keyboard.check_terminal()
        env = keyboard.terminal_variables() | env
    from telehandler import local

    request = local.Request(
        owner="local",
        argv=[os.fsencode(argument) for argument in given["command"]],
        env=env,
        cwd=os.fsencode(given["workdir"] or ""),
        limits=limits,
        profile=given["profile"],
        merge_stderr=given["merge_stderr"],
        stdin=given["interactive"],
        terminal=given["tty"],
    )
    if given["dry_run"]:
        terminal.show_check(given["command"], local.check(request, cgroup_root, helper_policy))
        return
    stdin_fd = STDIN_FD if given["interactive"] else -1
    sinks = local.Sinks(STDOUT_FD, STDERR_FD, terminal.note, stdin_fd, keyboard.size)
    if given["interactive"] and given["tty"]:
        raw_mode.enter(STDIN_FD)
    end = local.run(request, cgroup_root, helper_policy, sinks)
    raw_mode.leave()
    context.exit(terminal.report_end(*end))
