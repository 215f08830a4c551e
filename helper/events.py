"""What the helper's one loop waits for: fds, each with a callback."""

import select
from collections.abc import Callable


class Events:
    """A poll set. A callback gets the events that came for its fd, as poll(2) names them."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._callbacks: dict[int, Callable[[int], None]] = {}

    def watch(self, fd: int, wanted: int, callback: Callable[[int], None]) -> None:
        self._poll.register(fd, wanted)
        self._callbacks[fd] = callback

    def change(self, fd: int, wanted: int) -> None:
        self._poll.modify(fd, wanted)

    def unwatch(self, fd: int) -> None:
        """Must come before the fd is closed. One that is not watched is no error."""
        if self._callbacks.pop(fd, None):
            self._poll.unregister(fd)

    def wait(self, timeout_ms: int) -> None:
        """Calls back for all that has come, or returns after the timeout."""
        for fd, came in self._poll.poll(timeout_ms):
            if fd in self._callbacks:  # not unwatched by one before it
                self._callbacks[fd](came)
