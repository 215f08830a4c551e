"""What a watcher is told of output that is no longer kept."""

import asyncio
import os
from pathlib import Path

from telehandler.output import watch
from telehandler.output.chunks import Chunks
from telehandler.output.log import Cap, JobLog, Stream
from telehandler.pb import telehandler_pb2 as pb


def test_what_is_dropped_while_a_gap_is_sent_is_a_gap_too(tmp_path: Path) -> None:
    log = JobLog(tmp_path, Cap(1 << 20, drop_oldest=True))
    read_fd, write_fd = os.pipe()
    os.write(write_fd, bytes(range(64)))
    log.splice(read_fd, Stream.STDOUT)
    os.close(read_fd)
    os.close(write_fd)

    async def collect() -> list[pb.JobOutput]:
        options = watch.WatchOptions(0, follow=False, stream=None, until_ns=0, zstd=False, exact=False)
        found = []
        log.floor = 10
        async for message in watch.messages(log, Chunks(), options):
            found.append(pb.JobOutput.FromString(message))
            log.floor = 30  # as another watcher, or the pump, would find meanwhile
        return found

    found = asyncio.run(collect())
    assert [(output.offset, output.gap_bytes, output.data) for output in found] == [
        (10, 10, b""),
        (30, 20, b""),
        (30, 0, bytes(range(30, 64))),
    ]
