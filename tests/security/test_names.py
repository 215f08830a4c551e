"""Names and addresses in a job: hosts, resolv.conf and hostname work, whatever links the host has."""

import os
from pathlib import Path

import pytest
from security.test_profiles import make_tree
from support.helper_driver import PYTHON, Helper, read_line
from support.policies import policy_text, write_policy

from helper import syscalls as sc

pytestmark = pytest.mark.usefixtures("as_root")
CLONE_NEWNS = 0x00020000
SCRIPT = """
import socket, sys
name = socket.gethostname()
print(name, sorted({row[4][0] for row in socket.getaddrinfo(name, 80)}))
print(sorted({row[4][0] for row in socket.getaddrinfo("localhost", 80)} & {"127.0.0.1"}), open("/etc/hostname").read())
print(open("/etc/resolv.conf").read())
print(sorted({row[4][0] for row in socket.getaddrinfo("database.example", 80)}))
"""


def _as_with_systemd_resolved() -> None:
    """/etc/resolv.conf is a link to a stub below /run, which no job sees."""
    sc.unshare(CLONE_NEWNS)
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
    sc.mount("test", "/run", "tmpfs", 0, "mode=755")
    Path("/run/systemd/resolve").mkdir(parents=True)
    Path("/run/systemd/resolve/stub-resolv.conf").write_text("nameserver 127.0.0.53\noptions edns0\n")
    Path("/run/etc").mkdir()
    for name in ("passwd", "group", "nsswitch.conf", "ld.so.cache", "ssl"):
        if (source := Path("/etc", name)).is_file():
            Path("/run/etc", name).write_bytes(source.read_bytes())
    for name in ("telehandler", "alternatives"):
        Path("/run/etc", name).mkdir()
    Path("/run/etc/hosts").write_text("127.0.0.1 localhost\n192.0.2.7 database.example\n")
    Path("/run/etc/hostname").write_text("the-machine\n")
    Path("/run/etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    sc.mount("/run/etc", "/etc", None, sc.MS_BIND)


def test_names_work_with_the_hosts_network_and_a_stub_behind_a_link(place: Path) -> None:
    policy = write_policy(
        place, "stub", policy_text('[profile.host]\nnetwork = "host"\n[profile.alone]\nnetwork = "none"\n')
    )
    with Helper(policy, preexec_fn=_as_with_systemd_resolved) as helper:
        ended = helper.run(*PYTHON, SCRIPT)
        assert ended.stdout.decode().split("\n") == [
            "sandbox ['127.0.1.1']",
            "['127.0.0.1'] sandbox",
            "",
            "nameserver 127.0.0.53",
            "options edns0",
            "",
            "['192.0.2.7']",
            "",
        ], ended.stderr
        alone = helper.run(*PYTHON, SCRIPT, place=[b"alone", b""])
        assert alone.stdout.startswith(b"sandbox ['127.0.1.1']\n['127.0.0.1'] sandbox\n\n# This job has")
        assert b"gaierror" in alone.stderr
        assert b"nameserver" not in alone.stdout


def test_a_file_that_not_everybody_may_read_is_not_copied_into_jobs(place: Path) -> None:
    """/run/systemd/resolve is another user's: a link of its could name any file."""

    def private() -> None:
        _as_with_systemd_resolved()
        stub = Path("/run/systemd/resolve/stub-resolv.conf")
        stub.unlink()
        Path("/run/private").write_text("secret")
        Path("/run/private").chmod(0o600)
        stub.symlink_to("/run/private")

    with Helper(
        write_policy(place, "private", policy_text('[profile.host]\nnetwork = "host"\n')), preexec_fn=private
    ) as helper:
        ended = helper.run("cat", "/etc/resolv.conf")
        assert (ended.stdout, ended.stderr) == (b"", b"")


@pytest.mark.parametrize("kind", ["fifo", "terminal"])
def test_a_resolver_file_that_is_no_file_neither_stops_a_start_nor_becomes_its_terminal(place: Path, kind: str) -> None:
    terminal, other_end = os.openpty()

    def strange() -> None:
        _as_with_systemd_resolved()
        stub = Path("/run/systemd/resolve/stub-resolv.conf")
        stub.unlink()
        if kind == "fifo":
            os.mkfifo(stub, 0o644)
        else:
            os.chmod(os.ttyname(other_end), 0o666)
            stub.symlink_to(os.ttyname(other_end))

    policy = write_policy(place, "strange", policy_text('[profile.host]\nnetwork = "host"\n'))
    with Helper(policy, preexec_fn=strange) as helper:
        job = helper.start("sh", "-c", "cat /etc/resolv.conf; echo up; sleep 100; exit")
        assert read_line(job.stdout) == b"up\n"
        for pid in helper.host_pids(job):
            assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[4] == "0"  # tty_nr
        job.close()
    os.close(terminal)
    os.close(other_end)


def test_a_root_with_one_of_the_files_has_it_replaced(place: Path) -> None:
    root = make_tree(place / "only-hostname", "cat", "ls")
    (root / "etc" / "hostname").write_text("the tree's\n")
    with Helper(write_policy(place, "only", policy_text(f'[profile.host]\nroot = "{root}"\n'))) as helper:
        assert helper.run("cat", "/etc/hostname").stdout == b"sandbox\n"
        assert helper.run("ls", "/etc").stdout == b"hostname\n"


def test_a_bind_of_the_policys_wins_and_a_root_without_the_files_goes_without(place: Path) -> None:
    own = place / "own-hosts"
    own.write_text("192.0.2.9 mine\n")
    with Helper(
        write_policy(place, "own", policy_text(f'[profile.host]\nread_only = ["{own}:/etc/hosts"]\n'))
    ) as helper:
        assert helper.run("cat", "/etc/hosts").stdout == b"192.0.2.9 mine\n"
        assert b"Read-only" in helper.run("sh", "-c", "echo x >/etc/resolv.conf").stderr
