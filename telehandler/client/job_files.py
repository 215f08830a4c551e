"""A `tar`, or another small program, that runs in a job for `cp`: nothing of it is left on the server."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from telehandler.client.answers import STDOUT, End
from telehandler.common.errors import EXIT_NOT_FOUND, TelehandlerError

if TYPE_CHECKING:
    from telehandler.client.connection import Client
    from telehandler.client.stdin import Stdin

_UNREAD = timedelta(seconds=60)  # the server removes it so long after its end, when we cannot
_MAX_SAID_BYTES = 4096


class InJob:
    """A program in a job, as a context manager that kills and removes it. `said`: the end of its stderr."""

    def __init__(
        self, client: "Client", job: str, argv: Sequence[bytes], note: Callable[[str], None], stdin: bool = False
    ) -> None:
        from telehandler.pb import telehandler_pb2 as pb

        self._client, self._job, self._note, self._program = client, job, note, argv[0].decode()
        request = pb.StartJobRequest(exec_in_job=job, argv=argv, working_directory="/", stdin=stdin)
        request.env["LC_ALL"] = b"C"  # its words are looked at
        request.remove_after.FromTimedelta(_UNREAD)
        self.said, self._ended, self._hash = b"", list[End](), hashlib.sha256()
        try:
            self.name = client.start(request, note)
        except TelehandlerError as error:
            if error.exit_code == EXIT_NOT_FOUND:
                text = f"the job has no `{self._program}` in its PATH, which cp needs there: {error}"
                raise TelehandlerError(text) from None
            raise

    def __enter__(self) -> "InJob":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._client.delete(self.name, True)
        except TelehandlerError as error:
            self._note(f"`{self._program}` in the job is not removed: {error}; `client rm -f {self.name}` removes it")

    def stdout(self) -> Iterator[bytes]:
        """To its end, compared with the server's SHA-256. Raises TelehandlerError when a byte is missing."""
        from telehandler.pb import telehandler_pb2 as pb

        request = pb.WatchJobOutputRequest(name=self.name)
        for output in self._client.watch(request, True, self._ended, self._note):
            if output.gap_bytes:
                raise TelehandlerError(f"{output.gap_bytes} bytes of what the job sent were not kept")
            if output.stream == STDOUT:
                self._hash.update(output.data)
                yield output.data
            else:
                self.said = (self.said + output.data)[-_MAX_SAID_BYTES:]
        if not self._ended:
            raise TelehandlerError("the server ended the stream before the copy had ended")
        if self._ended[0].detail:
            raise TelehandlerError(f"not all of what the job sent was kept: {self._ended[0].detail}")
        digest = self._client.status(self.name).stdout_sha256
        if digest and digest != self._hash.digest():
            raise TelehandlerError("what came is not what the job sent: the SHA-256 differs; copy it again")

    def send(self, pieces: Iterator[bytes]) -> None:
        """All of `pieces` as its input, and then its end. Raises TelehandlerError."""
        failures: list[BaseException] = []
        stdin: Stdin = self._client.stdin(self.name, self._note)

        def guarded(work: Callable[[], object]) -> None:
            try:
                work()
            except BaseException as error:
                failures.append(error)

        threads = [
            threading.Thread(target=guarded, args=(work,), daemon=True)
            for work in (stdin.run, lambda: list(self.stdout()))
        ]
        for thread in threads:
            thread.start()
        for piece in pieces:
            if not stdin.write(piece):
                break
        else:
            stdin.end()
        for thread in threads:
            thread.join()
        for failure in failures:
            raise failure

    def has_ended(self) -> bool:
        """Whether its exit code is known."""
        return bool(self._ended)

    def code(self) -> int:
        """Its exit code. Raises TelehandlerError when it was killed, as by the job's own end."""
        end = self._ended[0]
        if end.exit_code is None or end.signal:
            if self._client.status(self._job).HasField("end_time"):
                raise TelehandlerError("the job ended before the copy did")
            why = end.reason if end.reason not in ("", "signal") else f"signal {end.signal}"
            raise TelehandlerError(f"`{self._program}` in the job was ended: {why}")
        return end.exit_code

    def complaint(self) -> str:
        """What it said last, and what helps."""
        lines = [line for line in self.said.decode("utf-8", "backslashreplace").splitlines() if line]
        lines = [line for line in lines if "previous errors" not in line and "not recoverable" not in line] or lines
        text = lines[0] if lines else f"`{self._program}` failed and said nothing"
        if "No space left" in text or "Wrote only" in text:
            text += " (no room is left there: a job's /tmp and home are as large as its --tmp-size)"
        return text


def run(client: "Client", job: str, argv: Sequence[bytes], note: Callable[[str], None]) -> int:
    """The exit code of a small program in the job."""
    with InJob(client, job, argv, note) as program:
        for _ in program.stdout():
            pass
        return program.code()
