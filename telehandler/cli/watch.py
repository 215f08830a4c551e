"""`telehandler client watch`: a job's output, from its first byte or from where one likes."""

import hashlib
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from telehandler.cli import job_names, options, parse, terminal
from telehandler.cli.run import watch, write
from telehandler.client import answers
from telehandler.common.errors import EXIT_INTERRUPTED, EXIT_OURS, TelehandlerError

if TYPE_CHECKING:
    from telehandler.client.connection import Client
    from telehandler.pb import telehandler_pb2 as pb

_STDERR = 2


@click.command()
@options.connection
@click.option("-f/-F", "--follow/--no-follow", default=True, help="Go on to the job's end, or end with what is there.")
@click.option("--offset", type=click.IntRange(0, (1 << 64) - 1), help="Begin at this byte, counted over both streams.")
@click.option("-n", "--tail", type=click.IntRange(0, 1_000_000), metavar="N", help="Begin with the last N lines.")
@click.option("--since", metavar="TIME", help="Only what came since: 2026-01-31T12:00:00Z, or 10m for ten minutes ago.")
@click.option("--until", metavar="TIME", help="Only what came before.")
@click.option("--stream", type=click.Choice(["stdout", "stderr"]), help="Only this one.")
@click.option("-t", "--timestamps", is_flag=True, help="Begin each line with the time it came.")
@click.option("--raw", is_flag=True, help="Both streams to stdout, in the order they came.")
@click.option("--verify", is_flag=True, help="Compare what came with the server's SHA-256, at the job's end.")
@click.argument("job", required=False)
@click.pass_context
def command(context: click.Context, /, job: str | None, **given: Any) -> None:
    """Print a job's output from the first byte, to its end.

    JOB is a job's --name, its whole name or UUID, or as much of that as is unique; without it, the one of the
    jidfile. Ctrl-C detaches; the job is untouched. The exit code is the job's own, as of run.
    """
    settings = options.settings(given)
    parts = [name for name in ("offset", "tail", "since", "until", "stream") if given[name] is not None]
    if given["verify"] and (parts or not given["follow"]):
        raise TelehandlerError("--verify needs all of the output: it goes without --offset, --tail, --stream and so on")
    times = {name: _time_ns(given[name], f"--{name}") for name in ("since", "until") if given[name] is not None}
    client = job_names.connect(settings)
    name = job_names.find(job, settings, client)
    from telehandler.pb import telehandler_pb2 as pb

    request = pb.WatchJobOutputRequest(
        name=name,
        offset=given["offset"] or 0,
        no_follow=not given["follow"],
        tail_lines=given["tail"],
        stream=f"OUTPUT_STREAM_{given['stream'].upper()}" if given["stream"] else None,
        exact_times=given["timestamps"],
    )
    for field, time_ns in times.items():
        getattr(request, field).FromNanoseconds(time_ns)
    terminal.end_with_reader(2 if given["stream"] == "stderr" and not given["raw"] else 1)
    seen = _Seen(given["timestamps"], given["raw"])
    try:
        code = watch(client, request, False, seen.write)
    except KeyboardInterrupt:
        terminal.note(f"detached; the job is untouched: {terminal.come_back(name)}")
        context.exit(EXIT_INTERRUPTED)
    if given["verify"] and not seen.verified(client, name):
        code = EXIT_OURS
    context.exit(code)


class _Seen:
    """What has come: printed, and hashed by stream."""

    def __init__(self, timestamps: bool, raw: bool) -> None:
        self._timestamps, self._raw = timestamps, raw
        self._hashes = {1: hashlib.sha256(), _STDERR: hashlib.sha256()}
        self._at_line_start = {1: True, _STDERR: True}

    def write(self, output: "pb.JobOutput") -> None:
        if output.gap_bytes:
            return
        self._hashes[output.stream].update(output.data)
        data = self._stamped(output) if self._timestamps else output.data
        if self._raw:
            terminal.write(False, data)
        else:
            write(type(output)(stream=output.stream, data=data))

    def _stamped(self, output: "pb.JobOutput") -> bytes:
        stamp = answers.time_text(output.time).encode() + b" "
        lines = output.data.split(b"\n")
        marked = [stamp + line if line or number + 1 < len(lines) else line for number, line in enumerate(lines)]
        if not self._at_line_start[output.stream]:
            marked[0] = lines[0]
        self._at_line_start[output.stream] = output.data.endswith(b"\n")
        return b"\n".join(marked)

    def verified(self, client: "Client", name: str) -> bool:
        status = client.status(name)
        if not status.stdout_sha256:
            terminal.note("not verified: the server has no digest of this output")
            return False
        same = [self._hashes[1].digest(), self._hashes[_STDERR].digest()] == [
            status.stdout_sha256,
            status.stderr_sha256,
        ]
        terminal.note("verified: SHA-256 of both streams is the server's" if same else "NOT what the server has")
        sys.stdout.flush()
        return same


def _time_ns(text: str, flag: str) -> int:
    """Nanoseconds since the epoch, of an RFC 3339 time or of an age such as 10m."""
    try:
        seconds = datetime.fromisoformat(text).astimezone(UTC).timestamp()
    except (ValueError, OverflowError):
        try:
            seconds = datetime.now(UTC).timestamp() - parse.duration_ms(text, flag) / 1000
        except TelehandlerError:
            raise TelehandlerError(f"{flag} {text!r} is neither 2026-01-31T12:00:00Z nor an age such as 10m") from None
    return int(max(seconds, 0) * 1e9)
