"""The project's own rules: what root imports and how long it is, who may import what, generated code, links."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HELPER = ROOT / "helper"
PRODUCT = ROOT / "telehandler"
GENERATED = PRODUCT / "pb"
MAX_ROOT_LINES, MAX_ROOT_FILE = 1400, 320  # of code in all; of a file, as wc counts
AS_JOB = "init.py"  # runs as the job's uid, after every privilege is gone
# Whatever is added here runs as root: small, without a network, a parser of foreign formats or a name service.
ROOT_IMPORTS = set(
    "capng collections contextlib ctypes enum errno fcntl gc helper os prctl re resource select signal socket stat "
    "struct sys termios time tomllib types typing".split()
)
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *HELPER.glob("*.md")])
PROTO = "proto/telehandler/v1/telehandler.proto"


def _sources(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*.py") if GENERATED not in path.parents)


def _imports(path: Path) -> Iterator[str]:
    """Every module named in an import statement, at any depth; `from a import b` gives a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(), path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a module is from"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _docstring_lines(tree: ast.Module) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body:
                case [ast.Expr(value=ast.Constant(value=str())) as text, *_]:
                    lines.update(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    return lines


def _code_lines(path: Path) -> int:
    """Lines that hold code: not blank, not only a comment, not a docstring."""
    source = path.read_text()
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in blank:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - _docstring_lines(ast.parse(source)))


def test_s30_code_that_runs_as_root_is_short() -> None:
    counts = {path.name: _code_lines(path) for path in _sources(HELPER) if path.name != AS_JOB}
    assert counts
    assert sum(counts.values()) < MAX_ROOT_LINES, counts
    lengths = {path.name: path.read_text().count("\n") for path in _sources(HELPER)}
    assert max(lengths.values()) <= MAX_ROOT_FILE, lengths


def test_s30_code_that_runs_as_root_imports_only_what_is_listed() -> None:
    found = {name.partition(".")[0] for path in _sources(HELPER) for name in _imports(path)}
    assert found <= ROOT_IMPORTS


def test_s4_code_that_runs_as_root_has_no_way_to_run_data() -> None:
    forbidden = {"eval", "exec", "compile", "__import__", "breakpoint", "input"}
    for path in _sources(HELPER):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in forbidden, f"{path}:{node.lineno}"


def test_the_product_imports_only_the_wire_of_the_helper() -> None:
    for path in _sources(PRODUCT):
        for name in _imports(path):
            top, _, rest = name.partition(".")
            assert top not in {"prctl", "capng"}, f"{path} imports {name}: under the GPL, and for the helper alone"
            assert top != "helper" or rest.partition(".")[0] in {"", "wire"}, f"{path} imports {name}"


@pytest.mark.parametrize("module", ["telehandler.cli", "telehandler.supervisor.server"])
def test_grpc_is_imported_only_where_it_is_used(module: str) -> None:
    code = f"import sys, {module}; sys.exit(any(name.partition('.')[0] == 'grpc' for name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_generated_code_is_what_the_proto_says(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-Itelehandler/pb={Path(PROTO).parent}"]
    command += [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi")]
    subprocess.run([*command, PROTO], cwd=ROOT, check=True)
    generated = {path.name: path.read_text() for path in (tmp_path / "telehandler" / "pb").iterdir()}
    checked_in = {path.name: path.read_text() for path in GENERATED.glob("*_pb2*")}
    assert checked_in == generated, "run `make proto`"


def test_the_seccomp_listing_is_what_the_table_says() -> None:
    command = [sys.executable, "contrib/seccomp_filter.py"]
    generated = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert (HELPER / "seccomp.bpf").read_text() == generated, "run `make seccomp`"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_in_documents_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        file, _, anchor = target.partition("#")
        if "://" in file:
            continue
        place = (document.parent / file) if file else document
        assert place.exists(), f"{document.name} links to {target}"
        if anchor:
            assert anchor in _anchors(place), f"{document.name} links to {target}"


def _anchors(document: Path) -> set[str]:
    """The anchors that headings get where this repository is shown."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_names_only_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert named <= targets


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec make test"
    assert "make test" in (ROOT / "README.md").read_text()
