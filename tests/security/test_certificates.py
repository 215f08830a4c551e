"""Which certificates open the api's door (S36), whose jobs they show (S37) and who is admin (S38)."""

import socket
import ssl as tls
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.certificates import issue
from support.raw_client import METHODS, ORIGINAL, SERVICE, RawClient
from support.servers import Server
from support.wait import wait_until

from telehandler.pb import telehandler_pb2 as pb

OK = grpc.StatusCode.OK
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE  # the handshake fails
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED  # the name is no user
NOT_FOUND = grpc.StatusCode.NOT_FOUND
DENIED = grpc.StatusCode.PERMISSION_DENIED
OWNER = "tele-tester"
EVERY = [f"{service}/{method}" for service in (SERVICE, ORIGINAL) for method in METHODS]
UNSERVED = [
    f"{ORIGINAL}/{method}" for method in ("SignalJob", "ListJobs", "DeleteJob", "WriteStdin")
]  # the original has them not
# About a user and not about one job: who may not is told so, since there is no job to hide.
OF_USERS = [method for method, about in METHODS.items() if "parent" in about.input_type.fields_by_name]
SERVED = [path for path in EVERY if path not in UNSERVED]


@pytest.mark.parametrize(
    ("names", "options", "code", "words"),
    [
        pytest.param(["mallory"], {}, OK, "", id="a good one"),
        pytest.param(["é" * 32], {}, OK, "", id="64 bytes"),
        pytest.param(["mallory"], {"signer": "self"}, UNAVAILABLE, "", id="wrong root"),
        pytest.param(["mallory"], {"signer": "client"}, UNAVAILABLE, "", id="signed by a client"),
        pytest.param(["mallory"], {"start": -30}, UNAVAILABLE, "", id="expired"),
        pytest.param(["mallory"], {"start": 2}, UNAVAILABLE, "", id="not yet valid"),
        pytest.param(["mallory"], {"usage": ExtendedKeyUsageOID.SERVER_AUTH}, UNAVAILABLE, "", id="a server's"),
        pytest.param(["mallory"], {"usage": None}, UNAUTHENTICATED, "no extended key usage", id="no usage"),
        pytest.param([""], {}, UNAUTHENTICATED, "1 to 64 bytes", id="empty name"),
        pytest.param([], {}, UNAUTHENTICATED, "0 common names", id="no name"),
        pytest.param(["mallory", "admin"], {}, UNAUTHENTICATED, "2 common names", id="two names"),
        pytest.param(["admin", "admin"], {}, UNAUTHENTICATED, "2 common names", id="the same name twice"),
        pytest.param(["a/b"], {}, UNAUTHENTICATED, "without '/'", id="slash"),
        pytest.param([".."], {}, UNAUTHENTICATED, "without '/'", id="dots"),
        pytest.param(["admin\0x"], {}, UNAUTHENTICATED, "control", id="NUL"),
        pytest.param(["a\nb"], {}, UNAUTHENTICATED, "control", id="newline"),
        pytest.param(["a\x1b[31m"], {}, UNAUTHENTICATED, "control", id="escape"),
        pytest.param(["a\u202eb"], {}, UNAUTHENTICATED, "control", id="right to left"),
        pytest.param(["x" * 65], {}, UNAUTHENTICATED, "1 to 64 bytes", id="65 bytes"),
        pytest.param(["é" * 33], {}, UNAUTHENTICATED, "1 to 64 bytes", id="66 bytes in 33 letters"),
    ],
)
def test_s36_certificates(
    server: Server,
    ssl: Path,
    tmp_path: Path,
    names: list[str],
    options: dict[str, Any],
    code: grpc.StatusCode,
    words: str,
) -> None:
    """Two good ones among them, so that the others are refused for what is wrong with them."""
    with RawClient(server, issue(ssl, tmp_path / "pair", *names, **options)) as caller:
        answer = caller.call(f"/{SERVICE}/StartJob", pb.StartJobRequest(argv=[b"true"]))
    assert (answer.code, bool(answer.bodies)) == (code, code is OK), answer
    assert words in answer.details


def test_s36_no_call_is_served_when_the_certificate_has_ended(server: Server, ssl: Path, tmp_path: Path) -> None:
    """The connection was made while it was good."""
    soon = issue(ssl, tmp_path / "soon", "mallory", start=-5 + 8 / 86400)
    with RawClient(server, soon) as caller:
        assert caller.status(f"users/mallory/jobs/{uuid.uuid4()}").code is NOT_FOUND

        def refused() -> bool:
            answer = caller.status(f"users/mallory/jobs/{uuid.uuid4()}")
            return answer.code is UNAUTHENTICATED and "has expired" in answer.details

        wait_until("its calls are refused", refused)


def test_s36_no_certificate(server: Server) -> None:
    with RawClient(server, None) as caller:
        assert caller.status("users/a/jobs/b").code is UNAVAILABLE


def _handshake(server: Server, user: str | None, version: tls.TLSVersion) -> bytes:
    """What the server says first to a client of that version; nothing when it refuses.

    It says so only after the handshake: a TLS 1.3 client has ended its own before its certificate is looked at.
    """
    context = tls.create_default_context(cafile=str(server.ssl / "root.pem"))
    context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    if user:
        context.load_cert_chain(server.ssl / f"{user}.pem", server.ssl / f"{user}-key.pem")
    plain = socket.create_connection(("127.0.0.1", server.port), 10)
    try:
        with plain, context.wrap_socket(plain, server_hostname="localhost") as wrapped:
            return wrapped.recv(1)
    except (tls.SSLError, ConnectionError):
        return b""


def test_s36_tls_1_2_is_refused(server: Server) -> None:
    assert _handshake(server, "client", tls.TLSVersion.TLSv1_3)
    assert not _handshake(server, "client", tls.TLSVersion.TLSv1_2)
    assert not _handshake(server, None, tls.TLSVersion.TLSv1_3)


@pytest.fixture(scope="module")
def jobs(server: Server, ssl: Path) -> Iterator[list[str]]:
    """The UUIDs of a job that runs and of one that has ended, both of tele-tester."""
    with RawClient(server, ssl / "client") as owner:
        running, ended = owner.start("sleep", "1000").uid, owner.start("true").uid
        owner.call_method("StopJob", OWNER, ended)
        yield [running, ended]
        assert owner.call_method("StopJob", OWNER, running).code is OK


def _paths(paths: list[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=[path.rpartition(".")[2] for path in paths])


@_paths(SERVED)
def test_s37_the_owner_is_served(server: Server, ssl: Path, path: str) -> None:
    """So that the refusals below are for who asks."""
    service, _, method = path.partition("/")
    with RawClient(server, ssl / "client") as owner:
        job = owner.start("sleep", "1000", stdin=True)
        assert owner.call_method(method, OWNER, job.uid, service).code is OK
        assert owner.call_method("DeleteJob", OWNER, job.uid).code is (NOT_FOUND if method == "DeleteJob" else OK)


@_paths(SERVED)
def test_s37_someone_elses_job_and_none_get_one_answer(server: Server, ssl: Path, jobs: list[str], path: str) -> None:
    service, _, method = path.partition("/")
    missing = str(uuid.uuid4())
    with RawClient(server, ssl / "bubba") as bubba:
        if method in OF_USERS:
            answers = [bubba.call_method(method, user, service=service) for user in (OWNER, "no-such-user", "-")]
            expected = DENIED
        else:
            names = [(user, job) for user in (OWNER, "bubba", "no-such-user") for job in (*jobs, missing)]
            answers = [bubba.call_method(method, *name, service) for name in names]
            expected = NOT_FOUND
    assert answers[0].code is expected
    assert all(answer == answers[0] for answer in answers), answers


@_paths(EVERY)
def test_s37_every_rpc_wants_a_user(server: Server, ssl: Path, jobs: list[str], tmp_path: Path, path: str) -> None:
    """Default-deny: a method added to the service is in this walk, and fails here when it does not ask who calls."""
    service, _, method = path.partition("/")
    with RawClient(server, issue(ssl, tmp_path / "nobody", "..")) as nobody, RawClient(server, ssl / "bubba") as bubba:
        codes = [caller.call_method(method, OWNER, jobs[0], service).code for caller in (nobody, bubba)]
    if path in UNSERVED:
        assert codes == [grpc.StatusCode.UNIMPLEMENTED] * 2
    else:
        assert codes == [UNAUTHENTICATED, DENIED if method in OF_USERS else NOT_FOUND]


def _listed(caller: RawClient, user: str) -> list[pb.JobStatus]:
    (body,) = caller.call_method("ListJobs", user).bodies
    return list(pb.ListJobsResponse.FromString(body).jobs)


def test_s37_a_list_has_the_callers_jobs_and_only_an_admins_has_everybodys(
    server: Server, ssl: Path, jobs: list[str], tmp_path: Path
) -> None:
    """Whatever the user is called: the name of everybody is no user's way to see them."""
    with RawClient(server, issue(ssl, tmp_path / "dash", "-")) as dash, RawClient(server, ssl / "admin") as admin:
        own = dash.start("true").uid
        answer = dash.call(f"/{SERVICE}/ListJobs", pb.ListJobsRequest())
        assert [job.name for job in pb.ListJobsResponse.FromString(answer.bodies[0]).jobs] == [f"users/-/jobs/{own}"]
        assert dash.call_method("ListJobs", "-").code is DENIED
        everybodys = {job.name for job in _listed(admin, "-")}
        assert {f"users/-/jobs/{own}", f"users/{OWNER}/jobs/{jobs[0]}"} <= everybodys
        assert {job.owner for job in _listed(admin, OWNER)} == {OWNER}
        assert _listed(admin, "no-such-user") == []


NEAR_OWNER = ["tele", "tele-teste", "tele-testers", "TELE-TESTER", "tele-tester ", " tele-tester", "tele_tester"]
NEAR_OWNER += ["tele\u2010tester", "tele-tester\u00a0", "tele-teste?", "*", "t%65le-tester"]
NEAR_ADMIN = ["admi", "admins", "Admin", "admin ", "\u0430dmin"]


@pytest.mark.parametrize("name", NEAR_OWNER + NEAR_ADMIN)
def test_s37_names_are_compared_exactly(server: Server, ssl: Path, jobs: list[str], tmp_path: Path, name: str) -> None:
    with RawClient(server, issue(ssl, tmp_path / "near", name)) as near:
        assert near.start("true").name.startswith(f"users/{name}/jobs/")  # a user, only another one
        for user in (OWNER, name):
            assert near.call_method("GetJobStatus", user, jobs[0]).code is NOT_FOUND
            assert near.call_method("StopJob", user, jobs[0]).code is NOT_FOUND
            assert near.call_method("DeleteJob", user, jobs[0]).code is NOT_FOUND
        assert near.call_method("ListJobs", OWNER).code is DENIED
        assert {job.owner for job in _listed(near, name)} == {name}
    for same in (OWNER, "admin"):  # of the same maker, for comparison
        with RawClient(server, issue(ssl, tmp_path / "same", same)) as caller:
            assert caller.call_method("GetJobStatus", OWNER, jobs[0]).code is OK


@pytest.mark.parametrize("admins", [(), ("boss",), ("admin",)], ids=lambda names: ",".join(names) or "none")
def test_s38_admin_is_who_is_configured(make_server: Callable[..., Server], ssl: Path, admins: tuple[str, ...]) -> None:
    """The name is nothing by itself: any user of the root could ask for a certificate with it."""
    server = make_server(admins=admins)
    with RawClient(server, ssl / "client") as owner, RawClient(server, ssl / "admin") as admin:
        job = owner.start("sleep", "1000", stdin=True).uid
        # The removal last: the others need the job.
        methods = sorted(METHODS, key=lambda method: (method in ("DeleteJob", "StopJob"), method == "DeleteJob"))
        codes = {method: admin.call_method(method, OWNER, job).code for method in methods}
        started, listed, everybody = (
            codes.pop("StartJob"),
            codes.pop("ListJobs"),
            admin.call_method("ListJobs", "-").code,
        )
    assert started is DENIED  # in another's name: not even an admin
    assert {listed, everybody} == {OK if "admin" in admins else DENIED}
    assert set(codes.values()) == {OK if "admin" in admins else NOT_FOUND}
    assert server.stop() == 0
