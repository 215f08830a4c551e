"""named.toml: for each property mutants of the code that proves it, and the tests that must fail on each."""

import tomllib
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("named.toml")


class Named(NamedTuple):
    """`old` is in the file once; `tests` are pytest's node ids, at least one of which must fail."""

    property: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def changed(self, text: str) -> str:
        if text.count(self.old) != 1:
            raise ValueError(f"{self.property}: {self.file} has {text.count(self.old)} times {self.old!r}, not once")
        return text.replace(self.old, self.new)


def mutants() -> list[Named]:
    tables = tomllib.loads(FILE.read_text())
    return [
        Named(key, row["file"], row["old"], row["new"], tuple(row["tests"]))
        for key, rows in tables.items()
        for row in rows
    ]
