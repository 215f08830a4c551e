"""docs/security.md and docs/reliability.md against the code: each property, each fault, all of their tests."""

import re
from pathlib import Path

import pytest
from support.checkout import ROOT

DOCS = ROOT / "docs"
PROPERTIES = [f"S{number}" for number in range(1, 56)]
FAULTS = [f"R{number}" for number in (*range(1, 27), 28, 29)]
TESTS = {
    (name, path): key.upper()
    for path in (ROOT / "tests").rglob("*.py")
    for name, key in re.findall(r"^def (test_([rs]\d+)_\w+)", path.read_text(), re.MULTILINE)
}


def _row(key: str) -> list[str]:
    document = DOCS / ("security.md" if key in PROPERTIES else "reliability.md")
    (row,) = re.findall(rf"^\| {key} \|.*$", document.read_text(), re.MULTILINE)
    return [cell.strip() for cell in row.strip("|").split("|")]


def _links(cell: str) -> set[tuple[str, Path]]:
    return {(text, (DOCS / target).resolve()) for text, target in re.findall(r"\[(\S+)\]\((\S+)\)", cell)}


@pytest.mark.parametrize("key", [*PROPERTIES, *FAULTS])
def test_it_has_tests_and_the_document_names_them_all(key: str) -> None:
    expected = {(name, path) for (name, path), found in TESTS.items() if found == key}
    assert expected
    assert {(f"test_{key.lower()}_{text}", path) for text, path in _links(_row(key)[2])} == expected


@pytest.mark.parametrize("key", PROPERTIES)
def test_the_code_of_a_property_is_where_the_document_says(key: str) -> None:
    links = _links(_row(key)[3])
    assert links
    for text, path in links:
        name = text.strip("`")
        assert re.search(rf"^\s*(async )?(def|class) {name}\b|^\s*{name}\b.*[=:]", path.read_text(), re.MULTILINE) or (
            path.suffix == ".c" and f"{name}(" in path.read_text()
        ), (text, path)
