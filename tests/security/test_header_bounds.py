"""A call's headers have one bound, which holds for each call and not by chance (S39)."""

from pathlib import Path

import grpc
import pytest
from support.raw_client import SERVICE, RawClient
from support.servers import Server

from telehandler.common import bounds
from telehandler.pb import telehandler_pb2 as pb

STATUS = f"/{SERVICE}/GetJobStatus"
CALLS = 40  # grpc refuses by chance between its two bounds: one call would say little


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (bounds.MAX_METADATA_BYTES - 1024, grpc.StatusCode.INVALID_ARGUMENT),  # it is served: there is no such name
        (bounds.MAX_METADATA_BYTES + 64, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
    ids=["below", "over"],
)
def test_s39_the_bound_of_headers_is_exact(server: Server, ssl: Path, size: int, expected: grpc.StatusCode) -> None:
    with RawClient(server, ssl / "client") as client:
        request = pb.GetJobStatusRequest(name="no name")
        codes = {client.call(STATUS, request, metadata=[("x-pad", "y" * size)]).code for _ in range(CALLS)}
        assert codes == {expected}
