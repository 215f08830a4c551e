"""What each call refuses, and with which status: the checks of the service, by a client that is not ours."""

import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from support.cgroups import missing_controllers
from support.raw_client import METHODS, ORIGINAL, SERVICE, RawClient, Response
from support.servers import Server
from support.wait import wait_until

from telehandler.api import pagination
from telehandler.api.service import _handling_s
from telehandler.api.shares import Shares
from telehandler.common import bounds
from telehandler.jobs import manager
from telehandler.output.chunks import CHUNK_BYTES, IN_FLIGHT_BYTES
from telehandler.pb import telehandler_pb2 as pb

Code = grpc.StatusCode
OWNER = "tele-tester"


@pytest.fixture(scope="module")
def owner(server: Server, ssl: Path) -> Iterator[RawClient]:
    with RawClient(server, ssl / "client") as client:
        yield client


@pytest.fixture
def job(owner: RawClient) -> Iterator[pb.JobResponse]:
    """One that runs until it is stopped."""
    job = owner.start("sleep", "1000")
    yield job
    owner.call_method("DeleteJob", OWNER, job.uid)


@pytest.fixture(scope="module")
def ended(owner: RawClient) -> pb.JobResponse:
    job = owner.start("sh", "-c", "echo out; exit 3")
    owner.job_status(job.name, wait=True)
    return job


def _call(client: RawClient, method: str, **fields: Any) -> Response:
    name = METHODS[method].input_type.name
    return client.call(f"/{SERVICE}/{method}", getattr(pb, name)(**fields))


def _refused(response: Response, code: grpc.StatusCode, words: str) -> None:
    assert (response.code, response.bodies) == (code, [])
    assert words in response.details


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x",
        "users/a/jobs",
        "users/a/jobs/b/c",
        "user/a/jobs/{}",
        "users/a/job/{}",
        "users//{}/jobs",
        "/users/a/jobs/{}",
    ],
)
def test_a_name_has_four_words(owner: RawClient, name: str) -> None:
    for method in ("GetJobStatus", "StopJob", "SignalJob", "DeleteJob", "WatchJobOutput"):
        response = _call(owner, method, name=name.format(uuid.uuid4()))
        _refused(response, Code.INVALID_ARGUMENT, "a job's name is users/{user}/jobs/{uuid}")


def test_a_name_ends_in_a_uuid_of_any_form(owner: RawClient, job: pb.JobResponse) -> None:
    _refused(owner.status(f"users/{OWNER}/jobs/x"), Code.INVALID_ARGUMENT, "ends in a UUID")
    for same in (job.uid.upper(), job.uid.replace("-", "")):
        assert owner.job_status(f"users/{OWNER}/jobs/{same}").name == job.name
    _refused(owner.status(f"users/{OWNER}/jobs/{uuid.uuid4()}"), Code.NOT_FOUND, "no such job, or not yours")


def test_an_admin_names_the_owner_of_a_job(server: Server, ssl: Path, job: pb.JobResponse) -> None:
    with RawClient(server, ssl / "admin") as admin:
        assert admin.job_status(job.name).owner == OWNER
        for other in ("admin", "bubba"):
            _refused(admin.status(f"users/{other}/jobs/{job.uid}"), Code.NOT_FOUND, "no such job")


def test_a_job_is_started_in_the_callers_name_alone(owner: RawClient) -> None:
    for parent in ("", f"users/{OWNER}"):
        started = pb.JobResponse.FromString(_call(owner, "StartJob", argv=[b"true"], parent=parent).bodies[0])
        assert started.name == f"users/{OWNER}/jobs/{started.uid}"
        assert started.state == pb.JOB_STATE_RUNNING
    for parent in (OWNER, "users", "jobs/x"):
        _refused(_call(owner, "StartJob", argv=[b"true"], parent=parent), Code.INVALID_ARGUMENT, "the parent must be")
    for parent in ("users/bubba", "users/-", f"users/{OWNER}/"):
        _refused(_call(owner, "StartJob", argv=[b"true"], parent=parent), Code.PERMISSION_DENIED, "must be its caller")


def test_a_request_that_is_only_checked_starts_nothing(owner: RawClient) -> None:
    response = pb.JobResponse.FromString(_call(owner, "StartJob", argv=[b"true"], validate_only=True).bodies[0])
    assert (response.name, response.uid) == ("", "")
    assert any(row.startswith(b"profile_name ") for row in response.sandbox)


@pytest.mark.parametrize(
    ("seconds", "nanos", "good"),
    [
        (0, 0, True), (0, 1, True), (int(manager.MAX_GRACE_S), 0, True), (int(manager.MAX_GRACE_S), 1_000_000, False),
        (0, -1, False), (-1, 0, False),
    ],
)  # fmt: skip
def test_a_grace_is_from_0_to_its_most(
    owner: RawClient, job: pb.JobResponse, seconds: int, nanos: int, good: bool
) -> None:
    response = _call(owner, "StopJob", name=job.name, grace=Duration(seconds=seconds, nanos=nanos))
    if good:
        assert response.code is Code.OK
        assert owner.job_status(job.name).state == pb.JOB_STATE_STOPPED
    else:
        _refused(response, Code.INVALID_ARGUMENT, f"from 0 to {manager.MAX_GRACE_S:.0f} s")
        assert owner.job_status(job.name).state == pb.JOB_STATE_RUNNING


def test_a_stop_is_by_the_signal_that_was_asked_for_and_else_by_sigterm(owner: RawClient) -> None:
    for number, expected in ((0, 15), (10, 10)):
        job = owner.start(
            "sh", "-c", "trap 'echo 15; exit' TERM; trap 'echo 10; exit' USR1; echo up; while :; do :; done"
        )
        _wait_for_output(owner, job, b"up\n")
        assert _call(owner, "StopJob", name=job.name, signal=number).code is Code.OK
        assert owner.job_status(job.name).stdout_bytes == len(f"up\n{expected}\n")
    _refused(_call(owner, "StopJob", name=job.name, signal=65), Code.INVALID_ARGUMENT, "from 1 to 64")


def _wait_for_output(owner: RawClient, job: pb.JobResponse, data: bytes) -> None:
    wait_until("it has said so", lambda: owner.job_status(job.name).stdout_bytes >= len(data))


def test_a_signal_needs_a_job_that_runs(owner: RawClient, job: pb.JobResponse, ended: pb.JobResponse) -> None:
    assert _call(owner, "SignalJob", name=job.name, signal=9).code is Code.OK
    assert owner.job_status(job.name, wait=True).signal == 9
    _refused(_call(owner, "SignalJob", name=ended.name, signal=9), Code.FAILED_PRECONDITION, "the job has ended")
    for number in (0, 65):
        _refused(_call(owner, "SignalJob", name=job.name, signal=number), Code.INVALID_ARGUMENT, "from 1 to 64")


def test_a_job_that_runs_is_removed_by_force_alone(owner: RawClient, job: pb.JobResponse) -> None:
    _refused(_call(owner, "DeleteJob", name=job.name), Code.FAILED_PRECONDITION, "the job is running")
    assert owner.job_status(job.name).state == pb.JOB_STATE_RUNNING
    assert _call(owner, "DeleteJob", name=job.name, force=True).code is Code.OK
    _refused(owner.status(job.name), Code.NOT_FOUND, "no such job")
    done = owner.start("true")
    owner.job_status(done.name, wait=True)
    assert _call(owner, "DeleteJob", name=done.name).code is Code.OK


def test_a_status_waits_for_the_end_only_when_asked(owner: RawClient, job: pb.JobResponse) -> None:
    assert owner.job_status(job.name).state == pb.JOB_STATE_RUNNING
    waiting = owner.start_call(f"/{SERVICE}/GetJobStatus", pb.GetJobStatusRequest(name=job.name, wait=True))
    assert _call(owner, "SignalJob", name=job.name, signal=9).code is Code.OK
    (body,) = list(waiting)
    assert pb.JobStatus.FromString(body).signal == 9


def test_a_watch_of_a_job_that_has_ended_ends_with_how(owner: RawClient, ended: pb.JobResponse) -> None:
    response = _call(owner, "WatchJobOutput", name=ended.name)
    assert response.code is Code.OK
    assert b"".join(pb.JobOutput.FromString(body).data for body in response.bodies) == b"out\n"
    trailing = dict(response.trailing)
    assert (trailing["telehandler-state"], trailing["telehandler-exit-code"]) == ("failed", "3")
    assert "telehandler-detail" in dict(owner.status(ended.name).trailing)


def test_a_watch_leaves_no_fd_behind(server: Server, owner: RawClient, ended: pb.JobResponse) -> None:
    fds = Path(f"/proc/{server.children()['api']}/fd")

    def outputs() -> int:
        count = 0
        for path in fds.iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                count += ended.uid in os.readlink(path)
        return count

    assert outputs() == 0
    for _ in range(5):
        assert _call(owner, "WatchJobOutput", name=ended.name).code is Code.OK
    wait_until("its files are closed", lambda: outputs() == 0)


def test_a_watch_of_closed_outputs_ends_with_the_job(owner: RawClient) -> None:
    """Its pipes have ended, and it runs on."""
    job = owner.start("sh", "-c", "trap 'exit 3' USR1; echo out; exec >&- 2>&-; while :; do :; done")
    _wait_for_output(owner, job, b"out\n")
    watching = owner.start_call(f"/{SERVICE}/WatchJobOutput", pb.WatchJobOutputRequest(name=job.name))
    assert pb.JobOutput.FromString(next(watching)).data == b"out\n"
    assert _call(owner, "SignalJob", name=job.name, signal=10).code is Code.OK
    assert list(watching) == []
    trailing = dict(watching.trailing_metadata())
    assert (trailing["telehandler-state"], trailing["telehandler-exit-code"]) == ("failed", "3")


def test_chunks_are_smaller_while_many_watch(server: Server, ssl: Path, owner: RawClient) -> None:
    """What grpc holds for watchers that do not read is bounded over all of them."""
    most = IN_FLIGHT_BYTES // CHUNK_BYTES
    job = owner.start("sh", "-c", f"head -c {4 * CHUNK_BYTES} /dev/zero; sleep 1000")
    wait_until("it has said so", lambda: owner.job_status(job.name).stdout_bytes == 4 * CHUNK_BYTES)

    def largest() -> int:
        response = _call(owner, "WatchJobOutput", name=job.name, no_follow=True)
        return max(len(pb.JobOutput.FromString(body).data) for body in response.bodies)

    assert largest() == CHUNK_BYTES
    with RawClient(server, ssl / "client") as crowd:
        request = pb.WatchJobOutputRequest(name=job.name, offset=4 * CHUNK_BYTES)
        calls = [crowd.start_call(f"/{SERVICE}/WatchJobOutput", request, timeout=None) for _ in range(most)]
        wait_until("all of them watch", lambda: largest() == CHUNK_BYTES // 2)
        for call in calls:
            call.cancel()
    wait_until("they have left", lambda: largest() == CHUNK_BYTES)
    assert owner.call_method("DeleteJob", OWNER, job.uid).code is Code.OK


def test_a_page_has_a_size_of_at_most_its_bound(owner: RawClient, ended: pb.JobResponse) -> None:
    owner.start("true")

    def page(**fields: Any) -> pb.ListJobsResponse:
        return pb.ListJobsResponse.FromString(_call(owner, "ListJobs", **fields).bodies[0])

    first = page(page_size=1)
    assert (len(first.jobs), bool(first.next_page_token)) == (1, True)
    second = page(page_size=1, page_token=first.next_page_token)
    assert second.jobs[0].name != first.jobs[0].name
    for size, bound in ((0, pagination.DEFAULT_PAGE_SIZE), (pagination.MAX_PAGE_SIZE + 1, pagination.MAX_PAGE_SIZE)):
        assert 2 <= len(page(page_size=size).jobs) <= bound
    _refused(_call(owner, "ListJobs", page_size=-1), Code.INVALID_ARGUMENT, "must not be negative")
    for token in ("x", first.next_page_token[:-1], first.next_page_token.swapcase()):
        _refused(_call(owner, "ListJobs", page_token=token), Code.INVALID_ARGUMENT, "the page token is of no page")
    _refused(_call(owner, "ListJobs", states=[99]), Code.INVALID_ARGUMENT, "states are: ")


def test_the_original_has_its_four_methods(owner: RawClient, job: pb.JobResponse) -> None:
    served = {name for name in METHODS if owner.call_method(name, OWNER, job.uid, ORIGINAL).code is Code.OK}
    assert served == {"StartJob", "StopJob", "GetJobStatus", "WatchJobOutput"}


@pytest.mark.parametrize(
    ("service", "asked", "merged"),
    [(SERVICE, False, False), (SERVICE, True, True), (ORIGINAL, False, True), (ORIGINAL, True, True)],
)
def test_a_job_of_the_originals_has_one_pipe(owner: RawClient, service: str, asked: bool, merged: bool) -> None:
    request = pb.StartJobRequest(argv=[b"sh", b"-c", b"echo told >&2"], merge_stderr=asked)
    job = pb.JobResponse.FromString(owner.call(f"/{service}/StartJob", request).bodies[0])
    status = owner.job_status(job.name, wait=True)
    assert (status.stdout_bytes, status.stderr_bytes) == ((5, 0) if merged else (0, 5))


def test_a_start_tells_of_limits_that_are_not_enforced(owner: RawClient) -> None:
    """Of those that it sets."""
    job = owner.start("true", limits=pb.Limits(memory_bytes=64 << 20, open_files=99))
    assert [*job.unenforced_limits] == ["memory_bytes"] * ("memory" in missing_controllers())
    assert [*owner.start("true").unenforced_limits] == []


def test_bytes_that_are_no_request_are_refused(owner: RawClient) -> None:
    _refused(owner.call(f"/{SERVICE}/ListJobs", b"\xff"), Code.INVALID_ARGUMENT, "the request is no ListJobsRequest")


def test_a_user_without_calls_takes_no_memory() -> None:
    shares = Shares(max_calls=2)
    calls = [shares.begin("user"), shares.begin("user")]
    shares.end(calls[0])
    assert [*shares._sums] == ["user"]
    shares.end(calls[1])
    assert [*shares._sums] == []


def test_a_call_has_the_time_that_its_kind_takes() -> None:
    usual = bounds.HANDLING_TIMEOUT_S
    for request in (pb.StartJobRequest(), pb.GetJobStatusRequest(), pb.ListJobsRequest(), pb.DeleteJobRequest()):
        assert _handling_s(request) == usual
    assert _handling_s(pb.WatchJobOutputRequest()) is None
    assert _handling_s(pb.GetJobStatusRequest(wait=True)) is None
    graces = {0: 0, 7: 7, -5: 0, 10**9: manager.MAX_GRACE_S}
    for seconds, more in graces.items():
        assert _handling_s(pb.StopJobRequest(grace=Duration(seconds=seconds))) == usual + more
