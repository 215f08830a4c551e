"""The api's peak memory while a long job runs: with a watcher that keeps up, and with many and one that is stopped."""

import json
import os
import signal
from typing import Any

from support.library_client import client_of
from support.process_usage import memory_bytes
from support.wait import wait_until

from bench.ground import MIB, Ground, end, read, start_job, tell, watch_request
from telehandler.pb import telehandler_pb2 as pb


def run(ground: Ground, size: int, watchers: int, crowd_size: int) -> list[dict[str, Any]]:
    """A row for one watcher of `size` bytes, and one for `watchers` of `crowd_size` bytes with one more, stopped."""
    return [row(ground, size, 1, stopped=False), row(ground, crowd_size, watchers, stopped=True)]


def row(ground: Ground, size: int, watchers: int, stopped: bool) -> dict[str, Any]:
    with ground.server() as server:
        client, api = client_of(server), server.children()["api"]
        before = memory_bytes(api, "VmRSS")
        job = start_job(client, ["head", "-c", str(size), "/dev/urandom"])
        slow = ground.reader(server.port, 1, watch_request(job)) if stopped else None
        fast = ground.reader(server.port, watchers, watch_request(job))
        try:
            if slow:
                tell(slow, "")
                wait_until("it has the job's output", lambda: client.status(job).stdout_bytes > MIB)
                os.kill(slow.pid, signal.SIGSTOP)
            tell(fast, "")
            counts: list[int] = json.loads(read(fast))["bytes"]
            peak = memory_bytes(api, "VmHWM")
            if slow:
                # The server may have given it up, as it answers no pings: it comes again, as a client does by itself.
                end(slow)
                slow = ground.reader(server.port, 1, watch_request(job))
                tell(slow, "")
                counts += json.loads(read(slow))["bytes"]
        finally:
            end(fast, *([slow] if slow else []))
        status = client.status(job)
        client.close()
    if min(counts) < size or status.state != pb.JOB_STATE_COMPLETED or status.stdout_bytes != size:
        raise AssertionError(
            f"the readers got from {min(counts)} to {max(counts)}, the job wrote {status.stdout_bytes} of {size} bytes"
        )
    found: dict[str, Any] = {"job_mib": size / MIB, "watchers": watchers, "stopped": int(stopped)}
    found |= {"before_mib": before / MIB, "peak_mib": peak / MIB}
    print(
        f"  {found['job_mib']:.0f} MiB, {watchers} watchers, {found['stopped']} stopped: "
        f"{found['before_mib']:.0f} MiB before, {found['peak_mib']:.0f} MiB at the peak",
        flush=True,
    )
    return found
