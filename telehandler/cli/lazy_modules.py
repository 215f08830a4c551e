"""Modules that grpc and protobuf import and most verbs never use: a quarter of the time of a start.

Each is loaded when something of it is used for the first time, by the standard library's LazyLoader.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType

# grpc's asynchronous half, and what protobuf needs where it lacks its C extension.
_UNUSED = ("asyncio", "grpc.aio", "google.protobuf.internal.python_message")


class _Finder:
    """Of sys.meta_path. Without its abstract class, whose import would cost more than this saves."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname in _UNUSED else None
        if spec and spec.loader:
            spec.loader = LazyLoader(spec.loader)
        return spec


def install() -> None:
    """For what this process imports from now on. The first use must be of one thread: LazyLoader has no lock."""
    sys.meta_path.insert(0, _Finder())
