"""R5: a job whose output is over a cap that it waits at: it waits indeed, or what is lost is told, and no success."""

import pytest
from support.servers import Server
from support.wait import wait_until

PAGE_BYTES, PIPE_BYTES = 4096, 65536


@pytest.mark.parametrize("mib", [1, 8], ids=["near from the first byte", "near later"])
def test_r5_at_its_cap_a_job_waits_with_little_ahead(server: Server, mib: int) -> None:
    """A pipe of a log without a cap holds up to a MiB, which a job would leave in it, and end."""
    cap = mib << 20
    name = _detach(server, f"{mib}m", f"head -c {cap + 450_000} /dev/zero; echo written >&2")
    wait_until("the cap is reached", lambda: f"cap of {cap} bytes" in server.client("status", name).stdout.decode())
    assert server.job_status(name)["state"] == "running"
    server.client("stop", "--stop-timeout", "0", name)
    status = server.job_status(name)
    assert (status["state"], status["stdout_bytes"]) == ("stopped", cap)
    told = server.client("watch", name).stderr.decode()
    assert "more bytes were not kept" in told
    # The writer may be too quick for the pipe to be made smaller on the way.
    assert int(told.split(" more bytes")[0].split()[-1]) <= (2 * PAGE_BYTES if mib == 1 else PIPE_BYTES + PAGE_BYTES)


def test_r5_output_that_is_lost_is_no_success(server: Server) -> None:
    """What fits into the pipe is written, so the job has ended when the cap is met."""
    done = server.client("run", "--log-max-size", "64k", "--", "sh", "-c", "head -c 65636 /dev/zero")
    assert (done.returncode, done.stdout) == (125, bytes(65536))
    assert b"cap of 65536 bytes is reached; 100 more bytes were not kept" in done.stderr
    name = server.jidfile().read_text().strip()
    status = server.job_status(name)
    assert (status["state"], status["reason"], status["exit_code"]) == ("failed", "output_lost", 0)
    assert server.client("wait", name).returncode == 125
    assert server.client("watch", name).returncode == 125


def test_r5_a_cap_that_is_just_reached_is_a_success(server: Server) -> None:
    done = server.client("run", "--log-max-size", "64k", "--", "sh", "-c", "head -c 65536 /dev/zero")
    assert (done.returncode, done.stdout, done.stderr) == (0, bytes(65536), b"")


def _detach(server: Server, cap: str, script: str) -> str:
    done = server.client("run", "-d", "--log-max-size", cap, "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()
