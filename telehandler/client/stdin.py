"""A job's input as its client has it: what the server has not taken is kept, and sent again on a new connection."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from telehandler.client.retries import Retries
from telehandler.common import bounds
from telehandler.common.errors import ServerUnavailable, TelehandlerError
from telehandler.pb import telehandler_pb2 as pb

WINDOW_BYTES = 4 << 20  # that are kept, and under way, at most
_JOINED_BYTES = 1 << 14  # pieces that wait are sent as one, up to so much
_ENDED = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND)  # who watches the job is told how


class Stdin:
    """One writer. `write`, `end` and `resize` from any thread but that of `run`, which makes the calls."""

    def __init__(
        self,
        name: str,
        method: Any,
        error_of: Callable[[Any], TelehandlerError],
        note: Callable[[str], None],
        goes_on: bool,
    ) -> None:
        """`goes_on`: bytes of which nobody knows are a note, as to somebody who types; else they are an error."""
        self._name, self._method, self._error_of, self._note, self._goes_on = name, method, error_of, note, goes_on
        self._writer = os.urandom(bounds.STDIN_WRITER_BYTES)
        self._changed = threading.Condition()
        self._pieces: deque[bytes] = deque()  # that the server has not taken, each one request
        self._kept = 0  # their bytes
        self._base = 0  # the offset of the first of them
        self._size: tuple[int, int] | None = None
        self._end = False
        self._over = False  # nothing more is wanted
        # Of the call that is under way:
        self._number = self._sent = 0  # which one it is; of the pieces, how many are sent
        self._next_offset = 0  # of what is sent next
        self._ready = self._end_sent = self._size_sent = False

    def write(self, data: bytes) -> bool:
        """Takes more of the input; waits while WINDOW_BYTES are kept. Whether the job may want still more."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._kept < WINDOW_BYTES)
            for at in range(0, len(data), bounds.MAX_STDIN_BYTES):
                piece = data[at : at + bounds.MAX_STDIN_BYTES]
                if self._sent < len(self._pieces) and len(self._pieces[-1]) + len(piece) <= _JOINED_BYTES:
                    self._pieces[-1] += piece
                else:
                    self._pieces.append(piece)
            self._kept += len(data)
            self._changed.notify_all()
            return not self._over

    def end(self) -> None:
        """No more comes."""
        with self._changed:
            self._end = True
            self._changed.notify_all()

    def resize(self, rows: int, columns: int) -> None:
        """Of the job's terminal."""
        with self._changed:
            self._size, self._size_sent = (rows, columns), False
            self._changed.notify_all()

    def run(self) -> None:
        """Sends what comes, until the input or the job has ended. Raises TelehandlerError for what cannot be given."""
        retries, resume = Retries(lambda _: None, connected=True), False
        try:
            while True:
                try:
                    for response in self._call(resume):
                        self._take(response, resume)
                        resume = True
                        retries.progress()
                    return
                except grpc.RpcError as error:
                    code = getattr(error, "code", lambda: None)()
                    failure = self._error_of(error)
                    if code in _ENDED:
                        return
                    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:  # it passes, and nothing is lost meanwhile
                        again = ServerUnavailable(str(failure))
                        again.sent, failure = True, again
                    if not isinstance(failure, ServerUnavailable):
                        raise failure from None
                    retries.wait(failure, "")
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _call(self, resume: bool) -> Iterator[pb.WriteStdinResponse]:
        with self._changed:
            self._number += 1
            self._sent, self._ready, self._end_sent, self._size_sent = 0, False, False, False
        try:
            yield from self._method(self._requests(self._number, resume))
        finally:
            with self._changed:
                self._number += 1  # gRPC's thread leaves the requests of this call
                self._changed.notify_all()

    def _requests(self, number: int, resume: bool) -> Iterator[pb.WriteStdinRequest]:
        """Of one call; run by a thread of gRPC's."""
        yield pb.WriteStdinRequest(name=self._name, writer=self._writer, resume=resume)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._number != number or self._something())
                if self._number != number or self._over:
                    return
                request = self._next()
            yield request

    def _something(self) -> bool:
        waits = self._sent < len(self._pieces) or (self._end and not self._end_sent)
        return self._over or (self._ready and (waits or bool(self._size and not self._size_sent)))

    def _next(self) -> pb.WriteStdinRequest:
        if self._size and not self._size_sent:
            self._size_sent = True
            return pb.WriteStdinRequest(size=pb.TerminalSize(rows=self._size[0], columns=self._size[1]))
        offset = self._next_offset
        if self._sent == len(self._pieces):
            self._end_sent = True
            return pb.WriteStdinRequest(offset=offset, end=True)
        piece = self._pieces[self._sent]
        self._sent += 1
        self._next_offset += len(piece)
        return pb.WriteStdinRequest(offset=offset, data=piece)

    def _take(self, response: pb.WriteStdinResponse, resume: bool) -> None:
        """What the server has: it is kept no longer."""
        with self._changed:
            first, self._ready = not self._ready, True
            if first and not resume:
                self._base = response.offset
            if not self._base <= response.offset <= self._base + self._kept:
                raise TelehandlerError(f"the server says that the input is at byte {response.offset}, which cannot be")
            taken = response.offset - self._base
            while self._pieces and taken >= len(self._pieces[0]):
                taken -= len(self._pieces.popleft())
                self._sent -= 1
            if taken:
                self._pieces[0] = self._pieces[0][taken:]
            self._kept -= response.offset - self._base
            self._base = response.offset
            if first:
                self._sent, self._next_offset = 0, self._base
            self._over = self._over or response.ended
            self._changed.notify_all()
        if response.unknown_bytes:
            self._tell_unknown(response)

    def _tell_unknown(self, response: pb.WriteStdinResponse) -> None:
        text = (
            f"the server was killed while it wrote bytes {response.offset - response.unknown_bytes} to "
            f"{response.offset} of the input: nobody knows whether the job got them"
        )
        if not self._goes_on:
            raise TelehandlerError(text)
        self._note(text)
