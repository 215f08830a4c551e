"""The client's side of the api: one channel, one method for each RPC, grpc's errors turned into ours.

grpc's blocking api: a command has one thing to wait for, and starts quicker without asyncio.
"""

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own lines are not ours: errors become one of ours

import grpc

from telehandler.certs.pem import common_name, read_pair
from telehandler.client import answers
from telehandler.client.answers import End as End  # what `watch` gives
from telehandler.client.retries import Retries
from telehandler.common import bounds, limits
from telehandler.common.errors import ServerSilent, ServerUnavailable, TelehandlerError, not_executed

if TYPE_CHECKING:
    from telehandler.client.stdin import Stdin
    from telehandler.pb import telehandler_pb2 as pb

CALL_TIMEOUT_S = 30.0
WAIT_TIMEOUT_S = 600.0  # of one call that waits for a job's end; then it is made again
STOP_TIMEOUT_S = 3600 + CALL_TIMEOUT_S  # of a stop with the job's own grace, which is an hour at most
START_PATIENCE_S = 90.0  # in all, for an answer to a start
PAGE_SIZE = 1000  # the server's most
_SERVICE = "/telehandler.v1.TelehandlerService/"
_EXEC = "exec"  # the name of helper.wire's stage
# What grpc's texts of calls that met no server begin with.
_NEVER_SENT = ("failed to connect to all addresses", "errors resolving", "DNS resolution failed")
_NO_MESSAGE = "Exception deserializing"  # and of bytes that are no message
_AGAIN = "connecting again in {pause}; the job is untouched"
OPTIONS = (
    ("grpc.max_receive_message_length", answers.MAX_CHUNK_BYTES),
    # grpc would unpack a message of a few KiB into gigabytes, and look at its length before that.
    ("grpc.per_message_decompression", 0),
    # Whatever http_proxy and its kin say: a server is reached directly. The second has a variable of its own.
    ("grpc.enable_http_proxy", 0),
    ("grpc.address_http_proxy", ""),
    *bounds.KEEPALIVE,
    # So soon, and so late, is a server that was not there tried again; and so long may a connection take.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.min_reconnect_backoff_ms", bounds.HANDSHAKE_TIMEOUT_S * 1000),
)


def _random_uuid() -> str:
    """Of version 4: RFC 9562. The uuid module would take a few milliseconds to import."""
    text = os.urandom(16).hex()
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"


def _silent(_: str) -> None:
    pass


class Client:
    """A connection to one server as one user. Raises TelehandlerError from every method."""

    def __init__(self, server: str, cert: str, key: str, root: str) -> None:
        self._server = server
        self._files = cert, key, root
        self.detail = ""  # of the last status: why its output is not whole, or waits
        host, _, port = server.rpartition(":")
        good = host and host.isprintable() and port.isascii() and port.isdigit() and len(port) <= 5
        if not good or not 0 < int(port) < 65536:
            raise TelehandlerError(f"the server address {server!r} must be HOST:PORT, such as localhost:6443")
        certificate, private_key, roots = read_pair(cert, key, root)
        credentials = grpc.ssl_channel_credentials(roots, private_key, certificate)
        self._channel = grpc.secure_channel(server, credentials, options=OPTIONS)
        # Connects now, in grpc's threads: the messages are imported meanwhile. Not by `subscribe`, whose thread the
        # end of the channel waits for, and at the interpreter's end for ever.
        with suppress(AttributeError):  # grpc's own, without a promise: else it connects at the first call
            self._channel._channel.check_connectivity_state(True)  # type: ignore[attr-defined]

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def user(self) -> str:
        """Who we are to the server, as names of jobs begin: users/{user}."""
        return f"users/{common_name(self._files[0])}"

    def start(self, request: "pb.StartJobRequest", note: Callable[[str], None] = _silent) -> str:
        """The name of a running job.

        When the answer does not come, the server is asked again; the request's id keeps it from starting two. `note`
        is told so, and of limits that were asked for and are not enforced.
        """
        from telehandler.pb import telehandler_pb2 as pb

        request.request_id = request.request_id or _random_uuid()
        _check_size(request)
        retries = Retries(note, patience_s=START_PATIENCE_S)
        while True:
            try:
                answer: pb.JobResponse = self._call("StartJob", request, pb.JobResponse.FromString)
                name = answers.job_name(answer.name)
                if answer.unenforced_limits:
                    note(limits.warning(answer.unenforced_limits))
                return name
            except ServerUnavailable as error:
                retries.wait(error, "the start is not confirmed; asking again in {pause}; the job is not started twice")

    def check(self, request: "pb.StartJobRequest") -> list[bytes]:
        """What the job of a request would get, with limits that are not enforced marked; starts nothing."""
        from telehandler.pb import telehandler_pb2 as pb

        request.validate_only = True
        _check_size(request)
        answer: pb.JobResponse = self._call("StartJob", request, pb.JobResponse.FromString)
        return limits.marked(list(answer.sandbox), answer.unenforced_limits)

    def stop(self, name: str, signal: int | None = None, grace_s: float | None = None) -> None:
        """Ends a job, by the signal and after the grace that it was started with where none is given."""
        from telehandler.pb import telehandler_pb2 as pb

        request = pb.StopJobRequest(name=name, signal=signal or 0)
        if grace_s is not None:
            request.grace.FromNanoseconds(int(grace_s * 1e9))
        patience_s = STOP_TIMEOUT_S if grace_s is None else grace_s + CALL_TIMEOUT_S
        self._call("StopJob", request, bytes, patience_s)

    def signal(self, name: str, signal: int) -> None:
        from telehandler.pb import telehandler_pb2 as pb

        self._call("SignalJob", pb.SignalJobRequest(name=name, signal=signal), bytes)

    def list_jobs(
        self,
        parent: str,
        states: Collection[str],
        limit: int | None,
        prefix: str = "",
        *,
        reference: str = "",
        names: Collection[str] = (),
        labels: Collection[str] = (),
        exec_in: str = "",
    ) -> Iterator["pb.JobStatus"]:
        """At most `limit` jobs, the newest first, page by page; None: all.

        An empty `parent`: the caller's own. `states` are names of JobState; none: all. `prefix`: of UUIDs. `reference`:
        a given name, else such a prefix. `names`: parts of given names, any of them. `labels`: key or key=value, all.
        `exec_in`: the commands in this job, instead of all others.
        """
        from telehandler.pb import telehandler_pb2 as pb

        token = ""
        for _ in range(answers.MAX_PAGES):
            size = min(limit or PAGE_SIZE, PAGE_SIZE)
            request = pb.ListJobsRequest(
                parent=parent,
                page_size=size,
                page_token=token,
                states=states,
                uuid_prefix=prefix,
                exec_in_job=exec_in,
                reference=reference,
                name_contains=names,
                labels=labels,
            )
            answer: pb.ListJobsResponse = self._call("ListJobs", request, pb.ListJobsResponse.FromString)
            yield from map(answers.status, answer.jobs)
            token = answer.next_page_token
            limit = None if limit is None else max(limit - len(answer.jobs), 0)
            if not token or limit == 0:
                return
            if not answer.jobs:
                raise TelehandlerError("the server sent an empty page of a list that it says goes on")
        raise TelehandlerError("the server's list has no end")

    def delete(self, name: str, force: bool) -> None:
        from telehandler.pb import telehandler_pb2 as pb

        self._call("DeleteJob", pb.DeleteJobRequest(name=name, force=force), bytes)

    def status(self, name: str, wait: bool = False, note: Callable[[str], None] = _silent) -> "pb.JobStatus":
        """A job's status; with `wait`, once it has ended. A wait whose connection breaks is taken up again."""
        answer = self._status(name, False)
        retries = Retries(note, connected=True)
        while wait and not answer.HasField("end_time"):
            try:
                return self._status(name, True)
            except ServerSilent:
                pass  # the job takes its time
            except ServerUnavailable as error:
                retries.wait(error, f"the connection broke; {_AGAIN}")
        return answer

    def next_run(self, name: str, note: Callable[[str], None] = _silent) -> str:
        """The name of the run that follows this one, once it has started; empty when there will be none."""
        from telehandler.pb import telehandler_pb2 as pb

        request = pb.GetJobStatusRequest(name=name, wait_next_run=True)
        retries = Retries(note, connected=True)
        while True:
            try:
                answer = answers.status(self._call("GetJobStatus", request, pb.JobStatus.FromString, WAIT_TIMEOUT_S))
                return answers.job_name(answer.next_run) if answer.next_run else ""
            except ServerSilent:
                pass  # the job takes its time
            except ServerUnavailable as error:
                retries.wait(error, f"the connection broke; {_AGAIN}")

    def _status(self, name: str, wait: bool) -> "pb.JobStatus":
        from telehandler.pb import telehandler_pb2 as pb

        request = pb.GetJobStatusRequest(name=name, wait=wait)
        timeout = WAIT_TIMEOUT_S if wait else CALL_TIMEOUT_S
        return answers.status(self._call("GetJobStatus", request, pb.JobStatus.FromString, timeout))

    def watch(
        self, request: "pb.WatchJobOutputRequest", started: bool, ended: list[End], note: Callable[[str], None]
    ) -> Iterator["pb.JobOutput"]:
        """JobOutput messages, unpacked, to the end of what was asked for; the job's end, if it has ended, in `ended`.

        A connection that breaks is made anew, at the offset that was reached; so is a first one that cannot be made,
        when this client has just `started` the job.
        """
        from telehandler.pb import telehandler_pb2 as pb

        request.accept_zstd = True
        method = self._channel.unary_stream(
            f"{_SERVICE}WatchJobOutput",
            request_serializer=pb.WatchJobOutputRequest.SerializeToString,
            response_deserializer=pb.JobOutput.FromString,
        )
        retries = Retries(note, connected=started)
        while True:
            call = method(request)
            try:
                for output in call:
                    answers.unpack(output)
                    yield output
                    request.offset = output.offset + len(output.data)
                    request.ClearField("tail_lines")  # the place is known now
                    retries.progress()
            except grpc.RpcError as error:
                failure = self._error(error)
                if not isinstance(failure, ServerUnavailable):
                    raise failure from None
                retries.wait(failure, f"the connection broke at byte {request.offset}; {_AGAIN}")
                continue
            if end := answers.end(_metadata(call)):
                ended.append(end)
            return

    def stdin(self, name: str, note: Callable[[str], None], goes_on: bool = False) -> "Stdin":
        """A job's input: see Stdin, whose `run` somebody must call."""
        from telehandler.client.stdin import Stdin
        from telehandler.pb import telehandler_pb2 as pb

        method = self._channel.stream_stream(
            f"{_SERVICE}WriteStdin",
            request_serializer=pb.WriteStdinRequest.SerializeToString,
            response_deserializer=pb.WriteStdinResponse.FromString,
        )
        return Stdin(name, method, self._error, note, goes_on)

    def close(self) -> None:
        self._channel.close()

    def _call(self, name: str, request: Any, deserializer: Any, timeout: float = CALL_TIMEOUT_S) -> Any:
        method = self._channel.unary_unary(
            f"{_SERVICE}{name}", request_serializer=type(request).SerializeToString, response_deserializer=deserializer
        )
        try:
            answer, call = method.with_call(request, timeout=timeout)
            self.detail = _metadata(call).get("telehandler-detail", "")
            return answer
        except grpc.RpcError as error:
            raise self._error(error) from None

    def _error(self, error: Any) -> TelehandlerError:
        """One line of cause and remedy, and the exit code."""
        code, text = error.code(), error.details() or ""
        if code is grpc.StatusCode.UNAVAILABLE:
            if text.startswith(_NEVER_SENT):
                from telehandler.client import diagnosis  # for those who need one

                target = diagnosis.Target(self._server, *self._files)
                return diagnosis.Unreachable(lambda: diagnosis.cause(target, text))
            unavailable = ServerUnavailable(f"{self._server} is not available: {text}")
            unavailable.sent = True
            return unavailable
        if code is grpc.StatusCode.CANCELLED:
            unavailable = ServerUnavailable(f"the server {self._server} has ended the call: it is ending itself")
            unavailable.sent = True
            return unavailable
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return ServerSilent(f"the server {self._server} did not answer in time")
        if text.startswith(_NO_MESSAGE):
            return TelehandlerError(f"the server {self._server} sent what is no answer of a telehandler server")
        failure = TelehandlerError(text or code.name.lower())
        metadata = _metadata(error)
        if metadata.get("telehandler-stage") == _EXEC:
            failure.exit_code = not_executed(answers.errno_of(metadata))
        return failure


def _metadata(call: Any) -> dict[str, str]:
    """What came behind a call's answer."""
    return {key: str(value) for key, value in call.trailing_metadata() or ()}


def _check_size(request: "pb.StartJobRequest") -> None:
    """What is over a message of the server's is refused here, in the words in which it refuses less."""
    if request.ByteSize() > bounds.MAX_REQUEST_BYTES:
        raise TelehandlerError(bounds.COMMAND_TOO_LONG)
