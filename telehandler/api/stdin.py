"""WriteStdin: a job's input from its writer to the job, a request at a time.

The next request is read once the job's pipe or terminal has all of the last one. So what a writer is ahead of its job
waits at the client, behind gRPC's flow control, and no more than one request is held here for each.
"""

import asyncio
from contextlib import suppress

import grpc
import grpc.aio

from telehandler.api import validation
from telehandler.api.auth import Caller
from telehandler.api.responses import Context
from telehandler.api.shares import Shares
from telehandler.api.validation import Refusal
from telehandler.common import bounds
from telehandler.jobs.job import Job
from telehandler.jobs.stdin import Stdin, TakenOver, Turn
from telehandler.pb import telehandler_pb2 as pb

_INVALID, _PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
_ENDED = "the job has ended"


async def serve(job: Job, first: pb.WriteStdinRequest, caller: Caller, context: Context, shares: Shares) -> None:
    """A whole call, whose first request names the job."""
    length = bounds.STDIN_WRITER_BYTES
    if len(first.writer) != length or first.data or first.end or first.offset or first.HasField("size"):
        text = f"the first request has a writer of {length} bytes and nothing of the input"
        raise Refusal(_INVALID, text)
    if not job.takes_input:
        raise Refusal(_PRECONDITION, "the job takes no input: it was started without stdin (-i) and terminal (-t)")
    stdin = job.stdin
    if stdin is None or stdin.closed:
        raise Refusal(_PRECONDITION, _ENDED)
    with suppress(TakenOver):
        turn = stdin.take(first.writer, first.resume)
        work = asyncio.ensure_future(_take_input(stdin, turn, caller, context, shares))
        over = asyncio.ensure_future(turn.over.wait())
        try:
            await asyncio.wait((work, over), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
        finally:
            work.cancel()
            over.cancel()
    if stdin.closed:
        raise Refusal(_PRECONDITION, _ENDED)
    raise Refusal(grpc.StatusCode.ABORTED, "another client writes to the job now")


async def _take_input(stdin: Stdin, turn: Turn, caller: Caller, context: Context, shares: Shares) -> None:
    """Until the client, the input or the job ends. Raises TakenOver, Refusal, OSError, HelperUnavailable."""
    if stdin.ended:  # again, for an answer that did not come
        await stdin.end()
    await context.write(_response(stdin, stdin.unknown))
    while not stdin.ended and (body := await context.read()) is not grpc.aio.EOF:
        request = validation.parse(pb.WriteStdinRequest, body)
        _check(request, stdin)
        with shares.held(caller.name, len(request.data)):
            await stdin.put(turn, request.data, request.offset)
        if request.HasField("size"):
            stdin.resize(*validation.terminal_size(request.size))
        if request.end:
            await stdin.end()
        await context.write(_response(stdin))


def _check(request: pb.WriteStdinRequest, stdin: Stdin) -> None:
    """Raises Refusal before anything of the request is done."""
    if request.name or request.writer or request.resume:
        raise Refusal(_INVALID, "only the first request of a call names the job and its writer")
    if len(request.data) > bounds.MAX_STDIN_BYTES:
        raise Refusal(_INVALID, f"at most {bounds.MAX_STDIN_BYTES >> 10} KiB of data in one request")
    if request.end and stdin.terminal:
        raise Refusal(_INVALID, "a terminal has no end: the key for it is Ctrl-D, as a byte of data")
    if request.HasField("size"):
        if not stdin.terminal:
            raise Refusal(_INVALID, "a size is of a terminal, and the job has none")
        validation.terminal_size(request.size)
    if (request.data or request.end) and request.offset > stdin.offset:
        text = f"offset {request.offset} is beyond byte {stdin.offset}, up to which the input was taken"
        raise Refusal(grpc.StatusCode.OUT_OF_RANGE, text)


def _response(stdin: Stdin, unknown_bytes: int = 0) -> bytes:
    message = pb.WriteStdinResponse(offset=stdin.offset, ended=stdin.ended, unknown_bytes=unknown_bytes)
    return message.SerializeToString()
