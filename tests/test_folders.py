"""The map of folders in docs/design.md against the imports in the code."""

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_ROW = re.compile(r"^\| `(\w+)` \| ((?:`[\w.]+` ?)+)\|$", re.MULTILINE)


def _folder(module: str) -> str:
    """The folder (or file) of telehandler/ that a module is in; of the helper, wire alone has a name of its own."""
    words = module.split(".")
    if words[0] == "helper":
        return "helper.wire" if words[1:2] == ["wire"] else "helper"
    return words[1] if words[0] == "telehandler" and len(words) > 1 else ""


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_map_of_folders_is_what_the_code_imports() -> None:
    arrows: defaultdict[str, set[str]] = defaultdict(set)
    for path in (ROOT / "telehandler").rglob("*.py"):
        own = path.relative_to(ROOT / "telehandler").with_suffix("").parts[0]
        arrows[own] |= {_folder(name) for name in _imports(path)} - {own, "", "__version__"}
    del arrows["__main__"]
    text = (ROOT / "docs" / "design.md").read_text()
    told = {name: set(row.replace("`", "").split()) for name, row in _ROW.findall(text)}
    assert told == {name: found for name, found in arrows.items() if found}


def test_each_folder_says_who_runs_and_who_imports_it() -> None:
    for path in (ROOT / "telehandler").glob("*/__init__.py"):
        if path.parent.name != "pb":  # generated
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            assert "mport" in text, f"{path} says nothing of imports"
            assert "Runs in" in text or "Runs as" in text or "process" in text, f"{path} names no process"
