"""What a watcher costs that has nothing to read: the api's memory before and after many have joined a quiet job."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from support.library_client import client_of
from support.process_usage import memory_bytes

from bench.ground import MIB, Ground, end, read, start, start_job, watch_request
from bench.reader import WATCH

STREAMS = 100  # of one connection
_QUIET = ["sh", "-c", "echo up; exec sleep 3600"]


def run(ground: Ground, counts: list[int]) -> list[dict[str, Any]]:
    """A row for each number of watchers, each with a server of its own."""
    return [_row(ground, count) for count in counts]


def _row(ground: Ground, count: int) -> dict[str, Any]:
    with ground.server() as server:
        client, api = client_of(server), server.children()["api"]
        job = start_job(client, _QUIET)
        before = memory_bytes(api, "VmRSS")
        spec = ground.pair("client") | {"address": f"localhost:{server.port}", "count": count}
        watchers = start("bench.idle", spec | {"message": watch_request(job).hex()})
        try:
            read(watchers)  # every one has the job's first line
            after = memory_bytes(api, "VmRSS")
        finally:
            end(watchers)
        client.stop(job, 9, 0)
        client.close()
    row = {"watchers": count, "connections": -(-count // STREAMS), "before_mib": before / MIB, "after_mib": after / MIB}
    row["kib_each"] = (after - before) / 1024 / count
    print(f"  {count} idle watchers: {row['kib_each']:.1f} KiB each", flush=True)
    return row


async def _watch(spec: dict[str, Any]) -> None:
    root, key, certificate = (Path(spec[name]).read_bytes() for name in ("root", "key", "cert"))
    credentials = grpc.ssl_channel_credentials(root, key, certificate)
    channels: list[grpc.aio.Channel] = []
    calls: list[Any] = []
    for first in range(0, spec["count"], STREAMS):
        # Without a pool of its own grpc would make one connection of all.
        options = (("grpc.use_local_subchannel_pool", 1),)
        channels.append(grpc.aio.secure_channel(spec["address"], credentials, options=options))
        method: Any = channels[-1].unary_stream(WATCH)
        # One connection's at a time: thousands at once would try how the server starts calls, not what they hold.
        joined = [method(bytes.fromhex(spec["message"])) for _ in range(min(STREAMS, spec["count"] - first))]
        if not all(isinstance(output, bytes) for output in await asyncio.gather(*(call.read() for call in joined))):
            raise AssertionError("a watch ended before the job")
        calls += joined
    print(flush=True)
    await asyncio.Event().wait()  # until it is killed


if __name__ == "__main__":
    asyncio.run(_watch(json.loads(sys.stdin.readline() or sys.exit(1))))
