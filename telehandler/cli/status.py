"""`telehandler client status`: what the server knows of a job."""

import json
import shlex
from typing import TYPE_CHECKING, Any

import click

from telehandler.cli import job_names, options
from telehandler.cli.terminal import printable

if TYPE_CHECKING:
    from telehandler.pb import telehandler_pb2 as pb

SCHEMA = 1


@click.command()
@options.connection
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
@click.argument("job", required=False)
def command(output: str, job: str | None, **given: Any) -> None:
    """Show a job's state, exit code, times and byte counts.

    JOB is a job's name, its UUID, or as much of that as is unique; without it, the one of the jidfile.
    """
    settings = options.settings(given)
    client = job_names.connect(settings)
    shown = fields(client.status(job_names.find(job, settings, client)))
    if client.detail:
        shown["detail"] = client.detail
    if output == "json":
        print(json.dumps({"schema": SCHEMA} | shown))
        return
    shown["command"] = shlex.join(shown["command"])
    for key, value in shown.items():
        print(f"{key.replace('_', ' '):<18} {'-' if value is None else printable(str(value))}")


def fields(status: "pb.JobStatus") -> dict[str, Any]:
    """What status and ls show of a job, in the words of `-o json`."""
    from telehandler.client import answers

    ended = status.HasField("end_time")
    return {
        "name": status.name,
        "state": answers.state_name(status),
        "reason": answers.reason_name(status),
        "exit_code": answers.exit_code(status),
        "signal": status.signal or None,
        "owner": status.owner,
        "command": [argument.decode("utf-8", "backslashreplace") for argument in status.argv],
        "start_time": answers.time_text(status.start_time),
        "end_time": answers.time_text(status.end_time) if ended else None,
        "stdout_bytes": status.stdout_bytes,
        "stderr_bytes": status.stderr_bytes,
        "stdout_sha256": status.stdout_sha256.hex() or None,
        "stderr_sha256": status.stderr_sha256.hex() or None,
        "dropped_bytes": status.dropped_bytes,
        "job_uid": status.job_uid,
        "cpu_usec": status.cpu_usec,
        "memory_peak_bytes": status.memory_peak_bytes,
        "exec_in": status.exec_in_job or None,
    }
