"""docs/mutants.md: the mutants that no test can notice, each with the reason."""

import re
from typing import NamedTuple

from support.checkout import ROOT

DOCUMENT = ROOT / "docs" / "mutants.md"
_ROW = re.compile(r"^\| `(\S+)` \| `?(.*?)`? \| `(.+)` \| (.+) \|$", re.MULTILINE)


class Row(NamedTuple):
    file: str
    function: str
    change: str
    reason: str


def rows() -> list[Row]:
    return [Row(*map(_plain, cells)) for cells in _ROW.findall(DOCUMENT.read_text())]


def equivalent() -> set[tuple[str, str, str]]:
    return {row[:3] for row in rows()}


def row(file: str, function: str, change: str, reason: str) -> str:
    """A line of the table."""
    where = f"`{function}`" if function else ""
    return f"| `{file}` | {where} | `{change.replace('|', chr(92) + '|')}` | {reason} |"


def _plain(cell: str) -> str:
    return cell.replace("\\|", "|")
