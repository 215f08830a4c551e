"""Whom the helper serves: the process that started it, on a connected socket that no job gets (S7)."""

import os
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.helper_driver import VIOLATION, Helper
from support.helper_startup import helper_command, run_helper, startup_outcome
from support.policies import policy_text, write_policy
from support.processes import alive, descendants
from support.wait import DEADLINE_S

from helper import wire
from helper.wire import Type

pytestmark = pytest.mark.usefixtures("as_root")
NOBODY = 65534
EXIT_SETUP = 125


def test_s7_stdin_must_be_a_connected_socket(policy: Path) -> None:
    command = helper_command(ROOT, policy)
    with open(os.devnull) as file:
        status, said = run_helper(file.fileno(), *command)
    assert (status, "stdin is not a connected socket" in said) == (EXIT_SETUP, True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as alone:
        status, said = run_helper(alone.fileno(), *command)
    assert (status, "stdin is not a connected socket" in said) == (EXIT_SETUP, True)


def test_s7_a_peer_who_did_not_start_it_is_refused(policy: Path) -> None:
    os.seteuid(NOBODY)
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    finally:
        os.seteuid(0)
    with ours, theirs:
        status, said = run_helper(theirs.fileno(), *helper_command(ROOT, policy))
        assert (status, f"uid {NOBODY} may not use the helper" in said) == (EXIT_SETUP, True)
        ours.close()
        # The same socket is good when that user is the one behind sudo, and then again not when the policy says so.
        assert run_helper(theirs.fileno(), *helper_command(ROOT, policy), env={"SUDO_UID": str(NOBODY)}) == (0, "")


def test_s7_the_policy_can_name_the_only_uids(place: Path) -> None:
    only = write_policy(place, "allowed", policy_text("allowed_uids = [12345]\n"))
    status, said = startup_outcome(*helper_command(ROOT, only))
    assert (status, "allowed_uids" in said) == (EXIT_SETUP, True)
    both = write_policy(place, "allowed", policy_text("allowed_uids = [12345, 0]\n"))
    assert startup_outcome(*helper_command(ROOT, both)) == (0, "")


def test_s7_a_keeper_is_for_root_alone(policy: Path) -> None:
    """A stream socket makes a keeper, which starts helpers for its peer: not for a user, not for one behind sudo."""
    for uid, caller in ((NOBODY, str(NOBODY)), (0, str(NOBODY)), (NOBODY, "0")):
        os.seteuid(uid)
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        finally:
            os.seteuid(0)
        with ours, theirs:
            status, said = run_helper(theirs.fileno(), *helper_command(ROOT, policy), env={"SUDO_UID": caller})
            assert (status, "may not use the helper" in said) == (EXIT_SETUP, True)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        ours.close()
        assert run_helper(theirs.fileno(), *helper_command(ROOT, policy)) == (0, "")


def test_s7_a_keeper_starts_one_helper_for_each_byte_and_only_after_a_kill(policy: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.settimeout(DEADLINE_S)
    with theirs:
        keeper = subprocess.Popen(
            helper_command(ROOT, policy), stdin=theirs.fileno(), env={"LANG": "C", "LEAK": "1"}, cwd="/", stderr=-3
        )
    with keeper, ours:
        first, pid = _ask_keeper(ours, keeper.pid, b"L")
        os.kill(pid, signal.SIGKILL)
        assert first.recv(1) == b""
        second, other = _ask_keeper(ours, keeper.pid, b"LL")
        assert not alive(pid)
        assert descendants(keeper.pid) == [other]  # one at a time, whatever was asked for
        second.send(b"no message")  # a violation: it would come again
        assert second.recv(16) == b""
        first.close()
        second.close()
        assert keeper.wait(DEADLINE_S) == VIOLATION


def _ask_keeper(control: socket.socket, keeper: int, order: bytes) -> tuple[socket.socket, int]:
    """A helper's socket, greeted, and its pid."""
    control.send(order)
    _, fds, _, _ = socket.recv_fds(control, 16, 4)
    assert len(fds) == 1
    link = socket.socket(fileno=fds[0])
    link.settimeout(DEADLINE_S)
    link.send(wire.pack(Type.HELLO, 1))
    assert wire.unpack(link.recv(wire.MAX_MESSAGE)).type is Type.WELCOME
    (pid,) = descendants(keeper)
    assert Path(f"/proc/{pid}/environ").read_bytes() == b""
    # The helper has its directory, the file of uids, the init's and a poll set, the keeper a pidfd of the helper.
    assert len(os.listdir(f"/proc/{pid}/fd")) == len(os.listdir(f"/proc/{keeper}/fd")) + 3
    return link, pid


def test_s7_the_socket_never_reaches_a_job(policy: Path) -> None:
    with Helper(policy) as helper:
        job = helper.start("sleep", "100")
        pids = (helper.cgroup / f"job-{job.handle}" / "cgroup.procs").read_text().split()
        assert len(pids) == 2  # init and main
        for pid in pids:
            links = []
            for path in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(FileNotFoundError):  # the loader of the main process opens and closes its libraries
                    links.append(os.readlink(path))
            assert links or pid == pids[0]
            assert not [link for link in links if link.startswith(("socket:", "anon_inode:", "/sys"))]
        job.close()
