"""A real server: started, called by the real client, watched through /proc, stopped."""

import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.cgroups import cgroup_root
from support.checkout import ROOT
from support.command_line import COMMAND
from support.processes import descendants
from support.wait import DEADLINE_S, wait_until


def free_address() -> str:
    """A loopback address that stays the same when an api is started anew."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


class Server:
    """A `telehandler server` on a free port, and a client for it. As a context manager it starts and stops."""

    def __init__(
        self,
        place: Path,
        ssl: Path,
        policy: Path | None,
        admins: Sequence[str] = (),
        state: Path | None = None,
        command: Sequence[str] = tuple(COMMAND),
        listen: str = "127.0.0.1:0",
        options: Sequence[str] = (),
        **popen: Any,
    ) -> None:
        self.ssl, self.policy, self.admins, self.command, self.popen = ssl, policy, admins, command, popen
        self.listen, self.options = listen, options
        self.home = Path(tempfile.mkdtemp(prefix="server-", dir=place))
        self.home.chmod(0o755)
        if "user" in popen:
            os.chown(self.home, popen["user"], popen["group"])
        self.state = state or self.home / "state"
        self.log = self.home / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def server_arguments(self) -> list[str]:
        """The arguments of the server itself, from the word `server` on."""
        arguments = ["server", "--listen", self.listen, "--state-dir", str(self.state)]
        for flag, name in (("--cert", "server.pem"), ("--key", "server-key.pem"), ("--root", "root.pem")):
            arguments += [flag, str(self.ssl / name)]
        arguments += ["--helper-policy", str(self.policy)] if self.policy else []
        arguments += [word for name in self.admins for word in ("--admin", name)]
        # Whatever the machine's default: which process a connection meets is the kernel's choice.
        alone = [] if "--stream-workers" in self.options else ["--stream-workers", "1"]
        return [*arguments, *alone, *self.options]

    def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*self.command, *self.server_arguments()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **{"cwd": ROOT, **self.popen},
            )
        self.port = wait_until("the server listens", self.listening)

    def listening(self) -> int:
        assert self.process is not None
        text = self.log_text()
        found = re.findall(r"^telehandler: listening on .*:(\d+)(?: \(.*\))?$", text, re.MULTILINE)
        if not found and self.process.poll() is not None:
            raise AssertionError(f"the server ended with {self.process.returncode}: {text}")
        return int(found[-1]) if found else 0

    def log_text(self) -> str:
        """What the server has logged so far."""
        return self.log.read_text()

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.terminate()
        status = self.process.wait(DEADLINE_S)
        shutil.rmtree(self.home, ignore_errors=True)
        self.process = None
        return status

    def children(self) -> dict[str, int]:
        """The pids of api and helper, and of the helper's keeper, for a server that was root; those that live."""
        assert self.process is not None
        found = {}
        names = ["helper"] if "user" in self.popen else ["keeper", "helper"]  # a job's init has the same command line
        for pid in descendants(self.process.pid):
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue  # it has just ended
            if b"telehandler.api" in line:
                found["api"] = pid
            elif names and b"/helper\0" in line and b"python3\0" in line and not line.startswith(b"sudo"):
                found[names.pop(0)] = pid
        return found

    @property
    def cgroup(self) -> Path:
        """The helper's cgroup, above those of the jobs."""
        return cgroup_root() / f"telehandler.{self.children()['helper']}"

    def client(
        self, verb: str, *arguments: str, user: str = "client", **options: Any
    ) -> "subprocess.CompletedProcess[bytes]":
        """One run of the client, its output captured."""
        return subprocess.run(
            self.client_command(verb, *arguments, user=user), cwd=ROOT, capture_output=True, timeout=120, check=False
        )

    def client_command(self, verb: str, *arguments: str, user: str = "client") -> list[str]:
        pair = ["-c", str(self.ssl / f"{user}.pem"), "-k", str(self.ssl / f"{user}-key.pem")]
        where = ["-s", f"localhost:{self.port}", "-r", str(self.ssl / "root.pem"), "-j", str(self.jidfile(user))]
        return [*COMMAND, "client", verb, *where, *pair, *arguments]

    def start_watcher(self, name: str) -> "subprocess.Popen[bytes]":
        """A `client watch` in the background, with pipes for stdout and stderr."""
        command = self.client_command("watch", name)
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def job_status(self, *name: str) -> dict[str, Any]:
        """The fields of `client status -o json`; without a name, of the job that `client` started last."""
        done = self.client("status", "-o", "json", *name)
        assert done.returncode == 0, done.stderr
        fields: dict[str, Any] = json.loads(done.stdout)
        return fields

    def runs_jobs(self) -> bool:
        """Whether a job starts and ends well."""
        return self.client("run", "--", "true").returncode == 0

    def jidfile(self, user: str = "client") -> Path:
        return self.home / f"job_id-{user}"

    def detach(self, *command: str, user: str = "client") -> str:
        """A job left running: its name."""
        done = self.client("run", "-d", "--", *command, user=user)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode().strip()
