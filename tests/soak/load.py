"""The soak's users: each starts a job, watches it, stops or removes it, and holds all it hears against the model."""

import asyncio
import hashlib
import random
from pathlib import Path

import grpc
import grpc.aio
from google.protobuf.message import Message
from soak import program
from soak.calls import AGAIN, CALL_S, CallFailed, Calls
from support.servers import Server

from telehandler.common.errors import EXIT_OURS
from telehandler.common.states import Reason, State
from telehandler.pb import telehandler_pb2 as pb

USERS = 8  # jobs at once
KEEP_JOBS = 60  # of the server; more ended jobs than this after one, and it may be gone
ENOUGH = 50  # violations: the rest would say the same
WATCH_S = 180.0
_TEXT = Path(program.__file__).read_text()
_STREAMS = {pb.OUTPUT_STREAM_STDOUT: program.STDOUT, pb.OUTPUT_STREAM_STDERR: program.STDERR}


class Work:
    """A job of ours. `started` counts the starts before it."""

    def __init__(self, name: str, kind: str, seed: int, started: int) -> None:
        self.name, self.kind, self.seed, self.started = name, kind, seed, started
        self.stopped = self.removed = self.signalled = False
        self.faults = self.losses = 0  # of all faults, and of helpers, when it was started

    def __str__(self) -> str:
        return f"{self.name.rpartition('/')[2]} ({self.kind} {self.seed})"

    def written(self) -> dict[int, bytes]:
        """All it writes, by stream."""
        found = {program.STDOUT: bytearray(), program.STDERR: bytearray()}
        for stream, piece in program.output(self.kind, self.seed):
            found[stream] += piece
        return {stream: bytes(data) for stream, data in found.items()}


class Load(Calls):
    """All users together. `violations` are texts."""

    def __init__(self, server: Server, rng: random.Random) -> None:
        super().__init__(server)
        self.rng = rng
        self.violations: list[str] = []
        self.faults = 0  # injected so far: what was under way then may end in more ways
        self.losses = 0  # of the helper, which takes its jobs with it
        self.stopping = asyncio.Event()

    async def run(self) -> None:
        """Until `stopping`; then every job is brought to its end."""
        await asyncio.gather(*(self._user(random.Random(self.rng.random())) for _ in range(USERS)))
        for status in await self._running():  # whose start's answer was lost with an api
            self.done["jobs of lost answers"] += 1
            work = Work(status.name, status.argv[-2].decode(), int(status.argv[-1]), self.done["starts"])
            await self._stop(work, 0.0)
            await self._check_end(work)
        if left := await self._running():
            self.violations.append(f"{len(left)} jobs still run after all were stopped")

    async def first(self) -> None:
        """One job and its watcher, so that what is made once has been made."""
        work = await self._start("short", 0)
        await self._watch(work, 0)
        await self._check_end(work)

    # A user

    async def _user(self, rng: random.Random) -> None:
        while not self.stopping.is_set():
            try:
                await self._one(rng)
            except (CallFailed, TimeoutError, AssertionError) as error:
                self.violations.append(f"{type(error).__name__}: {error}")
                if len(self.violations) >= ENOUGH:
                    self.stopping.set()

    async def _one(self, rng: random.Random) -> None:
        """A job from its start to its end, and what happens to it meanwhile."""
        work = await self._start(rng.choice(list(program.KINDS)), rng.randrange(1 << 30))
        watchers = [
            asyncio.ensure_future(self._watch(work, rng.choice((0, rng.randrange(1 << 16))), rng.random() < 0.2))
            for _ in range(rng.choice((0, 1, 1, 2, 4)))
        ]
        if rng.random() < 0.1:
            watchers.append(asyncio.ensure_future(self._client(work)))
        try:
            if not program.KINDS[work.kind] or rng.random() < 0.2:
                await self._nap(rng.uniform(0, 12))
                await self._end(work, rng)
            if not work.removed:
                await self._check_end(work)
        finally:
            results = await asyncio.gather(*watchers, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        if not work.removed and rng.random() < 0.3:
            await self._remove(work, force=False)

    async def _nap(self, seconds: float) -> None:
        """Shorter when the soak ends."""
        try:
            async with asyncio.timeout(seconds):
                await self.stopping.wait()
        except TimeoutError:
            pass

    async def _end(self, work: Work, rng: random.Random) -> None:
        if rng.random() < 0.3:
            work.signalled = True
            await self._allowing(
                pb.SignalJobRequest(name=work.name, signal=15), work, grpc.StatusCode.FAILED_PRECONDITION
            )
            self.done["signals"] += 1
        if rng.random() < 0.2:
            return await self._remove(work, force=True)
        await asyncio.gather(*(self._stop(work, rng.choice((0.0, 0.2, 1.0))) for _ in range(rng.choice((1, 1, 3)))))

    async def _start(self, kind: str, seed: int) -> Work:
        argv = [word.encode() for word in ("/usr/bin/python3", "-I", "-S", "-c", _TEXT, kind, str(seed))]
        faults, losses = self.faults, self.losses
        answer = pb.JobResponse.FromString(await self.call(pb.StartJobRequest(argv=argv)))
        work = Work(answer.name, kind, seed, self.done["starts"])
        work.faults, work.losses = faults, losses
        self.done["starts"] += 1
        return work

    async def _stop(self, work: Work, grace: float) -> None:
        work.stopped = True
        request = pb.StopJobRequest(name=work.name)
        request.grace.FromMilliseconds(int(grace * 1000))
        await self._allowing(request, work)
        self.done["stops"] += 1

    async def _remove(self, work: Work, force: bool) -> None:
        work.removed = True
        await self._allowing(pb.DeleteJobRequest(name=work.name, force=force), work)
        self.done["removals"] += 1

    # What is heard

    async def _check_end(self, work: Work) -> None:
        """Its final state, asked for twice, and its digests."""
        answer = await self._allowing(pb.GetJobStatusRequest(name=work.name, wait=True), work)
        if answer is None:
            return
        status = pb.JobStatus.FromString(answer)
        self.done["ends"] += 1
        state, reason = State(status.state), Reason(status.reason)
        seen = f"{work}: {state.name} {reason.name} {status.exit_code} {status.signal}"
        assert state is not State.RUNNING, seen
        lost = self.losses > work.losses and reason is Reason.LOST
        alone = (status.exit_code, status.signal) == program.ending(work.kind, work.seed)
        if not (work.stopped or work.signalled or lost):
            assert alone, seen
            assert reason in (Reason.EXITED, Reason.SIGNALED), seen
            assert state is (State.FAILED if status.exit_code else State.COMPLETED), seen
        elif reason is not Reason.STOPPED and not lost:
            # It was quicker than the stop; or the api that was to stop it died.
            assert alone or work.signalled or self.faults > work.faults, seen
        for stream, data in work.written().items():
            size, digest = _figures(status)[stream]
            assert size <= len(data), f"{seen}: {size} bytes of stream {stream}, wrote at most {len(data)}"
            if not (work.stopped or work.signalled or lost):
                assert size == len(data), f"{seen}: {size} bytes of stream {stream}, wrote {len(data)}"
            assert digest == hashlib.sha256(data[:size]).digest(), f"{seen}: wrong digest of stream {stream}"
            self.done["bytes"] += size
        again = await self._allowing(pb.GetJobStatusRequest(name=work.name), work)
        assert again in (answer, None), f"{work}: a final status changed"

    async def _watch(self, work: Work, offset: int, leaves: bool = False) -> None:
        """Reads from `offset`, again at its offset after each break. What comes must be what the job wrote there."""
        self.done["watches"] += 1
        begin, heard = offset, {program.STDOUT: bytearray(), program.STDERR: bytearray()}
        async with asyncio.timeout(WATCH_S):
            while True:
                call = self.method("WatchJobOutput", stream=True)(
                    pb.WatchJobOutputRequest(name=work.name, offset=offset).SerializeToString()
                )
                try:
                    async for message in call:
                        output = pb.JobOutput.FromString(message)
                        assert output.offset == offset, f"{work}: offset {output.offset} instead of {offset}"
                        heard[_STREAMS[output.stream]] += output.data
                        offset += len(output.data)
                        if leaves and offset - begin > 100:
                            self.done["watches left"] += 1
                            return
                    break
                except grpc.aio.AioRpcError as error:
                    if error.code() is grpc.StatusCode.OUT_OF_RANGE:
                        break
                    if error.code() not in AGAIN:
                        return self._forgive(work, CallFailed(error))
                    self.done["watches resumed"] += 1
                    await asyncio.sleep(0.1)  # as long as it is not there
                finally:
                    call.cancel()
        self._check_heard(work, begin, offset, {stream: bytes(data) for stream, data in heard.items()})

    def _check_heard(self, work: Work, begin: int, end: int, heard: dict[int, bytes]) -> None:
        """Two streams arrive in an order of their own, so one from the middle can be told only in jobs with one."""
        wrote = work.written()
        whole = self._is_whole(work)
        if begin == 0:
            for stream, data in heard.items():
                assert wrote[stream].startswith(data), f"{work}: heard on stream {stream} what it did not write"
                assert not whole or data == wrote[stream], f"{work}: {len(data)} of {len(wrote[stream])} bytes heard"
        elif not wrote[program.STDERR] and end > begin:
            data = wrote[program.STDOUT][begin : None if whole else end]
            assert heard[program.STDOUT] == data, f"{work}: heard from {begin} what it did not write there"
        self.done["bytes heard"] += end - begin

    async def _client(self, work: Work) -> None:
        """The real client as a watcher. One that finds no api at its first try is started again, as a user would."""
        end = asyncio.get_running_loop().time() + CALL_S
        while True:
            status, stdout, stderr = await self._client_process(work)
            said = ("nothing listens", "closed the connection", "answers now")  # it died in the first handshake
            none = any(words in stderr for words in said)
            if status != EXIT_OURS or stdout or not none:
                break
            assert asyncio.get_running_loop().time() < end, f"{work}: {stderr}"
            self.done["client processes again"] += 1
        self.done["client processes"] += 1
        wrote = work.written()[program.STDOUT]
        assert wrote.startswith(stdout), f"{work}: the client's stdout is not the job's"
        if self._is_whole(work):
            assert stdout == wrote, f"{work}: the client has {len(stdout)} bytes, of {len(wrote)}: {stderr}"

    async def _client_process(self, work: Work) -> tuple[int, bytes, str]:
        """Exit status, stdout and stderr."""
        pipe = asyncio.subprocess.PIPE
        command = self.server.client_command("watch", work.name)
        process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
        try:
            async with asyncio.timeout(WATCH_S):
                stdout, stderr = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        return process.returncode, stdout, stderr.decode()

    async def _running(self) -> list[pb.JobStatus]:
        request = pb.ListJobsRequest(states=[pb.JOB_STATE_RUNNING], page_size=1000)
        return list(pb.ListJobsResponse.FromString(await self.call(request)).jobs)

    # What may be

    def _is_whole(self, work: Work) -> bool:
        """Whether nothing has cut its output short."""
        return not (work.stopped or work.removed or work.signalled or self.losses > work.losses)

    async def _allowing(self, request: Message, work: Work, *codes: grpc.StatusCode) -> bytes | None:
        """The answer; None for a job that may be gone, or a code that is allowed."""
        try:
            return await self.call(request)
        except CallFailed as answer:
            if answer.code not in codes:
                self._forgive(work, answer)
            return None

    def _forgive(self, work: Work, answer: CallFailed) -> None:
        """NOT_FOUND is right for a job that was removed, or is beyond what the server keeps."""
        pruned = self.done["starts"] + USERS - work.started >= KEEP_JOBS
        if answer.code is not grpc.StatusCode.NOT_FOUND or not (work.removed or pruned):
            raise AssertionError(f"{work}: {answer}")


def _figures(status: pb.JobStatus) -> dict[int, tuple[int, bytes]]:
    return {
        program.STDOUT: (status.stdout_bytes, status.stdout_sha256),
        program.STDERR: (status.stderr_bytes, status.stderr_sha256),
    }
