"""A job's name by the beginning of its UUID: the server finds it, in one call."""

import grpc
import pytest
from support.library_client import client_of
from support.raw_client import SERVICE, RawClient
from support.servers import Server

from telehandler.pb import telehandler_pb2 as pb


def test_the_server_lists_by_prefix(server: Server) -> None:
    names = [server.detach("true") for _ in range(3)]
    client = client_of(server)
    for name in names:
        uuid = name.rpartition("/")[2]
        assert [job.name for job in client.list_jobs("", (), None, uuid[:13])] == [name]
        assert [job.name for job in client.list_jobs("", (), None, uuid.upper())] == [name]
    client.close()


@pytest.mark.parametrize("prefix", ["%", "g", "0" * 37, "abc' OR 1", "ä"])
def test_what_is_no_prefix_is_refused(server: Server, prefix: str) -> None:
    with RawClient(server, server.ssl / "client") as caller:
        answer = caller.call(f"/{SERVICE}/ListJobs", pb.ListJobsRequest(uuid_prefix=prefix))
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
