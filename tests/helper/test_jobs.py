"""A job's life as the helper sees it: starts that fail, ends of every kind, trees, limits, what is left."""

import errno
import hashlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from support.cgroups import missing_controllers, our_cgroups
from support.helper_copy import helper_copy
from support.helper_driver import Helper, read_line
from support.policies import own_uids, policy_text, write_policy
from support.processes import alive, processes_with
from support.wait import wait_until

from helper.wire import Stage, Type

pytestmark = pytest.mark.usefixtures("as_root")


def test_exit_codes_and_signals_are_attested(policy: Path) -> None:
    with Helper(policy) as helper:
        facts = helper.run("sh", "-c", "exit 7").facts
        assert (facts["exit_code"], facts["signal"], facts["killed"]) == (7, 0, 0)
        facts = helper.run("sh", "-c", "kill -USR1 $$").facts
        assert (facts["exit_code"], facts["signal"]) == (0, signal.SIGUSR1)
        assert facts["cgroup_usec"] > 0
        assert facts["max_rss_bytes"] > 1 << 20


def test_a_bind_of_the_policy_is_there_to_read(place: Path) -> None:
    directory = place / "scripts"
    directory.mkdir()
    for name, text in (("script", "#!/no/such/interpreter\n"), ("text", "just text\n")):
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
    binds = f'[profile.host]\nread_only = ["{directory}:/mnt"]\n'
    with Helper(write_policy(place, "binds", policy_text(binds))) as helper:
        ended = helper.run("sh", "-c", "ls /mnt; touch /mnt/x")
        assert ended.stdout == b"script\ntext\n"
        assert b"Read-only" in ended.stderr


@pytest.mark.parametrize(
    ("directory", "number"),
    [(b"/no/such", errno.ENOENT), (b"/etc/passwd", errno.ENOTDIR), (b"relative", errno.EINVAL),
     (b"/proc/self/fd", errno.EINVAL), (b"/proc/self/cwd", errno.EINVAL), (b"/etc/ssl/private", errno.EACCES)],
)  # fmt: skip
def test_working_directories_that_are_refused(policy: Path, directory: bytes, number: int) -> None:
    if number == errno.EACCES:
        assert os.stat(directory).st_mode & 0o007 == 0, "the test needs a directory that others cannot enter"
    with Helper(policy) as helper:
        assert helper.start_error("true", place=[b"", directory])[:2] == (Stage.CHDIR, number)


def test_output_is_byte_exact(policy: Path) -> None:
    size = 50 << 20
    with Helper(policy) as helper:
        script = f"head -c {size} /dev/urandom | tee /dev/stderr | sha256sum >/tmp/sum; cat /tmp/sum"
        ended = helper.run("sh", "-c", script)
    assert len(ended.stderr) == size
    assert hashlib.sha256(ended.stderr).hexdigest() == ended.stdout.split()[0].decode()


def test_argv_that_is_not_utf_8_goes_through_as_it_is(policy: Path) -> None:
    odd = bytes(range(1, 256))
    with Helper(policy) as helper:
        assert helper.run("printf", "%s", odd).stdout == odd
        assert helper.run("printf", "%s", b"$HOME;`id`\n").stdout == b"$HOME;`id`\n"


def test_kill_ends_a_tree_with_sessions_and_daemons(policy: Path) -> None:
    mark = "3.3166247"
    script = f"setsid sleep {mark} & (sleep {mark} &) ; trap '' TERM; echo up; while :; do sleep {mark}; done"
    with Helper(policy) as helper:
        job = helper.start("bash", "-c", script)
        assert read_line(job.stdout) == b"up\n"
        wait_until("three sleep", lambda: len(processes_with(mark)) >= 4)
        pids = processes_with(mark)
        assert helper.request(Type.KILL, handle=job.handle).type is Type.DONE
        facts = helper.finish(job).facts
        assert (facts["signal"], facts["killed"]) == (signal.SIGKILL, 1)
        assert not [pid for pid in pids if alive(pid)]


def test_sigterm_reaches_the_main_process_and_sigint_its_group(policy: Path) -> None:
    script = "trap 'echo got TERM; exit 3' TERM; trap 'echo shell INT' INT; (trap 'echo child INT; exit' INT; echo up; while :; do sleep 0.02; done) & wait; wait; while :; do sleep 0.02; done"  # noqa: E501
    with Helper(policy) as helper:
        job = helper.start("bash", "-c", script)
        assert read_line(job.stdout) == b"up\n"
        helper.request(Type.SIGNAL, handle=job.handle, signal=signal.SIGINT)
        assert {read_line(job.stdout), read_line(job.stdout)} == {b"shell INT\n", b"child INT\n"}
        helper.request(Type.SIGNAL, handle=job.handle, signal=signal.SIGTERM)
        ended = helper.finish(job)
        assert ended.stdout.endswith(b"got TERM\n")
        assert ended.facts["exit_code"] == 3


def test_live_jobs_have_uids_of_their_own_from_the_range(policy: Path) -> None:
    with Helper(policy) as helper:
        jobs = [helper.start("sleep", "100") for _ in range(20)]
        assert len({job.uid for job in jobs}) == 20
        assert all(70_000 <= job.uid < 100_000 for job in jobs)


def test_a_small_range_of_uids_is_used_again_but_never_shared(place: Path) -> None:
    text = policy_text(f"max_jobs = 3\n{own_uids(3)}")
    with Helper(write_policy(place, "uids", text)) as helper:
        lasting = helper.start("sleep", "100")
        for _ in range(6):
            job = helper.start("true")
            assert job.uid != lasting.uid
            helper.finish(job)


@pytest.mark.parametrize("how", ["eof", "term"])
def test_its_end_is_the_end_of_all_jobs(place: Path, how: str) -> None:
    mark = "3.7416573"
    with Helper(write_policy(place, "soon", policy_text("max_drain_seconds = 1\n"))) as helper:
        for _ in range(5):
            helper.start("sh", "-c", f"trap '' TERM; setsid sleep {mark} & while :; do sleep {mark}; done")
        wait_until("ten sleep", lambda: len(processes_with(mark)) >= 10)
        pids = processes_with(mark)
        if how == "eof":
            helper.sock.close()
        else:
            helper.process.send_signal(signal.SIGINT)  # a terminal's: for the server, not for us
            helper.process.send_signal(signal.SIGTERM)
        assert helper.end()[0] == 0
        assert not helper.cgroup.exists()
        # Out of the cgroup already; a moment later they are no processes either.
        wait_until("all have ended", lambda: not [pid for pid in pids if alive(pid)])


def test_a_killed_helper_takes_its_jobs_along_and_the_next_one_sweeps(policy: Path) -> None:
    mark = "3.8729833"
    with Helper(policy) as first:
        first.start("sh", "-c", f"setsid sleep {mark} & sleep {mark}")
        wait_until("two sleep", lambda: len(processes_with(mark)) >= 3)
        pids = processes_with(mark)
        first.process.kill()
        first.end()
        wait_until("the jobs died with it", lambda: not [pid for pid in pids if alive(pid)])
        (job,) = first.cgroup.glob("job-*")
        (job / "below" / "deeper" / "deepest").mkdir(parents=True)  # removed from the deepest up
        with Helper(policy) as second:
            assert not first.cgroup.exists()
            with Helper(policy):  # a live one's is left alone
                assert second.cgroup.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_jobs = 0\n", ["line 1", "max_jobs", "1 or more"]),
        ("\nmax_jbos = 3\n", ["line 2", "max_jbos", "max_jobs"]),
        ('[limits.default]\npids = "many"\n', ["line 2", "limits.default.pids", "int"]),
        ("[limits.default]\npids = 200000\n", ["limits.maximum.pids", "at least the default"]),
        ("[job_uids]\nfirst = 0\n", ["line 2", "job_uids.first"]),
        ("[job_uids]\nfirst = 5\n", ["line 1", "job_uids", "1000"]),
        ("[job_uids]\nfirst = 2147483647\n", ["job_uids", "2^31"]),
        ('allow_missing_controllers = ["cpu", "hugetlb"]\n', ["line 1", "allow_missing_controllers", "pids"]),
        ('[profile.host]\nnetwork = "bridge"\n', ["line 2", "profile.host.network"]),
        ('[profile.host]\nhidden = ["/a/../b"]\n', ["line 2", "profile.host.hidden", "absolute"]),
        ('[profile.host]\nwritable = ["/a"]\n', ["line 2", "profile.host.writable", "/target"]),
        ("profile = 1\n", ["line 1", "profile"]),
        ("max_jobs = \n", ["Invalid value", "line 1"]),
    ],
)
def test_errors_in_the_policy_name_line_and_key(place: Path, text: str, words: list[str]) -> None:
    said = _does_not_start(write_policy(place, "bad", text))
    assert "bad.toml" in said
    for word in words:
        assert word in said


def _does_not_start(policy: Path, **options: Any) -> str:
    helper = Helper(policy, hello=False, **options)
    status, said = helper.end()
    helper.sock.close()
    assert status == 125
    assert "Traceback" not in said
    assert said.count("\n") == 1
    return said


def test_nothing_is_left_when_all_is_done() -> None:
    assert not [name for name in our_cgroups() if not alive(int(name.partition(".")[2]))]


def test_a_timeout_asks_first_and_kills_after_the_grace(policy: Path, place: Path) -> None:
    with Helper(policy, code=helper_copy(place, "short grace", GRACE_S=1.5)) as helper:
        began = time.monotonic()
        polite = helper.start("sleep", "100", timeout_ms=300)
        ignores_sigterm = helper.start("sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done", timeout_ms=1500)
        facts = helper.finish(polite).facts
        assert (facts["signal"], facts["timed_out"], facts["killed"]) == (signal.SIGTERM, 1, 0)
        assert time.monotonic() - began >= 0.3
        facts = helper.finish(ignores_sigterm).facts
        assert (facts["signal"], facts["timed_out"]) == (signal.SIGKILL, 1)
        assert time.monotonic() - began >= 3
        assert helper.run("true", timeout_ms=60_000).facts["timed_out"] == 0


def test_check_tells_what_start_would_do_and_makes_nothing(place: Path) -> None:
    text = policy_text("[limits.maximum]\nopen_files = 2000\n[profile.other]\nhidden = ['/home', '/srv']\n")
    with Helper(write_policy(place, "check", text)) as helper:
        wanted: dict[str, Any] = {"place": [b"other", b"/usr"], "open_files": 77}
        verdict, _ = helper.request_start("true", kind=Type.CHECK, **wanted)
        rows = dict(row.decode().split(" ", 1) for row in verdict.fields["rows"])
        assert (rows["profile_name"], rows["cwd"], rows["open_files"]) == ("other", "/usr", "77")
        assert rows["hidden"] == "/home, /srv"
        assert rows["pids"] == "512"  # the default
        assert not list(helper.cgroup.glob("job-*"))
        refused: tuple[tuple[dict[str, Any], Stage], ...] = (
            ({"place": [b"none", b""]}, Stage.POLICY),
            ({"place": [b"", b"proc"]}, Stage.CHDIR),
            ({"open_files": 2001}, Stage.LIMIT),
        )
        for changes, stage in refused:
            answer, _ = helper.request_start("true", kind=Type.CHECK, **changes)
            assert (answer.type, answer.fields["stage"]) == (Type.ERROR, stage)
        # What it said is what a start does.
        assert helper.run("sh", "-c", "ulimit -n; pwd", **wanted).stdout == b"77\n/usr\n"


def test_check_names_the_controller_that_is_missing(place: Path) -> None:
    with Helper(write_policy(place, "strict", "")) as helper:
        answer, _ = helper.request_start("true", kind=Type.CHECK)
        if missing_controllers():
            assert answer.fields["stage"] == Stage.LIMIT
            assert missing_controllers()[0].encode() in answer.fields["text"][0]
        else:
            assert b"cpu.max 100000 100000" in answer.fields["rows"]
