"""Bad input: one clear line of cause and remedy, exit code 125, no traceback."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest
from support.checkout import ROOT
from support.command_line import COMMAND, telehandler
from support.servers import Server

Done = subprocess.CompletedProcess


def refused(done: "Done[str]", *words: str) -> None:
    """Asserts one refusal that says `words`."""
    assert done.returncode == 125, done
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("telehandler: ")
    assert len(lines) == (2 if lines[-1].startswith("See '") else 1), lines
    for word in words:
        assert word in done.stderr, done.stderr


def pair(server: Server, user: str = "client", root: str = "root") -> list[str]:
    names = {"-c": f"{user}.pem", "-k": f"{user}-key.pem", "-r": f"{root}.pem"}
    return [word for flag, name in names.items() for word in (flag, str(server.ssl / name))]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "no command\nSee"),
        (["client"], "no command\nSee"),
        (["client", "run"], "no command"),
        (["local"], "no command"),
        (["client", "run", "--", ""], "cannot be read"),
        (["client", "run", "--bogus", "ls"], "--bogus"),
        (["bogus"], "bogus"),
        (["client", "bogus"], "bogus"),
        (["help", "client", "bogus"], "bogus"),
        (["client", "help", "bogus"], "See 'telehandler client --help'"),
        (["completion", "tcsh"], "tcsh"),
        (["client", "stop", "--stop-signal", "NOPE"], "NOPE"),
        (["client", "signal", "--signal", "NOPE"], "NOPE"),
        (["client", "stop", "--stop-timeout", "-1"], "--stop-timeout"),
        (["client", "ls", "--state", "asleep"], "'running'"),
        (["client", "ls", "--limit", "0"], "--limit"),
        (["client", "ls", "-q", "-o", "json"], "-q goes without -o"),
        (["client", "ls", "job"], "job"),
        (["client", "rm"], "JOB"),
        (["server", "--keep-jobs", "-1"], "--keep-jobs"),
        (["server", "--keep-age", "soon"], "--keep-age 'soon' is not a time"),
        (["server", "--keep-bytes", "0"], "--keep-bytes '0' must be more than 0"),
        (["client", "run", "-m", "many", "ls"], "512m"),
        (["client", "run", "-m", "9000000t", "ls"], "must be less"),
        (["client", "run", "--timeout", "1e17", "ls"], "must be less"),
        (["client", "run", "--cpus", "0", "ls"], "--cpus"),
        (["client", "run", "--pids-limit", "0", "ls"], "--pids-limit"),
        (["client", "run", "--device-read-iops", "0", "ls"], "--device-read-iops"),
        (["client", "run", "--timeout", "soon", "ls"], "1.5s"),
        (["client", "run", "--timeout", "-1s", "ls"], "--timeout"),
        (["client", "run", "--ulimit", "core=1", "ls"], "nofile=N or fsize=N"),
        (["client", "run", "--ulimit", "nofile=", "ls"], "nofile=N"),
        (["client", "run", "-e", "=x", "ls"], "NAME=VALUE"),
        (["client", "run", "--env-file", "/no/such", "ls"], "/no/such"),
        (["client", "run", "--", "-j", "FILE", "ls"], "our flags go before `--`"),
        (["client", "run", "--", "--jidfile=FILE", "ls"], "our flags go before `--`"),
        (["local", "--", "-m", "1g", "ls"], "our flags go before `--`"),
        (["client", "benchmark"], "no command"),
        (["client", "benchmark", "--watchers", "0", "ls"], "--watchers"),
        (["client", "benchmark", "--processes", "0", "ls"], "--processes"),
        (["client", "benchmark", "-o", "/no/such", "ls"], "cannot write files to /no/such"),
        (["client", "benchmark", "--", "--discard", "ls"], "our flags go before `--`"),
    ],
)
def test_usage(arguments: list[str], word: str, tmp_path: Path) -> None:
    refused(telehandler(*arguments, cwd=tmp_path), word)


@pytest.mark.parametrize("address", ["", "localhost", "localhost:", "localhost:x", "localhost:70000", ":6443"])
def test_bad_addresses(address: str) -> None:
    refused(telehandler("client", "status", "-s", address, "users/a/jobs/b"), "HOST:PORT")


def test_no_server_listens(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    done = telehandler("client", "run", "-s", f"localhost:{port}", *pair(server), "true")
    refused(done, f"nothing listens on localhost:{port}", "telehandler server")


def test_a_server_of_another_root(server: Server) -> None:
    done = telehandler("client", "run", "-s", f"localhost:{server.port}", *pair(server, root="bubba"), "true")
    refused(done, "is not from this root")


def test_files_that_are_missing_or_unreadable(server: Server, tmp_path: Path) -> None:
    refused(telehandler("client", "run", "-c", "/no/such.pem", "true"), "cannot be read", "make certs")
    words = ["client", "run", "-s", f"localhost:{server.port}", *pair(server)]
    refused(telehandler(*words, "-k", "/", "true"), "the key / cannot be read: Is a directory")
    empty = tmp_path / "empty.pem"
    empty.touch()
    refused(telehandler(*words, "-k", str(empty), "true"), "belongs together")
    refused(telehandler(*words, "-k", str(server.ssl / "bubba-key.pem"), "true"), "belongs together")
    refused(telehandler(*words, "-r", str(empty), "true"), "not a PEM certificate")


def test_unknown_jobs(server: Server, tmp_path: Path) -> None:
    words = ["client", "status", "-s", f"localhost:{server.port}", *pair(server)]
    refused(telehandler(*words, "users/tele-tester/jobs/00000000-0000-0000-0000-000000000000"), "no such job")
    refused(telehandler(*words, "-j", str(tmp_path / "none")), "no JOB is given", "No such file")
    refused(telehandler(*words, "no name"), "UUID")
    refused(telehandler(*words, "not-a-uuid"), "no such job")
    refused(telehandler(*words, "a/b"), "users/{user}/jobs/{uuid}")
    refused(telehandler(*words, "users/a/b/jobs/ab"), "users/{user}")
    refused(telehandler(*words, "a" * 64), "nor the beginning of a UUID")
    refused(telehandler(*words, ""), "nor the beginning of a UUID")


@pytest.mark.parametrize("verb", ["wait", "rm"])
def test_unknown_jobs_among_several(server: Server, tmp_path: Path, verb: str) -> None:
    words = ["client", verb, "-s", f"localhost:{server.port}", *pair(server)]
    done = telehandler(*words, "x y", "00000000-0000-0000-0000-000000000000", "a/b")
    assert (done.returncode, done.stdout) == (125, "")
    first, second, third = done.stderr.splitlines()
    assert first.startswith("telehandler: x y: 'x y' is no job's name or UUID")
    assert second == "telehandler: 00000000-0000-0000-0000-000000000000: no such job, or not yours"
    assert third == "telehandler: a/b: a job's name is users/{user}/jobs/{uuid}"


def test_several_jobs_of_no_server_are_told_once(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    for verb in ("wait", "rm"):
        done = telehandler("client", verb, "-s", f"localhost:{port}", *pair(server), "ab", "cd")
        refused(done, f"nothing listens on localhost:{port}")


def test_everybodys_jobs_are_for_admins(server: Server) -> None:
    done = telehandler("client", "ls", "-a", "-s", f"localhost:{server.port}", *pair(server))
    refused(done, "for admins")


def test_a_list_that_nobody_reads_to_its_end(server: Server) -> None:
    """As `ls | head -n 1`: no traceback, and the exit code of SIGPIPE, as of every verb."""
    words = ["client", "ls", "-s", f"localhost:{server.port}", *pair(server)]
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    command = [sys.executable, "-u", *COMMAND[1:], *words]  # unbuffered: it is told of at once
    done = subprocess.run(command, cwd=ROOT, stdout=write_fd, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(write_fd)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_profile_that_is_not_there(server: Server, tmp_path: Path) -> None:
    words = ["client", "run", "-s", f"localhost:{server.port}", *pair(server), "-j", str(tmp_path / "id")]
    refused(telehandler(*words, "--profile", "nope", "true"), "the policy has: host")
    refused(telehandler(*words, "-m", "999999g", "true"), "over", "the policy's maximum")
    refused(telehandler(*words, "-w", "relative", "true"), "absolute")


def test_the_port_is_in_use(server: Server, policy: Path, tmp_path: Path) -> None:
    state = server.home / "other-state"
    words = ["server", "-l", f"127.0.0.1:{server.port}", *pair(server, "server"), "--state-dir", str(state)]
    refused(telehandler(*words, "--helper-policy", str(policy)), "in use", "--listen")


def test_a_server_without_certificates(tmp_path: Path, as_root: None) -> None:
    refused(telehandler("server", cwd=tmp_path), "ssl/server.pem cannot be read", "make certs")
    refused(telehandler("server", "--user", "root", cwd=tmp_path), "never runs as root")
    refused(telehandler("server", "--user", "no-such-user", cwd=tmp_path), "no user no-such-user")


def test_a_directory_of_roots_is_not_taken_for_the_state(server: Server, policy: Path, place: Path) -> None:
    """A slip such as --state-dir /var/lib must leave it as it is; an empty one, made for this, is taken."""
    full = place / "full"
    (full / "of-roots").mkdir(parents=True)
    before = full.stat()
    second = Server(place, server.ssl, policy, state=full)
    refused(telehandler(*second.server_arguments()), "is root's and not empty", "--state-dir")
    after = full.stat()
    assert (after.st_uid, after.st_mode) == (before.st_uid, before.st_mode)


def test_a_relative_path_is_the_users_own(policy: Path, as_root: None) -> None:
    """The helper runs in another directory, and would refuse it."""
    done = telehandler("local", "--helper-policy", policy.name, "--", "echo", "here", cwd=policy.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "here\n", "")


def test_no_cgroup_v2(policy: Path, tmp_path: Path, as_root: None) -> None:
    done = telehandler("local", "--cgroup-root", str(tmp_path), "--helper-policy", str(policy), "true")
    assert done.returncode == 125
    assert f"no cgroup v2 at or below {tmp_path}" in done.stderr
    assert "Traceback" not in done.stderr


def test_not_enough_rights(as_root: None, place: Path) -> None:
    """As a user with neither sudo nor the wrapper."""
    command = [
        "/usr/bin/python3",
        "-I",
        "-S",
        "-c",
        f"import sys; sys.path[:] = {_readable(place)!r}; {_MAIN}",
        "local",
        "true",
    ]
    done = subprocess.run(
        command, user=65534, group=65534, extra_groups=[], cwd="/", capture_output=True, text=True, check=False
    )
    refused(done, "make install", "root")


_MAIN = "from telehandler.cli import main; main()"


def _readable(place: Path) -> list[str]:
    """A path of imports that any user may read."""
    for package in ("telehandler", "helper"):
        shutil.copytree(ROOT / package, place / "bare" / package, dirs_exist_ok=True)
    shutil.copytree(Path(click.__file__).parent, place / "bare" / "click", dirs_exist_ok=True)
    return [str(place / "bare"), *(path for path in sys.path if path.startswith("/usr/lib/python3"))]


def test_config_file_between_environment_and_default(tmp_path: Path) -> None:
    config = tmp_path / "telehandler" / "config.toml"
    config.parent.mkdir()
    config.write_text('server = "localhost:1"\n[contexts.two]\nserver = "localhost:2"\n')
    env = {"XDG_CONFIG_HOME": str(tmp_path)}
    words = ["client", "status", "-c", "/no", "users/a/jobs/b"]

    def server_of(done: "Done[str]") -> str:
        return done.stderr

    bad = {"TELEHANDLER_SERVER": "environment"}
    assert "'environment'" in server_of(telehandler(*words, env=env | bad))
    assert "'flag'" in server_of(telehandler("client", "status", "-s", "flag", "x/y", env=env | bad))
    refused(telehandler(*words, env=env | {"TELEHANDLER_CONTEXT": "three"}), "no context 'three'", "two")
    config.write_text('sever = "localhost:1"\n')
    refused(telehandler(*words, env=env), "sever", "must be one of")
    config.write_text("server = \n")
    refused(telehandler(*words, env=env), "config.toml")
