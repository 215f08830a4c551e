"""What clients are answered: a job's status, how it ended, and errors as status codes."""

import os
import sqlite3
import sys
import traceback
from typing import Any

import grpc
import grpc.aio

from helper.wire import Stage
from telehandler.api.validation import Refusal
from telehandler.common import capacity
from telehandler.common.errors import Exhausted, HelperRefused, NameTaken, RequestReused, ServerEnding, TelehandlerError
from telehandler.common.states import Reason, State
from telehandler.jobs import restarts
from telehandler.jobs.job import Job
from telehandler.jobs.records import name_of
from telehandler.pb import telehandler_pb2 as pb

_CODES = {
    Stage.REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    Stage.POLICY: grpc.StatusCode.INVALID_ARGUMENT,
    Stage.CAPACITY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Stage.NO_SUCH_JOB: grpc.StatusCode.FAILED_PRECONDITION,
}
Context = grpc.aio.ServicerContext[Any, Any]


async def abort(context: Context, error: Exception) -> None:
    """Ends a call with the status of an error."""
    if isinstance(error, TimeoutError):
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the server did not get it done in time: ask again")
    if isinstance(error, Refusal):
        await context.abort(error.code, str(error))
    if isinstance(error, HelperRefused):
        code = _CODES.get(Stage(error.stage), grpc.StatusCode.FAILED_PRECONDITION)
        text = str(error)
        if error.errno in capacity.ERRORS and error.stage != Stage.CAPACITY:
            code, text = grpc.StatusCode.RESOURCE_EXHAUSTED, f"the helper cannot start a job now: {error}"
        stage = Stage(error.stage).name.lower()
        await context.abort(code, text, (("telehandler-stage", stage), ("telehandler-errno", str(error.errno))))
    if isinstance(error, ServerEnding):
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
    if isinstance(error, RequestReused | NameTaken):
        await context.abort(grpc.StatusCode.ALREADY_EXISTS, str(error))
    if isinstance(error, Exhausted):
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
    if isinstance(error, TelehandlerError):
        await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
    if isinstance(error, OSError) and error.errno in capacity.ERRORS:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"not now: {os.strerror(error.errno)}")
    if isinstance(error, sqlite3.OperationalError):  # its text is sqlite's own
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"the server's records take no more: {error}")
    # Unforeseen. Its text may hold paths or what a user sent: the log gets only its place, the client nothing.
    frame = traceback.extract_tb(error.__traceback__)[-1]
    print(f"telehandler: {type(error).__name__} at {frame.filename}:{frame.lineno}", file=sys.stderr, flush=True)
    await context.abort(grpc.StatusCode.INTERNAL, "an internal error: the server's log has it")


def state(job: Job) -> str:
    return pb.JobState.Name(job.record.state)


def _exit_code(job: Job) -> int:
    """Of a job that was lost nobody knows it, and nobody may take it for a success."""
    return -1 if job.record.reason is Reason.LOST else job.record.exit_code


def end_metadata(job: Job) -> tuple[tuple[str, str], ...]:
    record = job.record
    return (
        ("telehandler-state", record.state.name.lower()),
        ("telehandler-reason", record.reason.name.lower()),
        ("telehandler-exit-code", str(_exit_code(job))),
        ("telehandler-signal", str(record.signal)),
        ("telehandler-detail", record.extra.get("log_error", "")),
    )


def detail(job: Job) -> str:
    """What else there is to say of a job's output and restarts."""
    return "; ".join(filter(None, (job.record.extra.get(key) for key in ("log_error", restarts.ERROR))))


def status(job: Job) -> pb.JobStatus:
    record = job.record
    answer = pb.JobStatus(
        name=record.name,
        state=state(job),
        exit_code=_exit_code(job),
        owner=record.owner,
        argv=record.argv,
        reason=pb.JobReason.Name(record.reason),
        signal=record.signal,
        stdout_bytes=record.stdout_bytes,
        stderr_bytes=record.stderr_bytes,
        job_uid=record.job_uid,
        cpu_usec=record.cpu_usec,
        memory_peak_bytes=record.memory_peak_bytes,
        stdout_sha256=bytes.fromhex(record.stdout_sha256),
        stderr_sha256=bytes.fromhex(record.stderr_sha256),
        exec_in_job=name_of(record.owner, record.exec_in) if record.exec_in else "",
        dropped_bytes=job.log.floor if job.log else record.dropped_bytes,
        given_name=record.given_name,
        labels=record.labels,
        restart_policy=pb.RESTART_POLICY_NO if record.max_restarts is None else pb.RESTART_POLICY_ON_FAILURE,
        max_restarts=record.max_restarts or 0,
        stop_signal=record.stop_signal,
        restart_of=name_of(record.owner, record.restart_of) if record.restart_of else "",
        restarts=record.restarts,
        next_run=name_of(record.owner, record.next_run) if record.next_run else "",
        stdin="stdin" in record.extra,
        terminal="terminal" in record.extra,
    )
    answer.stop_grace.FromMilliseconds(record.stop_grace_ms)
    if record.remove_after_ms is not None:
        answer.remove_after.FromMilliseconds(record.remove_after_ms)
    if record.restart_ns:
        answer.restart_time.FromNanoseconds(record.restart_ns)
    if job.log:
        answer.stdout_bytes, answer.stderr_bytes = job.log.sizes.values()
    answer.start_time.FromNanoseconds(record.start_ns)
    if record.state is not State.RUNNING:
        answer.end_time.FromNanoseconds(record.end_ns)
    return answer
