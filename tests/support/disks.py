"""Small disks of a test's own, and what fills them. Mounted in the run's mount namespace; gone at the end."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def tmpfs(place: Path, options: str) -> Iterator[Path]:
    """A disk in memory, with the `options` of tmpfs(5)."""
    point = Path(tempfile.mkdtemp(prefix="disk-", dir=place))
    _run("mount", "-t", "tmpfs", "-o", f"{options},mode=0755", "none", str(point))
    try:
        yield point
    finally:
        _run("umount", "-l", str(point))


class Ext4:
    """A real file system in a file."""

    def __init__(self, place: Path, size: int) -> None:
        self.point = Path(tempfile.mkdtemp(prefix="disk-", dir=place))
        self._image = self.point.with_suffix(".image")
        with self._image.open("wb") as image:
            image.truncate(size)
        _run("mkfs.ext4", "-q", "-m", "0", str(self._image))

    def mount(self) -> None:
        _run("mount", "-o", "loop", str(self._image), str(self.point))

    def abort(self) -> None:
        """What the kernel does at an error of the disk: from now on it is read-only."""
        _run("mount", "-o", "remount,abort", str(self.point))

    def unmount(self) -> None:
        _run("umount", "-l", str(self.point))


@contextmanager
def ext4(place: Path, size: int) -> Iterator[Ext4]:
    disk = Ext4(place, size)
    disk.mount()
    try:
        yield disk
    finally:
        disk.unmount()


class Filler:
    """A file of somebody else's that takes what is free."""

    def __init__(self, disk: Path) -> None:
        self.path = disk / "of-somebody-else"

    def fill(self, leave: int = 0) -> None:
        """All but `leave` bytes."""
        status = os.statvfs(self.path.parent)
        os.truncate(self.path, 0) if self.path.exists() else self.path.touch()
        free = os.statvfs(self.path.parent).f_bavail * status.f_frsize
        fd = os.open(self.path, os.O_WRONLY)
        try:
            if leave:
                os.posix_fallocate(fd, 0, free - leave)
                return
            with open(fd, "wb", closefd=False, buffering=0) as file:
                for size in (1 << 20, 4096):
                    while True:
                        file.write(bytes(size))
        except OSError:
            pass  # full
        finally:
            os.close(fd)

    def free(self) -> None:
        self.path.unlink()
