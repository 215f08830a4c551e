"""The RPCs: requests checked and authorised, jobs called, answers made. One handler for each RPC."""

import asyncio
import signal
import time
import uuid as uuids
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc
import grpc.aio
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from helper.wire import Stage
from telehandler.api import pagination, responses, shares, stdin, validation
from telehandler.api.auth import AuthError, Caller, caller_of
from telehandler.api.responses import Context
from telehandler.api.tls import TLS_VERSION
from telehandler.api.validation import Refusal
from telehandler.api.worker_link import WorkerCall
from telehandler.common import bounds, limits
from telehandler.common.errors import HelperRefused
from telehandler.common.turns import Threads, Turns
from telehandler.jobs import manager as core
from telehandler.jobs.job import Job
from telehandler.jobs.manager import Jobs
from telehandler.jobs.records import name_of
from telehandler.output import watch
from telehandler.output.chunks import Chunks
from telehandler.output.log import JobLog
from telehandler.pb import telehandler_pb2 as pb

SERVICE = "telehandler.v1.TelehandlerService"
ORIGINAL_SERVICE = "drrev.telehandler.foreman.v1alpha1.ForemanService"
_WATCH, _STDIN = "WatchJobOutput", "WriteStdin"
_NO_JOB = "no such job, or not yours"


class Service:
    """Handlers by RPC name, for calls that come here or to a stream worker. A handler gets the caller.

    What has no handler is not served.
    """

    def __init__(self, jobs: Jobs, admins: frozenset[str], max_calls: int) -> None:
        self._chunks = Chunks()
        self._jobs, self._admins = jobs, admins
        self._shares = shares.Shares(max_calls)
        self._lists = Turns(1, 1)  # a page is some ten milliseconds of the event loop
        self._tails = Threads("tail", 2, 1)

    def methods(self) -> dict[str, Callable[[Any, Context], Any]]:
        """What answers each RPC, by its path: all under our name, and those of the original under its own."""
        calls: dict[str, tuple[type[Message], Callable[[Any, Caller, Context], Awaitable[Any]]]] = {
            "StartJob": (pb.StartJobRequest, self.start_job),
            "StopJob": (pb.StopJobRequest, self.stop_job),
            "ListJobs": (pb.ListJobsRequest, self.list_jobs),
            "DeleteJob": (pb.DeleteJobRequest, self.delete_job),
            "GetJobStatus": (pb.GetJobStatusRequest, self.get_job_status),
            "SignalJob": (pb.SignalJobRequest, self.signal_job),
            _WATCH: (pb.WatchJobOutputRequest, self.watch_job_output),
            _STDIN: (pb.WriteStdinRequest, self.write_stdin),
        }
        methods = {name: self._call(handler, message) for name, (message, handler) in calls.items()}
        original = {name: methods[name] for name in ("StopJob", "GetJobStatus", _WATCH)}
        original["StartJob"] = self._call(self.start_merged, pb.StartJobRequest)
        found = {f"/{SERVICE}/{name}": method for name, method in methods.items()}
        return found | {f"/{ORIGINAL_SERVICE}/{name}": method for name, method in original.items()}

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """`methods`, for grpc.

        On the wire a request is a stream of one message. As a stream a handler has it from the headers on, so that
        the caller is known, and counted, before anything of the message is read: grpc would read it first.
        """
        by_service: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
        for path, method in self.methods().items():
            _, service, name = path.split("/")
            # No serialiser where several messages are sent: chunks of output are serialised once for all watchers.
            handler = grpc.stream_stream_rpc_method_handler(method) if name in (_WATCH, _STDIN) else _unary(method)
            by_service.setdefault(service, {})[name] = handler
        return [grpc.method_handlers_generic_handler(name, methods) for name, methods in by_service.items()]

    async def start_job(
        self, request: pb.StartJobRequest, caller: Caller, context: Context, merge_stderr: bool = False
    ) -> pb.JobResponse:
        owner = request.parent.removeprefix("users/") or caller.name
        if request.parent and not request.parent.startswith("users/"):
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "the parent must be users/{user}, or empty")
        if owner != caller.name:
            raise Refusal(grpc.StatusCode.PERMISSION_DENIED, "a job's parent must be its caller")
        wanted = validation.start_request(request, owner)
        wanted = wanted._replace(merge_stderr=wanted.merge_stderr or merge_stderr)
        if request.exec_in_job:
            wanted = wanted._replace(exec_in=self._parent(request.exec_in_job, caller))
        if request.validate_only:
            rows = await self._jobs.check(wanted)
            return pb.JobResponse(sandbox=rows, unenforced_limits=limits.without_file(rows))
        job = await self._jobs.start(wanted)
        answer = pb.JobResponse(name=job.record.name, uid=job.record.uuid, state=responses.state(job))
        answer.unenforced_limits.extend(await self._jobs.unenforced(wanted))
        return answer

    async def start_merged(self, request: pb.StartJobRequest, caller: Caller, context: Context) -> pb.JobResponse:
        """The original's: its jobs have one pipe for both streams. A request id is the same under both services."""
        return await self.start_job(request, caller, context, merge_stderr=True)

    async def stop_job(self, request: pb.StopJobRequest, caller: Caller, context: Context) -> Empty:
        job = self._find(request.name, caller)
        number = validation.signal_number(request.signal or job.record.stop_signal)
        grace = validation.seconds(request, "grace", core.MAX_GRACE_S)
        await self._jobs.stop(job, number, job.record.stop_grace_ms / 1000 if grace is None else grace)
        return Empty()

    async def list_jobs(self, request: pb.ListJobsRequest, caller: Caller, context: Context) -> pb.ListJobsResponse:
        owner = validation.owner(request.parent, caller)
        prefix = validation.uuid_prefix(request.uuid_prefix)
        if request.reference:
            if owner is None:
                raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "a reference is to a job of one user: say whose")
            if job := self._jobs.named(owner, validation.reference(request.reference)):
                return pb.ListJobsResponse(jobs=[responses.status(job)])
            try:
                prefix = validation.uuid_prefix(request.reference)
            except Refusal:  # a name that no job has
                return pb.ListJobsResponse()
        states = validation.states(request.states)
        marks = validation.marks(request)
        if request.exec_in_job:
            marks = marks._replace(exec_in=self._find(request.exec_in_job, caller).record.uuid)
        query = pagination.Query(owner, states, prefix, marks)
        if request.page_size < 0:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "the page size must not be negative")
        size = min(request.page_size or pagination.DEFAULT_PAGE_SIZE, pagination.MAX_PAGE_SIZE)
        try:
            after = pagination.unpack(query, request.page_token) if request.page_token else None
        except ValueError:
            text = "the page token is of no page before of the same list: begin without one"
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, text) from None
        await self._lists.take(caller.name)
        began_s = time.monotonic()
        try:
            jobs, more = self._jobs.list_jobs(query.owner, query.states, query.prefix, after, size, query.marks)
            token = pagination.pack(query, jobs[-1].record.cursor) if more else ""
            return pb.ListJobsResponse(jobs=[responses.status(job) for job in jobs], next_page_token=token)
        finally:
            # Half of the event loop's time is for other calls, which grpc hands over one by one.
            pause_s = time.monotonic() - began_s
            asyncio.get_running_loop().call_later(pause_s, self._lists.give_back, caller.name)

    async def delete_job(self, request: pb.DeleteJobRequest, caller: Caller, context: Context) -> Empty:
        job = self._find(request.name, caller)
        waits = self._jobs.waits_for_restart(job)
        if request.force:
            await self._jobs.stop(job, signal.SIGKILL, 0)
        elif waits or not job.ended.is_set():
            state = "waits for its restart" if waits else "is running"
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, f"the job {state}: stop it first, or use force")
        await self._jobs.delete(job)
        return Empty()

    async def get_job_status(self, request: pb.GetJobStatusRequest, caller: Caller, context: Context) -> pb.JobStatus:
        job = self._find(request.name, caller)
        if request.wait:
            await job.ended.wait()
        if request.wait_next_run:
            job = await self._jobs.next_run(job)
        context.set_trailing_metadata((("telehandler-detail", responses.detail(job)),))
        return responses.status(job)

    async def signal_job(self, request: pb.SignalJobRequest, caller: Caller, context: Context) -> Empty:
        job = self._find(request.name, caller)
        number = validation.signal_number(request.signal)
        ended = Refusal(grpc.StatusCode.FAILED_PRECONDITION, "the job has ended")
        if job.ended.is_set():
            raise ended
        try:
            await self._jobs.signal(job, number)
        except HelperRefused as refused:
            if refused.stage != Stage.NO_SUCH_JOB:
                raise
            raise ended from None  # its end is being recorded
        return Empty()

    async def watch_job_output(self, request: pb.WatchJobOutputRequest, caller: Caller, context: Context) -> None:
        job = self._find(request.name, caller)
        log = self._jobs.open_log(job)
        try:
            options = await validation.watch_options(request, log, partial(self._tails.run, caller.name))
            if isinstance(context, WorkerCall):
                await context.watch(job.record.uuid, log, options)
            else:
                await self._send(log, options, context)
            if log.ended:
                await job.ended.wait()
                context.set_trailing_metadata(responses.end_metadata(job))
        finally:
            log.release()

    async def _send(self, log: JobLog, options: watch.WatchOptions, context: Context) -> None:
        self._chunks.join(self._jobs.running)
        try:
            async for message in watch.messages(log, self._chunks, options):
                await context.write(message)
        finally:
            self._chunks.leave()

    async def write_stdin(self, request: pb.WriteStdinRequest, caller: Caller, context: Context) -> None:
        await stdin.serve(self._find(request.name, caller), request, caller, context, self._shares)

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

    def _parent(self, name: str, caller: Caller) -> str:
        """The UUID of a job of the caller's in which a command may run. Raises Refusal."""
        job = self._find(name, caller)
        if job.record.owner != caller.name:
            raise Refusal(grpc.StatusCode.PERMISSION_DENIED, "a command runs in a job of its caller's alone")
        if job.record.exec_in:
            text = "that is itself a command in a job: name the job, " + name_of(caller.name, job.record.exec_in)
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, text)
        return job.record.uuid

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

    def _call(
        self, handler: Callable[[Any, Caller, Context], Awaitable[Any]], message: type[Message]
    ) -> Callable[[Any, Context], Any]:
        async def call(_: Any, context: Context) -> Any:
            try:
                caller = self._caller(context)
                usage = self._shares.begin(caller.name)
                context.add_done_callback(lambda _: self._shares.end(usage))  # type: ignore[arg-type]  # a class there
                async with asyncio.timeout(bounds.RECEIVE_TIMEOUT_S):
                    body = await self._shares.receive(usage, context)
                request = validation.parse(message, body)
                async with asyncio.timeout(_handling_s(request)):
                    return await handler(request, caller, context)
            except Exception as error:
                await responses.abort(context, error)

        return call


def _unary(handler: Callable[[Any, Context], Any]) -> "grpc.RpcMethodHandler[Any, Any]":
    return grpc.stream_unary_rpc_method_handler(handler, response_serializer=lambda answer: answer.SerializeToString())


def _waits(request: Any) -> bool:
    return isinstance(request, pb.GetJobStatusRequest) and (request.wait or request.wait_next_run)


def _handling_s(request: Any) -> float | None:
    """How long the call of a request may take; None: as long as its client is there."""
    if isinstance(request, pb.WatchJobOutputRequest | pb.WriteStdinRequest) or _waits(request):
        return None
    grace_s = 0.0
    if isinstance(request, pb.StopJobRequest):
        grace_s = float(request.grace.seconds) if request.HasField("grace") else core.MAX_GRACE_S  # the job's own
    return bounds.HANDLING_TIMEOUT_S + min(max(grace_s, 0), core.MAX_GRACE_S)
