"""Output that is watched while it comes: many slow jobs, and one that prints as fast as it can, with few watchers.

For each: the api's processor time, the messages that it sends, and how old the first line of a message is when a
watcher has it.
"""

import asyncio
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from support.library_client import client_of
from support.policies import policy_text, write_policy

from bench.ground import Ground, cpu_s, end, read, start, start_job, tell
from bench.reader import WATCH
from telehandler.pb import telehandler_pb2 as pb

WATCHERS = 10
LINE_BYTES = 80
# The time in ns, a line a second. read(1) of bash waits for it; sleep(1) would be a process a line.
_SLOW = (
    'mkfifo /tmp/never; exec 3<>/tmp/never; while ! read -rt 1 -u 3; do printf "%s000\\n" "${EPOCHREALTIME/./}"; done'
)
_FAST = "import os, time\nwhile True: os.write(1, b'%019d %59s\\n' % (time.time_ns(), b'x'))"


def run(ground: Ground, jobs: int, seconds: float) -> list[dict[str, Any]]:
    """A row for `jobs` slow jobs, of which ten are watched by one each, and one for a fast job with ten watchers."""
    slow = _row(ground, f"{jobs:,} jobs, a line a second each", ["bash", "-c", _SLOW], jobs, seconds)
    return [slow, _row(ground, "1 job, as fast as it can", ["/usr/bin/python3", "-ISc", _FAST], 1, seconds)]


def _row(ground: Ground, what: str, command: list[str], jobs: int, seconds: float) -> dict[str, Any]:
    text = policy_text(f"max_jobs = {2 * jobs}\nstarts_per_second = 1000\n")
    with ground.server(write_policy(ground.place, "live", text)) as server:
        client, api = client_of(server), server.children()["api"]
        names = [start_job(client, command) for _ in range(jobs)]
        watched = [names[number % jobs] for number in range(WATCHERS)]
        spec = ground.pair("client") | {"address": f"localhost:{server.port}"}
        watchers = start("bench.live", spec | {"messages": [_request(name) for name in watched]})
        try:
            read(watchers)  # every one has something
            began, before = time.monotonic(), cpu_s(api)
            time.sleep(seconds)
            cpu, took = cpu_s(api) - before, time.monotonic() - began
            tell(watchers, "enough")
            found = json.loads(read(watchers))
        finally:
            end(watchers)
            for name in names:
                client.stop(name, 9, 0)
        client.close()
    row = {"what": what, "watchers": WATCHERS, "api_cores": cpu / took, "messages_s": found["messages"] / took}
    row |= {"mib_s": found["bytes"] / took / (1 << 20), "p50_ms": found["p50_ms"], "p99_ms": found["p99_ms"]}
    print(
        f"  {what}: {row['api_cores']:.2f} cores, {row['messages_s']:,.0f} messages/s, {row['mib_s']:.1f} MiB/s, "
        f"p50 {row['p50_ms']:.2f} ms, p99 {row['p99_ms']:.2f} ms",
        flush=True,
    )
    return row


def _request(name: str) -> str:
    """From its last line on, and not from its beginning, which may be far behind by now."""
    return pb.WatchJobOutputRequest(name=name, tail_lines=1).SerializeToString().hex()


async def _watch(spec: dict[str, Any]) -> None:
    root, key, certificate = (Path(spec[name]).read_bytes() for name in ("root", "key", "cert"))
    credentials = grpc.ssl_channel_credentials(root, key, certificate)
    taken: list[float] = []
    total = 0
    async with grpc.aio.secure_channel(spec["address"], credentials) as channel:
        method: Any = channel.unary_stream(WATCH, response_deserializer=pb.JobOutput.FromString)
        calls = [method(bytes.fromhex(message)) for message in spec["messages"]]
        await asyncio.gather(*(call.read() for call in calls))

        async def follow(call: Any) -> None:
            nonlocal total
            while output := await call.read():
                now = time.time_ns()
                total += len(output.data)
                whole = len(output.data) if output.data.count(b"\n") == 1 else LINE_BYTES
                first = -output.offset % whole  # of the first line that begins here
                if stamp := output.data[first : first + 19].strip():
                    taken.append((now - int(stamp)) / 1e6)

        tasks = [asyncio.create_task(follow(call)) for call in calls]
        print(flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        if any(task.done() for task in tasks):
            raise AssertionError("a watch ended before the job")
        for task in tasks:
            task.cancel()
        taken.sort()
        found = {"messages": len(taken), "bytes": total, "p50_ms": statistics.median(taken)}
        print(json.dumps(found | {"p99_ms": taken[int(len(taken) * 0.99)]}), flush=True)


if __name__ == "__main__":
    asyncio.run(_watch(json.loads(sys.stdin.readline() or sys.exit(1))))
