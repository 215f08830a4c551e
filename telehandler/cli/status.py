"""`telehandler client status`: what the server knows of a job."""

import json
import shlex
from typing import TYPE_CHECKING, Any

import click

from telehandler.cli import job_names, options
from telehandler.cli.terminal import printable

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration

    from telehandler.pb import telehandler_pb2 as pb

SCHEMA = 1
_ON_FAILURE = 2  # RESTART_POLICY_ON_FAILURE
_SHOWN_WHEN_SET = (
    "given_name",
    "labels",
    "remove_after",
    "restart",
    "restarts",
    "restart_of",
    "next_run",
    "restart_time",
)


@click.command()
@options.connection
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
@click.argument("job", required=False)
def command(output: str, job: str | None, **given: Any) -> None:
    """Show a job's state, exit code, times and byte counts.

    JOB is a job's --name, its whole name or UUID, or as much of that as is unique; without it, the one of the
    jidfile.
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
    shown["labels"] = " ".join(f"{key}={value}" if value else key for key, value in shown["labels"].items())
    for key, value in shown.items():
        if key in _SHOWN_WHEN_SET and value in ("", 0, "no", None):
            continue
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
        "given_name": status.given_name or None,
        "labels": dict(sorted(status.labels.items())),
        "stop_signal": status.stop_signal or None,
        "stop_timeout": _seconds(status.stop_grace) if status.HasField("stop_grace") else None,
        "remove_after": _seconds(status.remove_after) if status.HasField("remove_after") else None,
        "restart": _restart(status),
        "restarts": status.restarts,
        "restart_of": status.restart_of or None,
        "next_run": status.next_run or None,
        "restart_time": answers.time_text(status.restart_time) if status.HasField("restart_time") else None,
    }


def _restart(status: "pb.JobStatus") -> str:
    """As `run --restart` takes it."""
    if status.restart_policy != _ON_FAILURE:
        return "no"
    return f"on-failure:{status.max_restarts}" if status.max_restarts else "on-failure"


def _seconds(duration: "Duration") -> float:
    return duration.seconds + duration.nanos / 1e9
