"""`telehandler check`: what this machine and installation can and cannot do, with remedies."""

import json
from typing import Any

import click

from telehandler.cli import options
from telehandler.cli.terminal import printable

SCHEMA = 1
EXIT_MISSING = 1
_WORDS = {True: "ok", False: "MISSING", None: "not seen"}


@click.command()
@click.option("--security", is_flag=True, help="Try the security properties, by their names in docs/security.md.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
@click.option("--server-cert", default="ssl/server.pem", show_default=True, metavar="FILE", help="The server's.")
@click.option("--server-key", default="ssl/server-key.pem", show_default=True, metavar="FILE", help="Its key.")
@click.option("--cgroup-root", metavar="DIR", help="Where cgroup v2 is; default: the policy's, /sys/fs/cgroup.")
@click.option("--helper-policy", metavar="FILE", help="The root policy; default: /etc/telehandler/policy.toml.")
@options.connection
@click.pass_context
def command(context: click.Context, /, security: bool, output: str, **given: Any) -> None:
    """Try this machine and this installation; say what is missing.

    And how to mend it. It starts the helper and short jobs of its own. The exit code is 1 when something is missing.
    """
    from telehandler.check import machine
    from telehandler.check import security as properties

    settings = options.settings(given)
    pairs = {"client": (settings["cert"], settings["key"]), "server": (given["server_cert"], given["server_key"])}
    target = machine.Target(settings["server"], pairs, settings["root"], given["cgroup_root"], given["helper_policy"])
    findings = machine.run(target, properties.security if security else machine.machine)
    judged = [finding for finding in findings if finding.ok is not None]
    held = sum(bool(finding.ok) for finding in judged)
    if output == "json":
        print(json.dumps({"schema": SCHEMA, "held": held, "judged": len(judged)}
                         | {"findings": [finding._asdict() for finding in findings]}))  # fmt: skip
    else:
        for finding in findings:
            print(f"{_WORDS[finding.ok]:<9} {finding.name:<13} {printable(finding.text)}")
            if finding.ok is False and finding.remedy:
                print(f"{'':<24}{printable(finding.remedy)}")
        print(f"{held} of {len(judged)} hold")
    context.exit(0 if held == len(judged) else EXIT_MISSING)
