"""`run --name` and `--label`: a job by its name wherever a job is meant, and lists by both."""

import json
from contextlib import suppress
from typing import Any

import grpc
import pytest
from support.raw_client import SERVICE, RawClient
from support.servers import Server
from support.state_fixtures import list_jobs
from support.wait import wait_until

from telehandler.pb import telehandler_pb2 as pb

Code = grpc.StatusCode


def _detach(server: Server, *flags: str, command: tuple[str, ...] = ("sleep", "1000"), user: str = "client") -> str:
    done = server.client("run", "-d", *flags, "--", *command, user=user)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


def _code(call: Any) -> Code:
    with suppress(grpc.RpcError):  # it is in the code
        list(call)
    return call.code()  # type: ignore[no-any-return]


def _remove_all(server: Server) -> None:
    for user in ("client", "bubba"):
        if names := server.client("ls", "-q", user=user).stdout.decode().split():
            assert server.client("rm", "-f", *names, user=user).returncode == 0


def test_a_name_works_wherever_a_job_is_meant(server: Server) -> None:
    name = _detach(server, "--name", "nightly", command=("sh", "-c", "echo hello; exec sleep 1000"))
    _detach(server, "--name", "nightly", user="bubba")  # names are each user's own
    status = server.job_status("nightly")
    assert (status["name"], status["given_name"]) == (name, "nightly")
    assert server.job_status(f"{name.rpartition('/')[0]}/nightly")["name"] == name
    assert server.job_status(name[-36:-20])["name"] == name  # the beginning of its UUID still works
    wait_until("it says so", lambda: server.client("watch", "-F", "nightly").stdout == b"hello\n")
    assert server.client("signal", "nightly").stdout.decode() == f"{name}\n"
    assert server.client("wait", "nightly").returncode == 143
    assert server.client("stop", "nightly").returncode == 0
    assert server.client("rm", "nightly").stdout.decode() == f"{name}\n"
    assert server.client("status", "nightly").stderr == b"telehandler: no such job, or not yours\n"
    assert server.client("status", "nightly", user="bubba").returncode == 0
    _remove_all(server)


def test_a_name_is_one_jobs_as_long_as_that_is_kept(server: Server) -> None:
    first = _detach(server, "--name", "db", command=("true",))  # could begin a UUID: a name all the same
    assert server.client("wait", "db").returncode == 0
    for flags in ([], ["--dry-run"]):
        done = server.client("run", "--name", "db", *flags, "--", "true")
        assert (done.returncode, done.stdout) == (125, b"")
        assert f"the name db is that of the job {first.rpartition('/')[2]}".encode() in done.stderr
    with RawClient(server, server.ssl / "client") as caller:
        answer = caller.call(f"/{SERVICE}/StartJob", pb.StartJobRequest(argv=[b"true"], given_name="db"))
        assert answer.code is Code.ALREADY_EXISTS
    assert server.client("rm", "db").returncode == 0
    second = _detach(server, "--name", "db", command=("true",))
    assert server.job_status("db")["name"] == second
    _remove_all(server)


def test_of_starts_at_once_one_has_the_name(server: Server) -> None:
    with RawClient(server, server.ssl / "client") as caller:
        request = pb.StartJobRequest(argv=[b"true"], given_name="race")
        calls = [caller.start_call(f"/{SERVICE}/StartJob", request) for _ in range(8)]
        codes = [_code(call) for call in calls]
    assert sorted(codes, key=lambda code: code.value[0]) == [Code.OK, *[Code.ALREADY_EXISTS] * 7]
    assert len(list_jobs(server, "--filter", "name=race")) == 1
    _remove_all(server)


def test_a_name_is_before_the_beginning_of_a_uuid(server: Server) -> None:
    other = _detach(server)
    name = _detach(server, "--name", other[-36:-33])
    assert server.job_status(other[-36:-33])["name"] == name
    assert server.job_status(other[-36:-28])["name"] == other  # what `ls` shows is never a name
    done = server.client("run", "--name", other[-36:-28], "--", "true")
    assert (done.returncode, b"the beginning of a UUID" in done.stderr) == (125, True)
    _remove_all(server)


@pytest.mark.parametrize("name", ["-x", "a b", "a/b", "ä", "x" * 64, "deadbeef", "0" * 32, "_x", "a\n"])
def test_what_is_no_name_is_refused(server: Server, name: str) -> None:
    done = server.client("run", "--name", name, "--", "true")
    assert (done.returncode, b"1 to 63 letters" in done.stderr) == (125, True)


def test_ls_filters_by_label_name_and_state(server: Server) -> None:
    ci = _detach(server, "-l", "ci", "--label", "branch=main", "--name", "build-1")
    done = _detach(server, "--label", "branch=a=b", "--name", "build-2", command=("true",))
    plain = _detach(server)
    assert server.client("wait", done).returncode == 0

    def found(*filters: str) -> list[str]:
        return [job["name"] for job in list_jobs(server, *(word for text in filters for word in ("--filter", text)))]

    assert found() == [plain, done, ci]
    assert found("label=branch") == [done, ci]
    assert found("label=branch=main") == found("label=ci", "label=branch") == [ci]
    assert found("label=branch=a=b") == [done]
    assert found("label=branch=main", "label=branch=a=b") == found("label=none") == []
    assert found("name=build") == found("name=-1", "name=-2") == [done, ci]
    assert found("name=build", "state=running") == [ci]
    assert found("state=running", "state=completed") == [plain, done, ci]
    assert list_jobs(server, "--filter", "label=ci")[0]["labels"] == {"branch": "main", "ci": ""}
    table = server.client("ls").stdout.decode().splitlines()
    assert [line.split()[1] for line in table] == ["NAME", "-", "build-2", "build-1"]
    text = server.client("status", "build-1").stdout.decode().splitlines()
    assert [line.split() for line in text if line.startswith(("given", "labels"))] == [
        ["given", "name", "build-1"],
        ["labels", "branch=main", "ci"],
    ]
    _remove_all(server)


@pytest.mark.parametrize("text", ["nope=1", "label=", "name", "state=nope", ""])
def test_what_is_no_filter_is_a_usage_error(server: Server, text: str) -> None:
    done = server.client("ls", "--filter", text)
    assert (done.returncode, b"'--filter'" in done.stderr) == (125, True)


def test_pages_of_a_filtered_list_are_its_own(server: Server) -> None:
    names = [_detach(server, "--label", f"n={number}", command=("true",)) for number in range(3)]
    with RawClient(server, server.ssl / "client") as caller:

        def page(**fields: object) -> tuple[Code, pb.ListJobsResponse]:
            answer = caller.call(f"/{SERVICE}/ListJobs", pb.ListJobsRequest(page_size=2, **fields))  # type: ignore[arg-type]
            return answer.code, pb.ListJobsResponse.FromString(b"".join(answer.bodies))

        _, first = page(labels=["n"])
        _, second = page(labels=["n"], page_token=first.next_page_token)
        assert [job.name for job in (*first.jobs, *second.jobs)] == names[::-1]
        assert page(page_token=first.next_page_token)[0] is Code.INVALID_ARGUMENT
        for wrong in ({"labels": ["a b"]}, {"labels": ["x"] * 65}, {"name_contains": ["x"] * 65}, {"reference": "a b"}):
            assert page(**wrong)[0] is Code.INVALID_ARGUMENT
    _remove_all(server)


@pytest.mark.parametrize(
    "fields",
    [
        {"labels": {"": "x"}},
        {"labels": {"a b": "x"}},
        {"labels": {"a": "x" * 1025}},
        {"labels": {"a": "\0"}},
        {"labels": {str(number): "" for number in range(65)}},
        {"max_restarts": 1},
        {"restart_policy": 9},
        {"restart_policy": 2, "remove_after": {"seconds": 0}},
        {"remove_after": {"seconds": 86_401}},
        {"remove_after": {"seconds": -1}},
        {"stop_grace": {"seconds": 3601}},
        {"stop_signal": 65},
        {"stop_signal": -1},
    ],
)
def test_what_cannot_be_is_refused(server: Server, fields: dict[str, object]) -> None:
    with RawClient(server, server.ssl / "client") as caller:
        request = pb.StartJobRequest(argv=[b"true"], validate_only=True, **fields)  # type: ignore[arg-type]
        assert caller.call(f"/{SERVICE}/StartJob", request).code is Code.INVALID_ARGUMENT


def test_a_stop_is_as_the_job_was_started_to_be_stopped(server: Server) -> None:
    traps = "trap 'echo hup' HUP; trap 'echo term' TERM; echo up; while :; do sleep 0.02; done"
    for flags, said, grace in (([], b"hup", 0.3), (["--stop-signal", "TERM"], b"term", 0.3)):
        name = _detach(server, "--stop-signal", "HUP", "--stop-timeout", "0.3", command=("sh", "-c", traps))
        wait_until("it has its traps", lambda name=name: server.client("watch", "-F", name).stdout)  # type: ignore[misc]
        assert server.job_status(name)["stop_timeout"] == grace
        assert server.client("stop", *flags, name).returncode == 0
        status = server.job_status(name)
        assert (status["state"], status["exit_code"]) == ("stopped", 137)
        assert said in server.client("watch", name).stdout.split()
    _remove_all(server)


def test_an_admin_finds_a_users_job_by_its_name(make_server: object) -> None:
    server: Server = make_server(admins=("admin",))  # type: ignore[operator]
    name = _detach(server, "--name", "mine")
    done = server.client("status", "-o", "json", "users/tele-tester/jobs/mine", user="admin")
    assert json.loads(done.stdout)["name"] == name
    assert server.client("status", "mine", user="admin").returncode == 125
    assert server.client("status", "users/tele-tester/jobs/mine", user="bubba").returncode == 125
