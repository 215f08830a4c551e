"""docs/security.md against the code: forty properties, every test of each, and code that is where it is said to be."""

import re
from pathlib import Path

import pytest
from servers import ROOT

DOCUMENT = ROOT / "docs" / "security.md"
PROPERTIES = range(1, 41)
TESTS = {
    (name, path): int(number)
    for path in (ROOT / "tests").rglob("*.py")
    for name, number in re.findall(r"^def (test_s(\d+)_\w+)", path.read_text(), re.MULTILINE)
}


def _row(number: int) -> list[str]:
    (row,) = re.findall(rf"^\| S{number} \|.*$", DOCUMENT.read_text(), re.MULTILINE)
    return [cell.strip() for cell in row.strip("|").split("|")]


def _links(cell: str) -> set[tuple[str, Path]]:
    return {(text, (DOCUMENT.parent / target).resolve()) for text, target in re.findall(r"\[(\S+)\]\((\S+)\)", cell)}


@pytest.mark.parametrize("number", PROPERTIES)
def test_a_property_has_tests_and_the_document_names_them_all(number: int) -> None:
    expected = {(name, path) for (name, path), found in TESTS.items() if found == number}
    assert expected
    assert {(f"test_s{number}_{text}", path) for text, path in _links(_row(number)[2])} == expected


@pytest.mark.parametrize("number", PROPERTIES)
def test_the_code_of_a_property_is_where_the_document_says(number: int) -> None:
    links = _links(_row(number)[3])
    assert links
    for text, path in links:
        name = text.strip("`")
        assert re.search(rf"^\s*(async )?(def|class) {name}\b|^\s*{name}\b.*[=:]", path.read_text(), re.MULTILINE) or (
            path.suffix == ".c" and f"{name}(" in path.read_text()
        ), (text, path)
