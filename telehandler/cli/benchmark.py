"""`telehandler client benchmark`: many watchers of one job, their rates, and whether all saw the same."""

import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from telehandler.cli import job_names, options, terminal
from telehandler.client import answers
from telehandler.common.errors import TelehandlerError

if TYPE_CHECKING:
    from telehandler.client.connection import Client

EXIT_FAILED = 1  # the job, or the comparison
MAX_WATCHERS = 10_000
_CELL = 14  # "00  1234.5  ", and some


@click.command(context_settings=options.JOB_COMMAND)
@options.connection
@click.option("--watchers", type=click.IntRange(1, MAX_WATCHERS), default=100, show_default=True, help="How many.")
@click.option("--processes", type=click.IntRange(1), metavar="N", help="Client processes; default: one for each cpu.")
@click.option("--discard", is_flag=True, help="Only count and hash, write no files.")
@click.option("-o", "--output", default=".", show_default=True, metavar="DIR", help="Where out-00 and on are written.")
@click.option("--zstd/--no-zstd", default=True, show_default=True, help="Let the server compress the output.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="COMMAND [ARG]...")
@click.pass_context
def command(
    context: click.Context,
    /,
    watchers: int,
    processes: int | None,
    discard: bool,
    output: str,
    zstd: bool,
    command: tuple[str, ...],
    **given: Any,
) -> None:
    """Run a job, watch it many times at once, compare the outputs.

    Each watcher has a connection of its own and writes all output to a file, over one of that name. The digests are
    compared with the server's. The exit code is 0 when the job succeeded and every watcher got everything, else 1.
    """
    settings = options.settings(given)
    options.check_command(command, context)
    from telehandler.client import benchmark

    paths: Sequence[Path | None] = [None] * watchers if discard else benchmark.output_paths(Path(output), watchers)
    client = job_names.connect(settings)
    from telehandler.pb import telehandler_pb2 as pb

    message = pb.StartJobRequest(argv=[os.fsencode(argument) for argument in command])
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: the job is stopped
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    name = client.start(message, terminal.note)
    processes = min(processes or os.cpu_count() or 1, watchers)
    try:
        results = benchmark.watch(settings, name, zstd, paths, processes, Progress(watchers).show)
    finally:
        _stop(client, name)
    status = client.status(name)
    faults = benchmark.faults(results, status)
    print("\n".join(benchmark.summary(results)))
    for fault in faults:
        terminal.note(fault)
    if not faults:
        print(f"all {watchers} watchers got what the server has")
    failed = status.state != pb.JOB_STATE_COMPLETED
    if failed:
        code = answers.exit_code(status)
        terminal.note(
            f"the job did not succeed: {answers.reason_name(status)}, exit code {'-' if code is None else code}"
        )
    context.exit(EXIT_FAILED if faults or failed else 0)


def _stop(client: "Client", name: str) -> None:
    """The job is ours alone: nobody needs what is left of it when the watchers have gone."""
    try:
        client.stop(name, 15, 0)
    except TelehandlerError as error:
        terminal.note(f"the job {name} cannot be stopped: {error}")


class Progress:
    """The rates of the last second: on a terminal a table that is drawn over itself, else a line for each second."""

    def __init__(self, watchers: int) -> None:
        self._last = [0] * watchers
        self._seconds = 0.0
        self._terminal = sys.stderr.isatty()
        self._lines = 0  # of the table that is on the terminal now

    def show(self, seconds: float, counts: list[int]) -> None:
        period = (seconds - self._seconds) * (1 << 20)
        rates = [(now - before) / period for now, before in zip(counts, self._last, strict=True)]
        self._last, self._seconds = counts, seconds
        head = f"{seconds:.0f} s: {sum(rates):.1f} MiB/s in all"
        if not self._terminal:
            print(f"{head}; each {' '.join(f'{rate:.1f}' for rate in rates)}", file=sys.stderr, flush=True)
            return
        lines = [head, *_table(rates, shutil.get_terminal_size())]
        up = f"\033[{self._lines}F" if self._lines else ""
        print(up + "".join(f"\033[K{line}\n" for line in lines) + "\033[J", end="", file=sys.stderr, flush=True)
        self._lines = len(lines)


def _table(rates: list[float], size: os.terminal_size) -> list[str]:
    """As many cells a line as fit, as many lines as fit below one another; the last line says what did not."""
    columns = max(1, (size.columns - 1) // _CELL)
    rows = max(1, size.lines - 3)
    cells = [f"{number:02} {rate:8.1f}".ljust(_CELL) for number, rate in enumerate(rates)]
    lines = ["".join(cells[first : first + columns]).rstrip() for first in range(0, len(cells), columns)]
    hidden = len(cells) - rows * columns
    return [*lines[:rows], f"and {hidden} more"] if hidden > 0 else lines
