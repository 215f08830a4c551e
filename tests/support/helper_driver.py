"""Drives the real helper over its socketpair: as our api does, or as it never would."""

import array
import json
import os
import select
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

from helper import wire
from helper.wire import Message, Stdio, Type
from support.cgroups import cgroup_root
from support.checkout import ROOT
from support.helper_startup import ISOLATED_PYTHON, helper_command
from support.wait import DEADLINE_S

TAG = b"tag of sixteen b"
ENV = [b"PATH=/usr/local/bin:/usr/bin:/bin", b"HOME=/tmp"]
VIOLATION = 3
PYTHON = (*ISOLATED_PYTHON, "-c")
# What each probe starts with: `attempt` says how a try ended, "DONE" or the name of its errno.
PRELUDE = """
import ctypes, errno, json, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def attempt(action, *arguments):
    try:
        action(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "DONE"
def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")
def opened(path, flags=os.O_WRONLY):
    os.close(os.open(path, flags))
def tell(seen):
    print(json.dumps(seen), flush=True)
"""


class Job(NamedTuple):
    handle: int
    uid: int
    stdout: int
    stderr: int
    cgroup: int
    stdin: int = -1

    def close(self) -> None:
        for fd in self[2:5] if self.stdin < 0 else self[2:]:
            os.close(fd)


class Ended(NamedTuple):
    stdout: bytes
    stderr: bytes
    facts: dict[str, int]


class Helper:
    """A helper process and our end of its socket; a context manager that ends it."""

    def __init__(
        self, policy: Path, *options: str, hello: bool = True, code: Path = ROOT, command: Any = None, **popen: Any
    ) -> None:
        """`code`: a copy, if not the checkout; `command`: what starts it, if it is not started directly."""
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(DEADLINE_S)
        command = command or helper_command(code, policy, *options)
        options_of_popen: dict[str, Any] = {"stderr": subprocess.PIPE, "cwd": "/"} | popen
        with theirs:
            self.process: subprocess.Popen[bytes] = subprocess.Popen(command, stdin=theirs.fileno(), **options_of_popen)
        self.events: list[Message] = []
        if hello:
            self.welcome = self.request(Type.HELLO).fields

    def __enter__(self) -> "Helper":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()
        self.end()

    def end(self) -> tuple[int, str]:
        """Waits for the process: its exit status and what it said."""
        _, errors = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, errors.decode()

    @property
    def cgroup(self) -> Path:
        return cgroup_root() / f"telehandler.{self.process.pid}"

    def send(self, kind: Type, request_id: int = 1, **fields: Any) -> None:
        self.sock.send(wire.pack(kind, request_id, **fields))

    def receive(self) -> tuple[Message, list[int]]:
        datagram, ancillary, _, _ = self.sock.recvmsg(wire.MAX_MESSAGE + 1, socket.CMSG_SPACE(16))
        fds = array.array("i")
        for _, _, data in ancillary:
            fds.frombytes(data)
        assert datagram, "EOF from the helper"
        return wire.unpack(datagram), list(fds)

    def request(self, kind: Type, request_id: int = 1, **fields: Any) -> Message:
        """A request's reply; events that come before it are kept."""
        self.send(kind, request_id, **fields)
        message, fds = self._reply()
        assert not fds
        return message

    def _reply(self) -> tuple[Message, list[int]]:
        while True:
            message, fds = self.receive()
            if message.type is not Type.EXITED:
                return message, fds
            self.events.append(message)

    def request_start(self, *argv: str | bytes, kind: Type = Type.START, **changes: Any) -> tuple[Message, list[int]]:
        """The reply to a START or CHECK."""
        self.send_start(*argv, kind=kind, **changes)
        return self._reply()

    def send_start(self, *argv: str | bytes, kind: Type = Type.START, **changes: Any) -> None:
        """A START or CHECK, with 7 as its request id."""
        fields: dict[str, Any] = dict.fromkeys(wire.LIMITS.split(), 0)
        fields |= {"tag": TAG, "stdio": 0, "parent": 0, "place": [b"", b""], "env": ENV}
        fields |= {"argv": [os.fsencode(word) for word in argv]}
        self.send(kind, 7, **{**fields, **changes})

    def start(self, *argv: str | bytes, **changes: Any) -> Job:
        message, fds = self.request_start(*argv, **changes)
        assert message.type is Type.STARTED, message
        assert len(fds) == message.fd_count == (4 if changes.get("stdio", 0) & ~Stdio.MERGE_STDERR else 3)
        return Job(message.fields["handle"], message.fields["uid"], *fds)

    def start_error(self, *argv: str | bytes, **changes: Any) -> tuple[wire.Stage, int, str]:
        """(stage, errno, text) of a START that is refused."""
        message, _ = self.request_start(*argv, **changes)
        assert message.type is Type.ERROR, message
        text = message.fields["text"][0].decode()
        return wire.Stage(message.fields["stage"]), message.fields["errno"], text

    def exited(self, job: Job) -> dict[str, int]:
        """EXITED's fields of a job."""
        while True:
            for event in self.events:
                if event.fields["handle"] == job.handle:
                    return event.fields
            message, _ = self.receive()
            assert message.type is Type.EXITED, message
            self.events.append(message)

    def finish(self, job: Job) -> Ended:
        """Both outputs to their end, EXITED, RELEASE."""
        stdout, stderr = read_both(job.stdout, job.stderr)
        facts = self.exited(job)
        assert self.request(Type.RELEASE, handle=job.handle).type is Type.DONE
        job.close()
        return Ended(stdout, stderr, facts)

    def run(self, *argv: str | bytes, **changes: Any) -> Ended:
        return self.finish(self.start(*argv, **changes))

    def probe(self, code: str, **changes: Any) -> Any:
        """What a Python program tells from inside a job; see PRELUDE."""
        ended = self.run(*PYTHON, PRELUDE + code, **changes)
        assert (ended.stderr, ended.facts["exit_code"]) == (b"", 0)
        return json.loads(ended.stdout)

    def host_pids(self, job: Job) -> list[int]:
        """A live job's processes as the host numbers them: its init first."""
        return self.pids_in(f"job-{job.handle}")

    def pids_in(self, cgroup: str) -> list[int]:
        """The processes of a cgroup below the helper's, as the host numbers them."""
        return [int(pid) for pid in (self.cgroup / cgroup / "cgroup.procs").read_text().split()]


def read_both(*fds: int) -> list[bytes]:
    """The bytes of pipes, to their ends."""
    outputs = {fd: bytearray() for fd in fds}
    waiting = set(fds)
    end = time.monotonic() + DEADLINE_S
    while waiting:
        assert time.monotonic() < end, "the pipes have not ended"
        for fd in select.select(list(waiting), [], [], 1)[0]:
            piece = os.read(fd, 1 << 20)
            outputs[fd] += piece
            if not piece:
                waiting.remove(fd)
    return [bytes(outputs[fd]) for fd in fds]


def read_line(fd: int) -> bytes:
    """One line of a pipe."""
    line = b""
    while not line.endswith(b"\n"):
        assert select.select([fd], [], [], DEADLINE_S)[0], f"only {line!r}"
        piece = os.read(fd, 1)
        assert piece, f"ended after {line!r}"
        line += piece
    return line
