"""A client that is not ours: calls by method name, with any certificate or none, and requests as bytes."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from support.servers import Server
from telehandler.pb import telehandler_pb2 as pb

SERVICE = "telehandler.v1.TelehandlerService"
ORIGINAL = "drrev.telehandler.foreman.v1alpha1.ForemanService"
METHODS = {method.name: method for method in pb.DESCRIPTOR.services_by_name["TelehandlerService"].methods}
CALL_TIMEOUT_S = 30.0
WRITER = bytes(range(16))
SIGCONT = 18  # does nothing to a job that runs


class Response(NamedTuple):
    """All that a client can tell of a call."""

    code: grpc.StatusCode
    details: str
    initial: tuple[Any, ...]
    trailing: tuple[Any, ...]
    bodies: list[bytes]


class RawClient:
    """A connection of its own with one certificate, or none; a context manager."""

    def __init__(self, server: Server, pair: Path | None) -> None:
        key, chain = (pair.with_name(f"{pair.name}{end}.pem").read_bytes() if pair else None for end in ("-key", ""))
        credentials = grpc.ssl_channel_credentials((server.ssl / "root.pem").read_bytes(), key, chain)
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
        self.channel = grpc.secure_channel(f"localhost:{server.port}", credentials, options)

    def __enter__(self) -> "RawClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def start_call(self, path: str, request: Message | bytes, **options: Any) -> Any:
        """A call under way. On the wire an answer is a stream of one."""
        body = request if isinstance(request, bytes) else request.SerializeToString()
        options = {"timeout": CALL_TIMEOUT_S, **options}
        method: Any = self.channel.unary_stream(path)  # the stub wants serialisers: bytes are sent as they are
        return method(body, **options)

    def call(self, path: str, request: Message | bytes, **options: Any) -> Response:
        call = self.start_call(path, request, **options)
        bodies = []
        try:
            bodies = list(call)
        except grpc.RpcError:
            pass  # it is in the code
        metadata = _plain(call.initial_metadata()), _plain(call.trailing_metadata())
        return Response(call.code(), call.details(), *metadata, bodies)

    def call_method(self, method: str, user: str, uuid: str = "", service: str = SERVICE) -> Response:
        """Any method, about a job of `user`."""
        return self.call(f"/{service}/{method}", request_for(method, user, uuid))

    def start(self, *argv: str, **fields: Any) -> pb.JobResponse:
        request = pb.StartJobRequest(argv=[os.fsencode(word) for word in argv], **fields)
        answer = self.call(f"/{SERVICE}/StartJob", request)
        assert answer.code is grpc.StatusCode.OK, answer
        return pb.JobResponse.FromString(answer.bodies[0])

    def job_status(self, name: str, **fields: Any) -> pb.JobStatus:
        """The status in the response to GetJobStatus, which must be OK."""
        response = self.call(f"/{SERVICE}/GetJobStatus", pb.GetJobStatusRequest(name=name, **fields))
        assert response.code is grpc.StatusCode.OK, response
        return pb.JobStatus.FromString(response.bodies[0])

    def status(self, name: str) -> Response:
        return self.call(f"/{SERVICE}/GetJobStatus", pb.GetJobStatusRequest(name=name))


def _plain(metadata: Any) -> tuple[Any, ...]:
    return tuple((key, value) for key, value in metadata or ())


def request_for(method: str, user: str, uuid: str) -> Message:
    """A request that its owner would get an answer to at once: of any method, also one that is new."""
    message: Any = GetMessageClass(METHODS[method].input_type)()
    fields = METHODS[method].input_type.fields_by_name
    if "parent" in fields:
        message.parent = f"users/{user}"
    else:
        message.name = f"users/{user}/jobs/{uuid}"
    if "writer" in fields:
        message.writer = WRITER
    if "argv" in fields:
        message.argv.append(b"true")
    if "force" in fields:
        message.force = True
    if "signal" in fields:
        message.signal = SIGCONT
    if "no_follow" in fields:
        message.no_follow = True
    if "grace" in fields:
        message.grace.seconds = 0
    return message  # type: ignore[no-any-return]  # a class made at run time
