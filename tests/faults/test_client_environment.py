"""R23: whoever starts the command line has signals ignored or blocked, fds closed, a deleted directory, odd bytes."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checkout import ROOT
from support.command_line import COMMAND, local_command
from support.servers import Server, free_address
from support.wait import DEADLINE_S, wait_until

Done = subprocess.CompletedProcess[bytes]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}

# A caller of which everything is as bad as it can be; then the command line, in its place.
_CALLER = """
import os, signal, sys
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, *map(int, sys.argv[1].split())}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
for fd in map(int, sys.argv[2].split()):
    os.close(fd)
os.execv(sys.argv[3], sys.argv[3:])
"""


def _caller(*command: str, fds: str = "", default: str = "") -> list[str]:
    """`fds` are closed; all signals are ignored but those that are `default`, and all are blocked."""
    return [sys.executable, "-I", "-S", "-c", _CALLER, default, fds, *command]


def _run(command: list[str], **options: Any) -> Done:
    options = {"cwd": ROOT, "env": ENV, "stdin": subprocess.DEVNULL, **options}
    return subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=False, **options)


FDS = ["", "0", "2", "0 2", "0 1 2"]


@pytest.mark.parametrize("fds", FDS)
@pytest.mark.parametrize("where", ["run", "local"])
def test_r23_a_job_is_what_it_always_is(server: Server, policy: Path, where: str, fds: str) -> None:
    job = ["--", "sh", "-c", "test -t 0 || exit 7"]
    command = local_command(policy, *job) if where == "local" else server.client_command("run", *job)
    done = _run(_caller(*command, fds=fds))
    assert (done.returncode, done.stdout, done.stderr) == (7, b"", b"")


def test_r23_so_is_a_benchmark(server: Server) -> None:
    words = ["--discard", "--watchers", "2", "--processes", "2", "--", "echo", "x"]
    done = _run(_caller(*server.client_command("benchmark", *words), fds="0"))
    assert done.returncode == 0, done.stderr
    assert b"all 2 watchers got what the server has" in done.stdout


def test_r23_so_are_certificates(place: Path) -> None:
    done = _run(_caller(sys.executable, "-m", "telehandler.certs", str(place / "more"), fds="0 2"))
    assert (done.returncode, done.stderr) == (0, b"")
    assert (place / "more" / "admin-key.pem").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("fds", ["0", "2", "0 1 2"])
def test_r23_so_is_a_server(make_server: Callable[..., Server], ssl: Path, place: Path, policy: Path, fds: str) -> None:
    """It runs jobs, which end with their own code, and ends in order."""
    server = Server(place, ssl, policy, listen=free_address())
    server.port = int(server.listen.rpartition(":")[2])
    words = ["server", "-l", server.listen, "--state-dir", str(server.state), "--helper-policy", str(policy)]
    for flag, name in (("-c", "server.pem"), ("-k", "server-key.pem"), ("-r", "root.pem")):
        words += [flag, str(ssl / name)]
    process = subprocess.Popen(_caller(*COMMAND, *words, fds=fds), cwd=ROOT)
    try:
        wait_until("it serves", lambda: server.client("ls").returncode == 0)
        done = server.client("run", "--", "sh", "-c", "echo out; echo err >&2; exit 5")
        assert (done.returncode, done.stdout, done.stderr) == (5, b"out\n", b"err\n")
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait()


# A working directory that is no longer there


def _in_deleted(tmp_path: Path, command: list[str]) -> Done:
    place = tmp_path / "gone"
    place.mkdir()
    return _run(["/bin/sh", "-c", f'rmdir {place}; exec "$@"', "sh", *command], cwd=place)


def test_r23_a_deleted_directory(server: Server, policy: Path, place: Path, tmp_path: Path) -> None:
    for command in (server.client_command("run", "--", "pwd"), local_command(policy, "--", "pwd")):
        done = _in_deleted(tmp_path, command)
        assert done.returncode == 0, done.stderr
        assert done.stderr == b""
    assert done.stdout == b"/\n"  # of local, whose own directory is the job's
    done = _in_deleted(tmp_path, [*COMMAND, "server", "--helper-policy", str(policy)])
    assert done.returncode == 125
    assert done.stderr.splitlines() == [
        b"telehandler: the working directory has been deleted: name ssl/server.pem by an absolute path"
    ]
    done = _in_deleted(tmp_path, [*COMMAND, "local", "--helper-policy", "policy.toml", "--", "true"])
    assert (done.returncode, len(done.stderr.splitlines())) == (125, 1)
    assert b"has been deleted" in done.stderr


def test_r23_a_server_in_a_directory_of_any_name(
    make_server: Callable[..., Server], place: Path, as_root: None
) -> None:
    odd = place / os.fsdecode(b"\xff \x1b")
    odd.mkdir()
    server = make_server(cwd=odd, env=ENV, state=odd / os.fsdecode(b"state-\xfe"))
    done = server.client("run", "--", "pwd")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"/\n", b"")  # a job does not see it
    assert server.stop() == 0


# Proxies

PROXIES = ["http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "GRPC_ADDRESS_HTTP_PROXY"]
NOBODY = dict.fromkeys(PROXIES, "http://127.0.0.1:1") | {
    "GRPC_ADDRESS_HTTP_PROXY": "127.0.0.1:1",
    "GRPC_ADDRESS_HTTP_PROXY_ENABLED_ADDRESSES": "127.0.0.1,::1,127.0.0.0/8",
}


@pytest.mark.parametrize("names", [*([name] for name in PROXIES), PROXIES])
def test_r23_no_proxy_is_used(server: Server, names: list[str]) -> None:
    env = ENV | {name: NOBODY[name] for name in names} | {"no_proxy": "", "no_grpc_proxy": ""}
    if "GRPC_ADDRESS_HTTP_PROXY" in names:
        env |= {"GRPC_ADDRESS_HTTP_PROXY_ENABLED_ADDRESSES": NOBODY["GRPC_ADDRESS_HTTP_PROXY_ENABLED_ADDRESSES"]}
    done = _run(server.client_command("ls", "-q", "--limit", "10000"), env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    words = ["--discard", "--watchers", "1", "--", "echo", "x"]
    assert _run(server.client_command("benchmark", *words), env=env).returncode == 0


# Any bytes, any locale

ODD = b"\xff\xfe\x80 \x1b[31m'\xc3\xa9"
LOCALES = [
    {"LC_ALL": "C.UTF-8"},
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"LC_ALL": "no_SUCH.locale"},
    {"PYTHONIOENCODING": "ascii:strict"},
    {"PYTHONIOENCODING": "latin-1"},
]


@pytest.mark.parametrize("locale", LOCALES)
def test_r23_a_job_gets_the_bytes_whatever_the_locale(
    server: Server, policy: Path, tmp_path: Path, locale: dict[str, str]
) -> None:
    """As arguments and variables; the lines of a file of variables end in a newline and in nothing else."""
    value = "a\x0bb\x0c\x1c\x1d\x1e\x85\u2028c".encode() + ODD
    file = tmp_path / os.fsdecode(b"vars-\xff")
    file.write_bytes(b"# none\n\nFILE=" + value + b"\n")
    env = {os.fsencode(key): os.fsencode(text) for key, text in (ENV | locale).items()} | {b"OWN": ODD}
    options: list[str | bytes] = ["-e", b"GIVEN=" + ODD, "-e", "OWN", "--env-file", os.fsencode(file)]
    job: list[str | bytes] = ["--", "sh", "-c", 'printf %s. "$FILE" "$GIVEN" "$OWN" "$1"', "sh", ODD]
    for command in (server.client_command("run"), local_command(policy)):
        done = _run([*command, *options, *job], env=env)  # type: ignore[list-item]
        assert (done.returncode, done.stdout) == (0, value + b"." + (ODD + b".") * 3), done.stderr
    for words in (
        ["ls", "--limit", "10000"],
        ["ls", "-o", "json", "--limit", "10000"],
        ["status"],
        ["status", "-o", "json"],
    ):
        done = _run(server.client_command(*words), env=env)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"\x1b" not in done.stdout
        assert done.stdout.replace(b"\n", b"").decode("latin-1" if "latin" in str(locale) else "utf-8")


BAD = os.fsdecode(b"\xff\x1b")


@pytest.mark.parametrize(
    "words",
    [
        *(["run", "-e", f"{BAD}=x"], ["run", "-w", f"/{BAD}"], ["run", "--profile", BAD], ["run", "-m", BAD]),
        *(["run", "--timeout", BAD], ["run", "--ulimit", BAD], ["run", "--env-file", BAD], ["run", "--cpus", BAD]),
        *(["run", "-e", "=x"], ["run", f"--{BAD}"], ["run", "--", BAD], ["run", "--log-max-size", BAD]),
        *(["watch", BAD], ["watch", "--since", BAD], ["watch", "--since", "0001-01-01", BAD], ["status", f"a/{BAD}"]),
        *(["status", BAD], ["wait", BAD], ["rm", BAD], ["stop", BAD], ["stop", "--stop-signal", BAD], ["ls", BAD]),
        *(
            ["ls", "--state", BAD],
            ["ls", "-s", f"{BAD}:1"],
            ["ls", "-s", "x" * 300 + ":1"],
            ["ls", "-s", "h:" + "9" * 5000],
        ),
        *(
            ["ls", "-c", BAD],
            ["ls", "-k", BAD],
            ["ls", "-r", BAD],
            ["status", "-j", BAD],
            ["benchmark", "-o", BAD, "x"],
        ),
    ],
)
def test_r23_odd_bytes_in_an_option_are_one_clear_error(server: Server, words: list[str]) -> None:
    verb, *rest = words
    done = _run([*server.client_command(verb), *rest, *(["--", "true"] if verb == "run" and "--" not in rest else [])])
    lines = done.stderr.decode().splitlines()
    assert done.returncode in (125, 127), done
    assert lines[0].startswith("telehandler: ")
    assert len(lines) == (2 if lines[-1].startswith("See '") else 1), lines
    assert all(line.isprintable() for line in lines), lines
    assert "Traceback" not in done.stderr.decode()
    assert "fault in telehandler" not in done.stderr.decode()


@pytest.mark.parametrize("name", ["SERVER", "CERT", "KEY", "ROOT", "JIDFILE", "CONTEXT"])
def test_r23_odd_bytes_in_a_variable_of_ours(ssl: Path, tmp_path: Path, name: str) -> None:
    good = {"SERVER": "localhost:1", "CERT": "client.pem", "KEY": "client-key.pem", "ROOT": "root.pem"}
    values = {f"TELEHANDLER_{key}": os.fsencode(text if key == "SERVER" else ssl / text) for key, text in good.items()}
    config = tmp_path / "telehandler" / "config.toml"
    config.parent.mkdir()
    config.write_text("[contexts.one]\n")
    values |= {f"TELEHANDLER_{name}": b"\xff\x1b", "XDG_CONFIG_HOME": os.fsencode(tmp_path)}
    done = _run([*COMMAND, "client", "status"], env=ENV | values)
    (line,) = done.stderr.decode().splitlines()
    assert done.returncode == 125
    assert line.startswith("telehandler: ")
    assert line.isprintable()
    assert "fault in telehandler" not in line


@pytest.mark.parametrize(
    "text", [b'jidfile = "a\\u0000b"', b'cert = "a\\u0000b"', b"\xff", b'server = "\\u001b:1"', b"x" * 9]
)
def test_r23_odd_bytes_in_the_file_of_settings(tmp_path: Path, text: bytes, ssl: Path) -> None:
    config = tmp_path / "telehandler" / "config.toml"
    config.parent.mkdir()
    config.write_bytes(text)
    pair = ["-k", str(ssl / "client-key.pem"), "-r", str(ssl / "root.pem")]
    pair += [] if b"cert" in text else ["-c", str(ssl / "client.pem")]
    done = _run([*COMMAND, "client", "status", *pair], env=ENV | {"XDG_CONFIG_HOME": str(tmp_path)})
    (line,) = done.stderr.decode().splitlines()
    assert done.returncode == 125
    assert line.isprintable()
    assert "fault in telehandler" not in line


def test_r23_signals_that_are_ignored_stay_so(server: Server) -> None:
    """As nohup(1) and a shell's background jobs have it: neither the client nor its job hears of them."""
    command = server.client_command("run", "--", "sh", "-c", "echo up; read x < /dev/zero; sleep .5; exit 6")
    own = f"{int(signal.SIGTERM)}"
    process = subprocess.Popen(_caller(*command, default=own), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"up\n"
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        process.send_signal(number)
    name = server.jidfile().read_text().strip()
    assert server.client("status", "-o", "json", name).stdout.count(b'"running"') == 1
    process.terminate()  # which was not ignored: it is the job's
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert errors.splitlines()[0] == b"telehandler: SIGTERM passed to the job"
    assert process.returncode == 128 + signal.SIGTERM
