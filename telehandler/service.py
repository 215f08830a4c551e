"""The RPCs: requests checked and authorised, jobs called, answers made. One handler for each RPC."""

import asyncio
import signal
import sys
import traceback
import uuid as uuids
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.empty_pb2 import Empty

from helper.wire import LIMITS, MAX_COUNT, MAX_SIGNAL, MAX_STRING, Stage
from telehandler import jobs as core
from telehandler import pages, watch
from telehandler.auth import AuthError, Caller, caller_of
from telehandler.bounds import MAX_TAIL_LINES
from telehandler.errors import HelperRefused, TelehandlerError
from telehandler.jobs import Job, Jobs, Request
from telehandler.log import Cap, JobLog, Stream
from telehandler.pb import telehandler_pb2 as pb
from telehandler.states import State
from telehandler.tls import TLS_VERSION

SERVICE = "telehandler.v1.TelehandlerService"
ORIGINAL_SERVICE = "drrev.telehandler.foreman.v1alpha1.ForemanService"
_WATCHING = (("telehandler-watching", "1"),)
_NO_JOB = "no such job, or not yours"
_CODES = {
    Stage.REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    Stage.POLICY: grpc.StatusCode.INVALID_ARGUMENT,
    Stage.CAPACITY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Stage.NO_SUCH_JOB: grpc.StatusCode.FAILED_PRECONDITION,
}
Context = grpc.aio.ServicerContext[Any, Any]


class Refusal(Exception):
    """Ends a call with a status."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class Service:
    """Handlers by RPC name. A handler gets the caller; what has no handler is not served."""

    def __init__(self, jobs: Jobs, admins: frozenset[str], max_calls: int) -> None:
        self._max_calls = max_calls  # of one user, under way at once
        self._chunks = watch.Chunks()
        self._jobs, self._admins = jobs, admins
        self._calls: Counter[str] = Counter()  # under way, by user

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """All RPCs under our name, and under the original's."""
        unary: dict[str, tuple[Any, Callable[[Any, Caller, Context], Awaitable[Any]]]] = {
            "StartJob": (pb.StartJobRequest, self.start_job),
            "StopJob": (pb.StopJobRequest, self.stop_job),
            "ListJobs": (pb.ListJobsRequest, self.list_jobs),
            "DeleteJob": (pb.DeleteJobRequest, self.delete_job),
            "GetJobStatus": (pb.GetJobStatusRequest, self.get_job_status),
            "SignalJob": (pb.SignalJobRequest, self.signal_job),
        }
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(
                self._call(handler),
                request_deserializer=message.FromString,
                response_serializer=lambda answer: answer.SerializeToString(),
            )
            for name, (message, handler) in unary.items()
        }
        # No serialiser: chunks are serialised once for all watchers.
        methods["WatchJobOutput"] = grpc.unary_stream_rpc_method_handler(
            self._call(self.watch_job_output), request_deserializer=pb.WatchJobOutputRequest.FromString
        )
        original = {name: methods[name] for name in ("StartJob", "StopJob", "GetJobStatus", "WatchJobOutput")}
        return [
            grpc.method_handlers_generic_handler(SERVICE, methods),
            grpc.method_handlers_generic_handler(ORIGINAL_SERVICE, original),
        ]

    async def start_job(self, request: pb.StartJobRequest, caller: Caller, context: Context) -> pb.JobResponse:
        owner = request.parent.removeprefix("users/") or caller.name
        if request.parent and not request.parent.startswith("users/"):
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "the parent must be users/{user}, or empty")
        if owner != caller.name:
            raise Refusal(grpc.StatusCode.PERMISSION_DENIED, "a job's parent must be its caller")
        if request.validate_only:
            return pb.JobResponse(sandbox=await self._jobs.check(_request(request, owner)))
        job = await self._jobs.start(_request(request, owner))
        return pb.JobResponse(name=job.record.name, uid=job.record.uuid, state=_state(job))

    async def stop_job(self, request: pb.StopJobRequest, caller: Caller, context: Context) -> Empty:
        job = self._find(request.name, caller)
        number = _signal(request.signal or 15)
        grace = core.DEFAULT_GRACE_S
        if request.HasField("grace"):
            grace = request.grace.seconds + request.grace.nanos / 1e9
        if not 0 <= grace <= core.MAX_GRACE_S:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"the grace must be from 0 to {core.MAX_GRACE_S:.0f} s")
        await self._jobs.stop(job, number, grace)
        return Empty()

    async def list_jobs(self, request: pb.ListJobsRequest, caller: Caller, context: Context) -> pb.ListJobsResponse:
        query = pages.Query(_owner(request.parent, caller), _states(request.states))
        if request.page_size < 0:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "the page size must not be negative")
        size = min(request.page_size or pages.DEFAULT_PAGE_SIZE, pages.MAX_PAGE_SIZE)
        try:
            after = pages.unpack(query, request.page_token) if request.page_token else None
        except ValueError:
            text = "the page token is of no page before of the same list: begin without one"
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, text) from None
        jobs, more = self._jobs.list_jobs(query.owner, query.states, after, size)
        token = pages.pack(query, jobs[-1].record.place) if more else ""
        return pb.ListJobsResponse(jobs=[_status(job) for job in jobs], next_page_token=token)

    async def delete_job(self, request: pb.DeleteJobRequest, caller: Caller, context: Context) -> Empty:
        job = self._find(request.name, caller)
        if not job.ended.is_set():
            if not request.force:
                raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "the job is running: stop it first, or use force")
            await self._jobs.stop(job, signal.SIGKILL, 0)
        await self._jobs.delete(job)
        return Empty()

    async def get_job_status(self, request: pb.GetJobStatusRequest, caller: Caller, context: Context) -> pb.JobStatus:
        job = self._find(request.name, caller)
        if request.wait:
            await job.ended.wait()
        return _status(job)

    async def signal_job(self, request: pb.SignalJobRequest, caller: Caller, context: Context) -> Empty:
        job = self._find(request.name, caller)
        number = _signal(request.signal)
        if job.ended.is_set():
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "the job has ended")
        await self._jobs.signal(job, number)
        return Empty()

    async def watch_job_output(self, request: pb.WatchJobOutputRequest, caller: Caller, context: Context) -> None:
        job = self._find(request.name, caller)
        log = self._jobs.open_log(job)
        self._chunks.watchers += 1
        try:
            wish = await _wish(request, log)
            # At once: the client of a quiet job knows that it watches, and so connects again when it has to.
            await context.send_initial_metadata(_WATCHING)
            async for message in watch.messages(log, self._chunks, wish):
                await context.write(message)
            if log.ended:
                await job.ended.wait()
                context.set_trailing_metadata(_end_metadata(job))
        finally:
            self._chunks.watchers -= 1
            log.release()

    # What every call goes through

    def _caller(self, context: Context) -> Caller:
        properties = context.auth_context()
        certificates = list(properties.get("x509_pem_cert", []))
        if list(properties.get("ssl_tls_version", [])) != [TLS_VERSION] or len(certificates) != 1:
            raise Refusal(grpc.StatusCode.UNAUTHENTICATED, "TLS 1.3 and a client certificate are needed")
        try:
            return caller_of(certificates[0], self._admins)
        except AuthError as error:
            raise Refusal(grpc.StatusCode.UNAUTHENTICATED, str(error)) from None

    def _admit(self, context: Context) -> Caller:
        """The caller, whose call is counted until it ends."""
        caller = self._caller(context)
        if self._calls[caller.name] >= self._max_calls:
            text = f"{self._max_calls} calls of one user are under way: end some, such as watches"
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        self._calls[caller.name] += 1
        context.add_done_callback(lambda _: self._done(caller.name))  # type: ignore[arg-type]  # the stub names a class
        return caller

    def _done(self, user: str) -> None:
        self._calls[user] -= 1
        if not self._calls[user]:
            del self._calls[user]

    def _find(self, name: str, caller: Caller) -> Job:
        """The caller's job, or anybody's for an admin; someone else's and none at all look the same."""
        words = name.split("/")
        if len(words) != 4 or words[0] != "users" or words[2] != "jobs":
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "a job's name is users/{user}/jobs/{uuid}")
        try:
            uuid = str(uuids.UUID(words[3]))
        except ValueError:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "a job's name ends in a UUID") from None
        job = self._jobs.find(uuid) if caller.may_see(words[1]) else None
        if job is None or job.record.owner != words[1]:
            raise Refusal(grpc.StatusCode.NOT_FOUND, _NO_JOB)
        return job

    def _call(self, handler: Callable[[Any, Caller, Context], Awaitable[Any]]) -> Callable[[Any, Context], Any]:
        async def call(request: Any, context: Context) -> Any:
            try:
                return await handler(request, self._admit(context), context)
            except Exception as error:
                await _abort(context, error)

        return call


async def _abort(context: Context, error: Exception) -> None:
    if isinstance(error, Refusal):
        await context.abort(error.code, str(error))
    if isinstance(error, HelperRefused):
        code = _CODES.get(Stage(error.stage), grpc.StatusCode.FAILED_PRECONDITION)
        stage = Stage(error.stage).name.lower()
        await context.abort(code, str(error), (("telehandler-stage", stage), ("telehandler-errno", str(error.errno))))
    if isinstance(error, TelehandlerError):
        await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
    # Unforeseen. Its text may hold paths or what a user sent: the log gets only its place, the client nothing.
    frame = traceback.extract_tb(error.__traceback__)[-1]
    print(f"telehandler: {type(error).__name__} at {frame.filename}:{frame.lineno}", file=sys.stderr, flush=True)
    await context.abort(grpc.StatusCode.INTERNAL, "an internal error: the server's log has it")


def _request(request: pb.StartJobRequest, owner: str) -> Request:
    """What the helper takes; what it would treat as a violation is refused here, with a reason."""
    if request.argv and (request.command or request.args):
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "argv goes without command and args")
    argv: list[bytes] = list(request.argv) or [text.encode() for text in (request.command, *request.args)]
    env = {name.encode(): value for name, value in request.env.items()}
    cwd = request.working_directory.encode()
    if not argv[0]:
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "no command: say what to run")
    if cwd and not cwd.startswith(b"/"):
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "the working directory must be an absolute path")
    if any(not name or b"=" in name for name in env):
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "a variable's name must not be empty or contain '='")
    texts = [*argv, *env, *env.values(), cwd, request.profile.encode()]
    if any(b"\0" in text or len(text) > MAX_STRING // 2 for text in texts):
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"an argument has a NUL byte or over {MAX_STRING // 2} bytes")
    if len(argv) > MAX_COUNT or len(env) > MAX_COUNT - len(core.DEFAULT_ENV):
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"over {MAX_COUNT} arguments or variables")
    limits = {name: getattr(request.limits, name) for name in LIMITS.split()}
    cap = Cap(request.log_max_bytes, request.log_policy == pb.LOG_POLICY_DROP_OLDEST)
    if request.log_policy and not cap.max_bytes:
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "a log policy needs a cap, log_max_bytes")
    kill = request.log_policy == pb.LOG_POLICY_KILL
    return Request(owner, argv, env, cwd, limits, request.profile, cap, kill)


async def _wish(request: pb.WatchJobOutputRequest, log: JobLog) -> watch.Wish:
    """Where to begin, and what to send."""
    stream = Stream(request.stream) if request.stream else None
    since_ns, until_ns = request.since.ToNanoseconds(), request.until.ToNanoseconds()
    offset = request.offset
    if request.HasField("tail_lines"):
        if offset or since_ns:
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT, "the last lines go without an offset and a time to begin at"
            )
        if request.tail_lines > MAX_TAIL_LINES:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"at most the last {MAX_TAIL_LINES} lines")
        offset = await asyncio.to_thread(log.tail, request.tail_lines, stream)
    elif since_ns:
        offset = max(offset, log.at_time(since_ns))
    if log.ended and offset > log.size:
        text = f"offset {offset} is beyond the output, which has {log.size} bytes"
        raise Refusal(grpc.StatusCode.OUT_OF_RANGE, text)
    return watch.Wish(offset, not request.no_follow, stream, until_ns, request.accept_zstd, request.exact_times)


def _owner(parent: str, caller: Caller) -> str | None:
    """Whose jobs are to be listed; None: everybody's."""
    user = parent.removeprefix("users/")
    if parent and (user == parent or not user or "/" in user):
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "the parent must be users/{user}, users/-, or empty")
    if not parent:
        return caller.name
    if user == "-" and caller.admin:  # AIP-159
        return None
    if user == "-" or not caller.may_see(user):
        raise Refusal(grpc.StatusCode.PERMISSION_DENIED, "the jobs of others are for admins to list")
    return user


def _states(numbers: Iterable[int]) -> frozenset[State]:
    try:
        return frozenset(State(number) for number in numbers)
    except ValueError:
        text = f"states are: {', '.join(pb.JobState.Name(state) for state in State)}"
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, text) from None


def _signal(number: int) -> int:
    if not 1 <= number <= MAX_SIGNAL:
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"a signal is a number from 1 to {MAX_SIGNAL}")
    return number


def _state(job: Job) -> str:
    return pb.JobState.Name(job.record.state)


def _end_metadata(job: Job) -> tuple[tuple[str, str], ...]:
    record = job.record
    return (
        ("telehandler-state", record.state.name.lower()),
        ("telehandler-reason", record.reason.name.lower()),
        ("telehandler-exit-code", str(record.exit_code)),
        ("telehandler-signal", str(record.signal)),
        ("telehandler-detail", record.extra.get("log_error", "")),
    )


def _status(job: Job) -> pb.JobStatus:
    record = job.record
    status = pb.JobStatus(
        name=record.name,
        state=_state(job),
        exit_code=record.exit_code,
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
        dropped_bytes=job.log.floor if job.log else record.dropped_bytes,
    )
    if job.log:
        status.stdout_bytes, status.stderr_bytes = job.log.sizes.values()
    status.start_time.FromNanoseconds(record.start_ns)
    if record.state is not State.RUNNING:
        status.end_time.FromNanoseconds(record.end_ns)
    return status
