"""`client benchmark`: one job, many watchers in a few processes, what each got compared with what the server has.

The processes are telehandler/client/benchmark_process.py. This one starts them, shows how far they are, and judges.
"""

import json
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from telehandler.client.benchmark_process import COUNTER
from telehandler.common.errors import TelehandlerError

if TYPE_CHECKING:
    from telehandler.pb import telehandler_pb2 as pb

MIB = 1 << 20
PERIOD_S = 1.0


@dataclass
class Result:
    """What one watcher saw. `error` is empty when it saw the end."""

    number: int
    bytes: int = 0
    began: float = 0.0
    ended: float = 0.0
    stdout_sha256: str = ""
    stderr_sha256: str = ""
    error: str = "its process died"

    @property
    def rate(self) -> float:
        """Bytes a second over its whole time."""
        return self.bytes / (self.ended - self.began) if self.ended > self.began else 0.0


def watch(
    settings: dict[str, str],
    name: str,
    zstd: bool,
    paths: Sequence[Path | None],
    processes: int,
    show: Callable[[float, list[int]], None],
) -> list[Result]:
    """Watches a job to its end, once for each path; `show` gets the seconds and each one's bytes, each second."""
    watchers = _Watchers(settings, name, zstd, paths, processes)
    try:
        return watchers.run(show)
    finally:
        watchers.close()


class _Watchers:
    """The watchers of one job, in `processes` processes. `close` ends what has not ended."""

    def __init__(
        self, settings: dict[str, str], name: str, zstd: bool, paths: Sequence[Path | None], processes: int
    ) -> None:
        self._results = [Result(number) for number in range(len(paths))]
        self._processes: list[subprocess.Popen[bytes]] = []
        fd = os.memfd_create("telehandler-benchmark")
        os.truncate(fd, len(paths) * COUNTER.size)
        self._counters = mmap.mmap(fd, 0)
        spec: dict[str, Any] = {key: settings[key] for key in ("server", "cert", "key", "root")}
        spec |= {"name": name, "zstd": zstd, "counters_fd": fd}
        numbered = [(number, str(path) if path else None) for number, path in enumerate(paths)]
        for first in range(processes):
            self._processes.append(_start(spec | {"watchers": numbered[first::processes]}, fd))
        os.close(fd)
        self._readers = [threading.Thread(target=self._read, args=(_stdout(p),), daemon=True) for p in self._processes]

    def run(self, show: Callable[[float, list[int]], None]) -> list[Result]:
        """Starts all of them at once, when all are ready."""
        for process in self._processes:
            _stdout(process).readline()  # it is ready, or dead
        for process in self._processes:
            _tell(process, b"\n")
        for reader in self._readers:
            reader.start()
        began, ticks = time.monotonic(), 1
        for reader in self._readers:
            while reader.is_alive():
                reader.join(max(0.0, began + ticks * PERIOD_S - time.monotonic()))
                if time.monotonic() >= began + ticks * PERIOD_S:
                    show(ticks * PERIOD_S, self._counts())
                    ticks += 1
        for result, count in zip(self._results, self._counts(), strict=True):
            result.bytes = count
        return self._results

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    with suppress(BrokenPipeError):  # what it was not told before it died
                        pipe.close()

    def _counts(self) -> list[int]:
        return [count for (count,) in COUNTER.iter_unpack(self._counters)]

    def _read(self, lines: IO[bytes]) -> None:
        for line in lines:
            try:
                result = Result(**json.loads(line))
            except ValueError:
                return  # cut short: its process was killed
            self._results[result.number] = result


def _start(spec: dict[str, Any], fd: int) -> "subprocess.Popen[bytes]":
    code = f"import sys; sys.path[:] = {sys.path!r}; from telehandler.client.benchmark_process import main; main()"
    # Its own process group: a terminal's Ctrl-C is for us, who then end it.
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[fd],
        process_group=0,
    )
    _tell(process, json.dumps(spec).encode() + b"\n")
    return process


def _tell(process: "subprocess.Popen[bytes]", line: bytes) -> None:
    assert process.stdin
    try:
        process.stdin.write(line)
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it died: its watchers' results say so


def _stdout(process: "subprocess.Popen[bytes]") -> IO[bytes]:
    assert process.stdout
    return process.stdout


def output_paths(directory: Path, count: int) -> list[Path]:
    """`out-00` and on, in a directory that must be there. Raises TelehandlerError."""
    if not directory.is_dir() or not os.access(directory, os.W_OK | os.X_OK):
        raise TelehandlerError(f"cannot write files to {directory}: name a directory with -o, or use --discard")
    width = max(2, len(str(count - 1)))
    return [directory / f"out-{number:0{width}}" for number in range(count)]


def faults(results: Sequence[Result], status: "pb.JobStatus") -> list[str]:
    """A line for each difference from what the server has; none when every watcher saw all of it."""
    lines = [f"watcher {result.number:02}: {result.error}" for result in results if result.error]
    size = status.stdout_bytes + status.stderr_bytes
    if len(status.stdout_sha256) == len(status.stderr_sha256) == 0:
        lines.append("the server has no digest of the output to compare with")
    if len({(result.stdout_sha256, result.stderr_sha256) for result in results if not result.error}) > 1:
        lines.append("the watchers' digests differ from each other")
    for result in results:
        if result.error:
            continue
        if result.bytes != size:
            lines.append(f"watcher {result.number:02}: it got {result.bytes} bytes, the server has {size}")
        for stream in ("stdout", "stderr"):
            theirs, ours = getattr(status, f"{stream}_sha256").hex(), getattr(result, f"{stream}_sha256")
            if theirs and theirs != ours:
                lines.append(f"watcher {result.number:02}: the SHA-256 of its {stream} is not the server's")
    return lines


def summary(results: Sequence[Result]) -> list[str]:
    """Each watcher's average, then the total over the time from the first begin to the last end."""
    seen = [result for result in results if not result.error]
    lines = [f"watcher {result.number:02}: {_mib(result.rate)} MiB/s, {_mib(result.bytes)} MiB" for result in seen]
    if not seen:
        return lines
    seconds = max(result.ended for result in seen) - min(result.began for result in seen)
    total = sum(result.bytes for result in seen)
    rates = [result.rate for result in seen]
    average = f"average {_mib(sum(rates) / len(rates))} MiB/s for each of {len(seen)} watchers"
    lines.append(f"{average}, from {_mib(min(rates))} to {_mib(max(rates))}")
    lines.append(f"total {_mib(total / seconds if seconds else 0)} MiB/s: {_mib(total)} MiB in {seconds:.2f} s")
    return lines


def _mib(count: float) -> str:
    return f"{count / MIB:.1f}"
