"""`run -it`, `local -it` and `attach`: a terminal of the job's own, and the user's as it was when they end."""

import os
import re
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.command_line import local_command
from support.servers import Server, free_address
from support.user_terminal import UserTerminal
from support.wait import DEADLINE_S, wait_until

PROMPT = b"$ "
BEGUN = b"begun\r\n"
BASH = ["-e", "PS1=$ ", "--", "bash", "--norc", "--noprofile"]
DETACHED = b"detached; the job runs on: `telehandler client attach "
Open = Callable[..., UserTerminal]


@pytest.fixture(params=["server", "local"])
def open_terminal(request: pytest.FixtureRequest, server: Server, policy: Path) -> Open:
    """A terminal with `client run -it` or `local -it` in it."""

    def start(*arguments: str, **options: object) -> UserTerminal:
        if request.param == "server":
            return UserTerminal(server.client_command("run", "-it", *arguments), **options)  # type: ignore[arg-type]  # as given
        return UserTerminal(local_command(policy, "-it", *arguments), **options)  # type: ignore[arg-type]

    return start


def test_it_is_a_terminal_of_its_own_with_the_users_size_and_kind(open_terminal: Open) -> None:
    script = "while [ \"$(stty size)\" = '24 80' ]; do :; done; tty; stty size; echo $TERM; test -t 1 -a -t 2; echo $?"
    with open_terminal("--", "sh", "-c", script, rows=33, columns=101, term="vt220") as terminal:
        code, seen = terminal.end()
        assert (code, terminal.restored) == (0, True)
        assert re.fullmatch(rb"/dev/pts/\d+\r\n33 101\r\nvt220\r\n0\r\n", seen), seen


def test_a_variable_that_is_given_is_stronger_than_the_users_terminal(open_terminal: Open) -> None:
    with open_terminal("-e", "TERM=ansi", "--", "sh", "-c", "echo $TERM") as terminal:
        assert terminal.end() == (0, b"ansi\r\n")


def test_it_follows_the_users_size(open_terminal: Open) -> None:
    script = "trap 'stty size' WINCH; echo ready; while :; do read line; done"
    with open_terminal("--", "sh", "-c", script) as terminal:
        terminal.until(b"ready")
        began = time.monotonic()
        terminal.resize(31, 97)
        terminal.until(b"31 97")
        assert time.monotonic() - began < 1
        terminal.type(b"\x03")
        assert terminal.end()[0] == 130
        assert terminal.restored


def test_a_shell_with_job_control(open_terminal: Open) -> None:
    """Ctrl-Z, Ctrl-C, Ctrl-\\ and Ctrl-D are the job's."""
    with open_terminal(*BASH) as terminal:
        terminal.ask(PROMPT, b"echo begun; cat\n")
        terminal.ask(BEGUN, b"echoed\n")
        terminal.ask(b"echoed\r\nechoed", b"\x1a")
        terminal.until(b"Stopped")
        terminal.ask(PROMPT, b"jobs -p | wc -l; fg\n")
        terminal.until(b"\r1\r\n")
        terminal.ask(b"cat\r\n", b"\x03")
        terminal.ask(PROMPT, b"echo code $?; echo begun; cat\n")
        terminal.until(b"code 130")
        terminal.ask(BEGUN, b"\x1c")
        terminal.until(b"Quit")
        terminal.ask(PROMPT, b"\x04")
        assert terminal.end()[0] == 131
        assert terminal.restored


def test_the_python_prompt_is_usable(open_terminal: Open) -> None:
    with open_terminal("--", "/usr/bin/python3", "-q") as terminal:
        terminal.ask(b">>> ", b"6 * 7\n")
        terminal.until(b"42")
        terminal.ask(b">>> ", b"\x1b[A\n")  # the line before
        terminal.until(b"6 * 7")
        terminal.until(b"42")
        terminal.ask(b">>> ", b"\x04")
        assert terminal.end()[0] == 0
        assert terminal.restored


def test_less_and_vi_draw_the_whole_screen(open_terminal: Open) -> None:
    with open_terminal(*BASH, rows=20, columns=60) as terminal:
        terminal.ask(PROMPT, b"seq 1000 > /tmp/lines; less /tmp/lines\n")
        terminal.ask(b"\n19", b"G")
        terminal.ask(b"1000", b"q")
        terminal.ask(PROMPT, b"vi -u NONE /tmp/lines\n")
        terminal.until(b"19")
        terminal.type(b":%s/1000/abcd/\r:wq\r")
        terminal.ask(PROMPT, b"tail -n 1 /tmp/lines; exit\n")
        terminal.until(b"abcd")
        assert terminal.end()[0] == 0
        assert terminal.restored


def test_top_redraws_and_ends(open_terminal: Open) -> None:
    with open_terminal("--", "top", "-d", "0.2") as terminal:
        for _ in range(3):
            terminal.until(b"load average")
        terminal.type(b"q")
        assert terminal.end()[0] == 0
        assert terminal.restored


def test_much_that_is_pasted_arrives(open_terminal: Open) -> None:
    """More than a terminal holds; a program that reads in raw mode loses none of it."""
    count = 300_000
    with open_terminal("--", "sh", "-c", f"stty raw -echo; echo ready; head -c {count} | wc -c") as terminal:
        terminal.until(b"ready")
        for _ in range(count // 1000):
            terminal.type(b"x" * 1000)
        terminal.until(b"%d" % count)
        assert terminal.end()[0] == 0


@pytest.mark.parametrize("flags", ["-it", "-t"])
def test_without_a_terminal_there_is_none(server: Server, policy: Path, flags: str) -> None:
    for command in (server.client_command("run", flags, "true"), local_command(policy, flags, "true")):
        done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        assert (done.returncode, done.stdout) == (125, b"")
        assert done.stderr == b"telehandler: the input device is not a TTY\n"


def test_a_detached_job_has_the_usual_size(server: Server) -> None:
    name = server.client("run", "-dit", "--", "sh", "-c", "stty size; tty").stdout.decode().strip()
    done = server.client("watch", name)
    assert (done.returncode, done.stdout) == (0, b"24 80\r\n/dev/pts/0\r\n")


def test_the_keys_detach_and_attach_comes_back(server: Server) -> None:
    with UserTerminal(server.client_command("run", "-it", *BASH)) as terminal:
        terminal.ask(PROMPT, b"stty -echo; kept=yes; echo set\n")
        terminal.until(b"\rset")
        terminal.ask(PROMPT, b"\x10x\x10")  # ctrl-p and another: passed on; the second one waits for what follows
        terminal.type(b"\x11")
        code, seen = terminal.end()
        assert (code, terminal.restored) == (0, True)
        assert DETACHED in seen
        name = seen.split(DETACHED)[1].split(b"`")[0].decode()
    with UserTerminal(server.client_command("attach", name)) as terminal:
        wait_until("it is attached", lambda: terminal.raw)
        terminal.type(b"\x15echo still $kept\n")
        terminal.ask(b"still yes", b"exit 6\n")
        assert terminal.end()[0] == 6
        assert terminal.restored
    output = server.client("watch", name)
    assert output.returncode == 6
    assert b"set" in output.stdout
    assert b"still yes" in output.stdout


def test_other_keys_may_detach(server: Server) -> None:
    with UserTerminal(server.client_command("run", "-it", "--detach-keys", "ctrl-],q", "--", "cat")) as terminal:
        terminal.type(b"\x10\x11\x1dx")
        terminal.ask(b"x", b"\x1dq")
        assert terminal.end()[0] == 0
        assert terminal.restored
    for keys in ("ctrl-", "ctrl-1", "a,,b", "ctrl-pp"):
        done = server.client("run", "-it", "--detach-keys", keys, "--", "true")
        assert done.returncode == 125
        assert b"are no keys such as" in done.stderr
    server.client("stop", "--stop-timeout", "0")


def test_a_second_watcher_just_watches(server: Server) -> None:
    with UserTerminal(server.client_command("run", "-it", *BASH)) as terminal:
        terminal.until(PROMPT)
        with server.start_watcher(server.jidfile().read_text().strip()) as watcher:
            terminal.type(b"echo $((40 + 2)); exit\n")
            assert terminal.end()[0] == 0
            out, _ = watcher.communicate(timeout=DEADLINE_S)
            assert b"\r42\r\n" in out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_the_client_detaches_and_restores(server: Server, number: int) -> None:
    with UserTerminal(server.client_command("run", "-it", *BASH)) as terminal:
        terminal.until(PROMPT)
        assert terminal.raw
        terminal.process.send_signal(number)
        code, seen = terminal.end()
        assert (code, terminal.restored) == (128 + number, True)
        assert DETACHED in seen
    assert server.job_status()["state"] == "running"
    server.client("stop", "--stop-timeout", "0")


def test_local_ends_its_shell_as_when_a_terminal_goes(policy: Path) -> None:
    with UserTerminal(local_command(policy, "-it", *BASH)) as terminal:
        terminal.until(PROMPT)
        began = time.monotonic()
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.end()[0] != 0
        assert time.monotonic() - began < 8  # not by the end of the grace
        assert terminal.restored


@pytest.fixture
def own_server(make_server: Callable[..., Server]) -> Iterator[Server]:
    server = make_server(listen=free_address())
    yield server
    server.stop()


def test_a_lost_server_restores_the_terminal(own_server: Server) -> None:
    with UserTerminal(own_server.client_command("run", "-it", *BASH)) as terminal:
        terminal.until(PROMPT)
        own_server.stop()
        terminal.end()
        assert terminal.restored


def test_a_session_goes_on_when_the_api_is_killed(own_server: Server) -> None:
    with UserTerminal(own_server.client_command("run", "-it", *BASH)) as terminal:
        terminal.ask(PROMPT, b"stty -echo; kept=yes; echo set\n")
        terminal.until(b"\rset")
        terminal.until(PROMPT)
        os.kill(own_server.children()["api"], signal.SIGKILL)
        terminal.type(b"echo still $kept; exit 9\n")
        terminal.until(b"still yes")
        assert terminal.end()[0] == 9
        assert terminal.restored


def test_the_terminal_is_raw_and_no_more(server: Server) -> None:
    """As cfmakeraw(3) has it."""
    with UserTerminal(server.client_command("run", "-it", *BASH)) as terminal:
        terminal.until(PROMPT)
        iflag, oflag, _, lflag, *_ = termios.tcgetattr(terminal._slave_fd)
        assert not oflag & termios.OPOST
        assert not iflag & (termios.ICRNL | termios.IXON)
        assert not lflag & (termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN)
        terminal.type(b"exit\n")
        terminal.end()
