"""Watchers as users write them, with grpcio or this project's client library; what they receive is counted.

Spec as JSON on stdin; then as bench/reader.py: an empty line when every connection is made, an empty line to begin,
one line of JSON. Each watcher has a connection and a thread of its own.
"""

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from bench.reader import WATCH
from telehandler.client.connection import Client
from telehandler.pb import telehandler_pb2 as pb

_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 8 << 20))


def _grpcio(spec: dict[str, Any]) -> Callable[[], int]:
    """The plain API: a channel, a stub's method, a loop over its messages."""
    files = (Path(spec[name]).read_bytes() for name in ("root", "key", "cert"))
    channel = grpc.secure_channel(f"localhost:{spec['port']}", grpc.ssl_channel_credentials(*files), _OPTIONS)
    grpc.channel_ready_future(channel).result(60)
    method = channel.unary_stream(
        WATCH,
        request_serializer=pb.WatchJobOutputRequest.SerializeToString,
        response_deserializer=pb.JobOutput.FromString,
    )

    def watch() -> int:
        return sum(len(output.data) for output in method(pb.WatchJobOutputRequest(name=spec["name"])))

    return watch


def _library(spec: dict[str, Any]) -> Callable[[], int]:
    client = Client(f"localhost:{spec['port']}", spec["cert"], spec["key"], spec["root"])
    client.status(spec["name"])

    def watch() -> int:
        request = pb.WatchJobOutputRequest(name=spec["name"])
        return sum(len(output.data) for output in client.watch(request, False, [], lambda _: None))

    return watch


def main() -> None:
    spec = json.loads(sys.stdin.readline())
    connect = _grpcio if spec["kind"] == "grpcio" else _library
    watchers = [connect(spec) for _ in range(spec["connections"])]
    with ThreadPoolExecutor(len(watchers)) as pool:
        print(flush=True)
        sys.stdin.readline()
        began, before = time.monotonic(), time.process_time()
        counts = list(pool.map(lambda watch: watch(), watchers))
        seconds, cpu_s = time.monotonic() - began, time.process_time() - before
        print(json.dumps({"seconds": seconds, "cpu_s": cpu_s, "bytes": counts}), flush=True)


if __name__ == "__main__":
    main()
