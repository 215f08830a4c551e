"""Users take turns: what one of them has under way, or waits for, never keeps another waiting for long (S52).

Imports nothing of ours. One event loop for each object.
"""

import asyncio
import errno
import os
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

T = TypeVar("T")


class Turns:
    """So many slots, of which one user has at most so many. A slot that is given back goes to the next user in turn."""

    def __init__(self, per_user: int, slots: int = sys.maxsize) -> None:
        self._per_user, self._free = per_user, slots
        self._taken: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()  # who is next comes first

    @asynccontextmanager
    async def turn(self, user: str) -> AsyncIterator[None]:
        await self.take(user)
        try:
            yield
        finally:
            self.give_back(user)

    async def take(self, user: str) -> None:
        """Waits for a slot, which the caller gives back."""
        if self._free and self._taken[user] < self._per_user:
            return self._occupy(user)
        slot = asyncio.get_running_loop().create_future()
        queue = self._waiting.setdefault(user, deque())
        queue.append(slot)
        try:
            await slot
        except asyncio.CancelledError:
            if slot.done() and not slot.cancelled():  # given at the same moment
                self.give_back(user)
            else:
                queue.remove(slot)
                if not queue and self._waiting.get(user) is queue:
                    del self._waiting[user]
            raise

    def give_back(self, user: str) -> None:
        self._free += 1
        self._taken[user] -= 1
        if not self._taken[user]:
            del self._taken[user]
        while self._free and (following := self._next_user()) is not None:  # '' is the server itself
            queue = self._waiting.pop(following)
            slot = queue.popleft()
            if queue:
                self._waiting[following] = queue  # last in turn
            if not slot.cancelled():
                self._occupy(following)
                slot.set_result(None)

    def _next_user(self) -> str | None:
        return next((user for user in self._waiting if self._taken[user] < self._per_user), None)

    def _occupy(self, user: str) -> None:
        self._free -= 1
        self._taken[user] += 1


class Threads:
    """Threads for one kind of slow work, so that no other kind waits for it; users take turns."""

    def __init__(self, name: str, count: int, per_user: int) -> None:
        self._turns = Turns(per_user, count)
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def run(self, user: str, work: Callable[[], T]) -> T:
        """What `work` returns or raises; OSError when no thread can be had.

        A caller who is cancelled waits no longer; the thread works on, and the turn is over when it is done.
        """
        await self._turns.take(user)
        try:
            result = asyncio.get_running_loop().run_in_executor(self._executor, work)
        except RuntimeError:
            self._turns.give_back(user)
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
        result.add_done_callback(lambda done: done.cancelled() or done.exception())  # heard, if by nobody else
        result.add_done_callback(lambda _: self._turns.give_back(user))
        return await asyncio.shield(result)
