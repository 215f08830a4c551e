"""Requests to the helper about one job, each with what its refusals mean: for the server's jobs and for `local`'s."""

import asyncio
import time
import uuid as uuids
from collections.abc import Callable

from helper.wire import Stage, Stdio
from telehandler.common import limits
from telehandler.common.errors import HelperRefused, HelperUnavailable, TelehandlerError
from telehandler.jobs.helper_link import HelperLink, JobSpec, LiveJob
from telehandler.jobs.request import DEFAULT_ENV, Request

_RATE_PATIENCE_S, _RATE_PAUSE_S = 10.0, 0.02
_MAX_SHOWN = 200  # bytes of a command or directory in a message
_NO_UUID = uuids.UUID(int=0)  # of a dry run


class Starter:
    """START and CHECK, from the directory that jobs run in where a request names none: `cwd`, else /."""

    def __init__(self, cwd: bytes) -> None:
        self._cwd = cwd
        self._over_rate = asyncio.Lock()
        self._unenforced: dict[tuple[HelperLink, str], list[str]] = {}  # of the helper and profile used last

    def spec(self, request: Request, uuid: uuids.UUID, parent: int = 0) -> JobSpec:
        """What the helper is asked for. `parent`: the handle of the job in which the command is to run."""
        env = [name + b"=" + value for name, value in (DEFAULT_ENV | request.env).items()]
        place = request.profile, request.cwd or self._cwd
        return JobSpec(uuid.bytes, *place, request.argv, env, request.limits, _stdio(request), parent)

    async def start(
        self,
        link: HelperLink,
        request: Request,
        uuid: uuids.UUID,
        full: Callable[[], bool] = lambda: False,
        parent: int = 0,
    ) -> LiveJob:
        """Starts it in / where the default directory is hidden from jobs. `full`: whether waiting is no use.

        A start over the policy's rate waits for a while: users take turns there too, or the one who asks most often
        would have it all. Raises HelperRefused, without the command's name: see explained; HelperUnavailable.
        """
        spec = self.spec(request, uuid, parent)
        patience = time.monotonic() + _RATE_PATIENCE_S
        while True:
            try:
                return await link.start(spec)
            except HelperRefused as refused:
                if refused.stage == Stage.CHDIR and not request.cwd and spec.cwd != b"/":
                    spec = spec._replace(cwd=b"/")
                    continue
                if refused.stage != Stage.CAPACITY or full() or time.monotonic() > patience:
                    raise
            async with self._over_rate:  # first come, first served
                await asyncio.sleep(_RATE_PAUSE_S)

    async def check(self, link: HelperLink, request: Request) -> list[bytes]:
        """What a job of this request would get, a name and a value each. Raises as start does."""
        spec = self.spec(request, _NO_UUID)
        fallback = [] if request.cwd else [b"cwd_fallback /"]  # as in start
        return [*(b"env " + entry for entry in spec.env), *await link.check(spec), *fallback]

    async def unenforced(self, link: HelperLink, request: Request) -> list[str]:
        """Of the limits that a request sets, those that nothing enforces here: see limits.py."""
        if not limits.of_request(name for name, value in request.limits.items() if value):
            return []
        key = link, request.profile  # a profile's files may lie on no disk that io could be limited on
        if key not in self._unenforced:
            plain = request._replace(argv=[b"true"], env={}, cwd=b"/", limits={})
            try:
                found = limits.without_file(await link.check(self.spec(plain, _NO_UUID)))
            except TelehandlerError:  # as when no more jobs may run now
                return [name for name in limits.of_controllers(link.missing_controllers) if request.limits.get(name)]
            self._unenforced = {key: found}
        return [name for name in self._unenforced[key] if request.limits.get(name)]


def _stdio(request: Request) -> Stdio:
    if request.terminal:
        return Stdio.TERMINAL
    pipes = Stdio.STDIN if request.stdin else Stdio(0)
    return pipes | Stdio.MERGE_STDERR if request.merge_stderr else pipes


def explained(refused: HelperRefused, request: Request) -> HelperRefused:
    """A refusal that says what the helper, which quotes no user, leaves out: the command or the directory."""
    word = {Stage.EXEC: request.argv[0], Stage.CHDIR: request.cwd}.get(Stage(refused.stage))
    if not word:
        return refused
    shown = repr(word[:_MAX_SHOWN].decode("utf-8", "backslashreplace"))
    return HelperRefused(refused.stage, refused.errno, f"{refused}: {shown}")


async def kill(link: HelperLink, handle: int) -> None:
    """KILL; a job that has just ended is no error."""
    try:
        await link.kill(handle)
    except HelperRefused:
        pass
    except HelperUnavailable:
        if not link.closed:  # else it has ended with the helper
            raise


async def release(link: HelperLink, handle: int) -> None:
    """Has the helper forget a job, once it has ended."""
    await link.exited(handle)
    try:
        await link.release(handle)
    except TelehandlerError:
        pass  # the helper is gone, and all it held
    link.forget(handle)
