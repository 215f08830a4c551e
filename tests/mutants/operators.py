"""Every mutant of a source text: cosmic-ray's operators, those that make the nearest wrong program, and two of ours."""

import ast
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import parso.python.tree
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator

# Of the replacements of one operator by each other one: the nearest, which a test misses first.
_COMPARISONS = "Lt_LtE LtE_Lt Gt_GtE GtE_Gt Eq_NotEq NotEq_Eq Is_IsNot IsNot_Is"
_ARITHMETIC = "Add_Sub Sub_Add Mul_FloorDiv FloorDiv_Mul Div_Mul Mod_Add BitOr_BitAnd BitAnd_BitOr LShift_RShift"
_NAMES = (
    *"AddNot ReplaceTrueWithFalse ReplaceFalseWithTrue ReplaceAndWithOr ReplaceOrWithAnd".split(),
    *"ReplaceBreakWithContinue ReplaceContinueWithBreak ExceptionReplacer NumberReplacer".split(),
    *"RemoveDecorator ZeroIterationForLoop ReplaceUnaryOperator_Delete_Not".split(),
    *(f"ReplaceComparisonOperator_{pair}" for pair in _COMPARISONS.split()),
    *(f"ReplaceBinaryOperator_{pair}" for pair in _ARITHMETIC.split()),
)
# Bounds, paces and sizes that somebody chose: tests take them from the code, so one more or less is as good.
_CHOSEN = re.compile(r"_?((MAX|LEAST)_\w+|VERSION|\w*(MAX|BOUND|SIZE|BYTES|_S|_MS|_USEC|FILE|TRIES|MOVES)) = ")


class Mutant(NamedTuple):
    """A changed text. `function` and `change` tell it from others, whatever its line's number is by now."""

    file: str
    line: int
    function: str
    change: str
    text: str


class RemoveStatement(Operator):  # type: ignore[misc]  # cosmic-ray has no types
    """A call for its effect, a raise, a return of nothing, a change of an attribute or an item: left out."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type == "simple_stmt" and _has_effect(node.children[0]):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        first = node.children[0].get_first_leaf()
        node.children[0] = parso.python.tree.Keyword("pass", first.start_pos, prefix=first.prefix)
        return node

    @classmethod
    def examples(cls) -> tuple[Any, ...]:
        return ()


class SwapMembership(Operator):  # type: ignore[misc]
    """`in` as `not in`, and the other way."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type == "comparison" and _membership(node):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        old = node.children[1]
        word = "not in" if _membership(node) == ["in"] else "in"
        node.children[1] = parso.python.tree.Keyword(word, old.start_pos, prefix=old.get_first_leaf().prefix)
        return node

    @classmethod
    def examples(cls) -> tuple[Any, ...]:
        return ()


def _membership(comparison: Any) -> list[str]:
    words: list[str] = comparison.children[1].get_code().split()
    return words if words in (["in"], ["not", "in"]) else []


def _has_effect(statement: Any) -> bool:
    if statement.type == "expr_stmt":  # of a new name: without it nothing runs, which says nothing
        target, operator = statement.children[:2]
        return bool(target.type == "atom_expr" or operator.type == "augassign")
    return statement.type in ("atom_expr", "await_expr", "raise_stmt", "del_stmt") or statement.get_code().strip() in (
        "return",
        "raise",
    )


def mutants(file: str, text: str) -> list[Mutant]:
    """All of them, by line; no two with one text, and none that is no Python."""
    found: dict[str, Mutant] = {}
    nodes = list(ast_nodes(get_ast(text)))
    for operator in (*(get_operator(f"core/{name}")() for name in _NAMES), RemoveStatement(), SwapMembership()):
        count = sum(len(list(operator.mutation_positions(node))) for node in nodes)
        for occurrence in range(count):
            changed = _mutated(text, operator, occurrence)
            if changed and changed != text and changed not in found and _compiles(changed):
                line, change = _difference(text, changed)
                if not _CHOSEN.match(text.splitlines()[line - 1]):
                    found[changed] = Mutant(file, line, function_at(text, line), change, changed)
    return sorted(found.values(), key=lambda mutant: (mutant.line, mutant.change))


def _mutated(text: str, operator: Operator, occurrence: int) -> str | None:
    try:
        changed: str | None = mutate_code(text, operator, occurrence)
        return changed
    except AttributeError:  # cosmic-ray's ExceptionReplacer at a dotted name, as in `except tomllib.TOMLDecodeError`
        return None


def _compiles(text: str) -> bool:
    try:
        compile(text, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def _difference(before: str, after: str) -> tuple[int, str]:
    """Line number, and the line with what was replaced: `if «a → b» < c:`."""
    old, new = before.splitlines(), after.splitlines()
    start, end = _common(old, new)
    return start + 1, marked(_joined(old[start : len(old) - end]), _joined(new[start : len(new) - end]))


def _common(old: list[str], new: list[str]) -> tuple[int, int]:
    """How many are the same at the beginning, and at the end."""
    most, start, end = min(len(old), len(new)), 0, 0
    while start < most and old[start] == new[start]:
        start += 1
    while end < most - start and old[-1 - end] == new[-1 - end]:
        end += 1
    return start, end


def _joined(lines: list[str]) -> str:
    return " ".join(line.strip() for line in lines)


def marked(old: str, new: str) -> str:
    """Two lines as one, word by word."""
    words, others = (re.findall(r"\w+|\s+|[^\w\s]+", line) for line in (old, new))
    start, end = _common(words, others)
    middle = ["".join(part[start : len(part) - end]).strip() for part in (words, others)]
    return "".join(words[:start]) + f"«{middle[0]} → {middle[1]}»" + "".join(words[len(words) - end :])


def function_at(text: str, line: int) -> str:
    """The function or class that a line is in; empty for the module."""
    inside = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and node.lineno <= line <= (node.end_lineno or 0)
    ]
    return ".".join(node.name for node in sorted(inside, key=lambda node: node.lineno))
