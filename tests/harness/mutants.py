"""Mutants of a Python file: copies with one small fault, of the kinds that reviews and incidents find.

A mutant omits a call, a `raise` or an assignment, swaps two successive calls, omits a condition or an operand
of it, moves a bound by one, omits an argument, or negates. Texts, log lines and annotations are not changed.

The operators are those of Offutt et al., "An Experimental Determination of Sufficient Mutant Operators"
(1996), and statement deletion of Deng, Offutt and Li, "Empirical Evaluation of the Statement Deletion
Mutation Operator" (2013): a missing fsync or second check is a deleted statement.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, cast

COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
ARITHMETIC: dict[type[ast.operator], str] = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*"}
LOG_METHODS = {"debug", "info", "warning", "error", "exception"}
FILTERS = {"where", "filter", "with_for_update", "order_by", "limit"}
"""Methods of SQL statements whose arguments are omitted one at a time, or all with the call."""


class Mutant(NamedTuple):
    path: Path
    """Relative to the repository."""
    line: int
    description: str
    original: bytes
    content: bytes
    """The whole file with the fault."""

    @property
    def place(self) -> str:
        return f"{self.path}:{self.line}: {self.description}"

    @property
    def patch(self) -> str:
        """A patch for `git apply`."""
        lines = difflib.unified_diff(
            self.original.decode().splitlines(keepends=True),
            self.content.decode().splitlines(keepends=True),
            f"a/{self.path}",
            f"b/{self.path}",
        )
        return f"# {self.place}\n{''.join(lines)}"


class Edit(NamedTuple):
    """Replace the bytes from `start` to `end` by `text`."""

    start: int
    end: int
    text: bytes
    description: str


def mutants_of(root: Path, path: Path, lines: set[int] | None = None) -> list[Mutant]:
    """Return the mutants of `root/path` that begin in one of `lines` (None: all), in the file's order."""
    original = (root / path).read_bytes()
    source = _Source(original)
    mutants = []
    for edit in sorted(set(source.edits()), key=lambda edit: (edit.start, edit.end, edit.text)):
        line = original.count(b"\n", 0, edit.start) + 1
        content = original[: edit.start] + edit.text + original[edit.end :]
        if (lines is None or line in lines) and _compiles(content):
            mutants.append(Mutant(path, line, edit.description, original, content))
    return mutants


def changed_lines(patch: str) -> dict[Path, set[int]]:
    """Return the lines that `patch`, from `git diff -U0`, adds or changes, by file."""
    lines: dict[Path, set[int]] = {}
    path = Path()
    for row in patch.splitlines():
        if row.startswith("+++ "):
            path = Path(row[4:].removeprefix("b/"))
        elif hunk := re.match(r"@@ -\S+ \+(\d+)(?:,(\d+))? @@", row):
            first, count = int(hunk[1]), int(hunk[2] or 1)
            if count:
                lines.setdefault(path, set()).update(range(first, first + count))
    return lines


def mirrored_tests(root: Path, path: Path) -> list[str]:
    """Return the test files of `path` in the order in which they are likely to fail.

    First `tests/.../test_NAME.py`, then files with NAME in their name, then files that import the module,
    nearest first. Without a `test_NAME.py`, the other tests of the mirrored directory come last.
    """
    directory, name = Path("tests") / path.parent, path.stem
    if not (root / directory).is_dir():
        directory = directory.parent
    if name == "__init__":
        name = path.parent.name
    module = ".".join(path.with_suffix("").parts)
    import_line = re.compile(
        rf"(import {re.escape(module)}\b)|(from {re.escape(module)} import)"
        rf"|(from {re.escape(module.rpartition('.')[0])} import [^\n]*\b{name}\b)"
    )
    exact = list((root / directory).glob(f"test_{name}.py"))
    named = sorted(set((root / directory).rglob(f"test_*{name}*.py")) - set(exact))
    importing = [
        file
        for file in sorted((root / "tests").rglob("test_*.py"))
        if file not in exact and file not in named and import_line.search(file.read_text(encoding="utf-8"))
    ]
    near = sorted(importing, key=lambda file: not file.is_relative_to(root / directory))
    chosen = exact + named + near
    if not exact:
        chosen += [file for file in sorted((root / directory).glob("test_*.py")) if file not in chosen]
    return [str(file.relative_to(root)) for file in chosen]


class _Source:
    """A parsed file, with the byte offset of each node."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._tree = ast.parse(content)
        self._line_starts = [0]
        for line in content.splitlines(keepends=True):
            self._line_starts.append(self._line_starts[-1] + len(line))
        self._skipped = {id(inner) for node in _unchanged(self._tree) for inner in ast.walk(node)}

    def edits(self) -> Iterator[Edit]:
        for node in ast.walk(self._tree):
            if id(node) in self._skipped:
                continue
            yield from self._statement_lists(node)
            yield from self._conditions(node)
            yield from self._operators(node)
            yield from self._constants(node)
            yield from self._arguments(node)

    def _statement_lists(self, node: ast.AST) -> Iterator[Edit]:
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if not isinstance(statements, list):
                continue
            for statement in statements:
                if _can_be_omitted(statement) and id(statement) not in self._skipped:
                    yield self._edit(statement, b"pass", f"omit `{self._summary(statement)}`")
            for first, second in pairwise(statements):
                if _is_call(first) and _is_call(second):
                    swapped = self._text(second) + self._between(first, second) + self._text(first)
                    start, end = self._span(first)[0], self._span(second)[1]
                    yield Edit(start, end, swapped, f"swap `{self._summary(first)}` and the next call")

    def _conditions(self, node: ast.AST) -> Iterator[Edit]:
        if isinstance(node, ast.If | ast.While | ast.IfExp):
            yield self._edit(node.test, b"not (" + self._text(node.test) + b")", "negate the condition")
        elif isinstance(node, ast.comprehension):
            for test in node.ifs:
                yield self._edit(test, b"True", f"omit the condition `{self._summary(test)}`")
        elif isinstance(node, ast.BoolOp):
            neutral = b"True" if isinstance(node.op, ast.And) else b"False"
            for value in node.values:
                if not any(isinstance(inner, ast.NamedExpr) for inner in ast.walk(value)):
                    yield self._edit(value, neutral, f"omit the operand `{self._summary(value)}`")
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield self._edit(node, self._text(node.operand), f"omit `not` of `{self._summary(node.operand)}`")

    def _operators(self, node: ast.AST) -> Iterator[Edit]:
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            replacement = COMPARISONS[type(node.ops[0])]
            left, right = self._text(node.left), self._text(node.comparators[0])
            between = self._between(node.left, node.comparators[0])
            if b"(" in between or b")" in between or b"#" in between:
                left, right = b"(" + left + b")", b"(" + right + b")"
                if self._text(node).count(b"(") != self._text(node).count(b")"):
                    return
            text = left + b" " + replacement.encode() + b" " + right
            yield self._edit(node, text, f"`{self._summary(node)}` with `{replacement}`")
        elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC and not _is_text(node):
            replacement = ARITHMETIC[type(node.op)]
            start, end = self._span(node.left)[1], self._span(node.right)[0]
            between = self._content[start:end]
            operator = re.sub(rb"[-+*/]", replacement.encode(), between, count=1)
            yield Edit(start, end, operator, f"`{self._summary(node)}` with `{replacement}`")

    def _constants(self, node: ast.AST) -> Iterator[Edit]:
        if not isinstance(node, ast.Constant):
            return
        if isinstance(node.value, bool):
            yield self._edit(node, str(not node.value).encode(), f"{node.value} -> {not node.value}")
        elif isinstance(node.value, int):
            yield self._edit(node, str(node.value + 1).encode(), f"{node.value} -> {node.value + 1}")

    def _arguments(self, node: ast.AST) -> Iterator[Edit]:
        if not isinstance(node, ast.Call):
            return
        function = node.func
        if isinstance(function, ast.Name) and function.id in ("min", "max"):
            other = b"max" if function.id == "min" else b"min"
            yield self._edit(function, other, f"{function.id} -> {other.decode()}")
        if isinstance(function, ast.Attribute) and function.attr in FILTERS:
            call = (self._span(function.value)[1], self._span(node)[1])
            yield Edit(*call, b"", f"omit `.{function.attr}(...)`")
            if len(node.args) > 1:
                for argument in node.args:
                    yield self._without(argument, f"omit `{self._summary(argument)}`")
        for keyword in node.keywords:
            if keyword.arg and isinstance(keyword.value, ast.Constant):
                yield self._without(keyword, f"omit `{keyword.arg}=`")

    def _without(self, argument: ast.expr | ast.keyword, description: str) -> Edit:
        """Omit an argument with the comma that follows or precedes it."""
        start, end = self._span(argument)
        if following := re.match(rb"\s*,\s*", self._content[end:]):
            return Edit(start, end + following.end(), b"", description)
        before = self._content[:start].rstrip().removesuffix(b",")
        return Edit(len(before), end, b"", description)

    def _edit(self, node: ast.stmt | ast.expr, text: bytes, description: str) -> Edit:
        return Edit(*self._span(node), text, description)

    def _span(self, node: ast.stmt | ast.expr | ast.keyword) -> tuple[int, int]:
        first = self._line_starts[node.lineno - 1] + node.col_offset
        last = self._line_starts[cast(int, node.end_lineno) - 1] + cast(int, node.end_col_offset)
        return first, last

    def _text(self, node: ast.stmt | ast.expr) -> bytes:
        start, end = self._span(node)
        return self._content[start:end]

    def _between(self, first: ast.stmt | ast.expr, second: ast.stmt | ast.expr) -> bytes:
        return self._content[self._span(first)[1] : self._span(second)[0]]

    def _summary(self, node: ast.stmt | ast.expr) -> str:
        text = " ".join(self._text(node).decode().split())
        return text if len(text) <= 60 else text[:57] + "..."


def _unchanged(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield nodes without mutants: annotations, decorators, class bases, texts and log lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from node.decorator_list
            yield from filter(None, [node.returns])
        elif isinstance(node, ast.ClassDef):
            yield from [*node.decorator_list, *node.bases, *node.keywords]
        elif isinstance(node, ast.arg | ast.AnnAssign):
            yield from filter(None, [node.annotation])
        elif _is_text_or_log(node) or (isinstance(node, ast.If) and _is_type_checking(node.test)):
            yield node


def _is_text_or_log(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) or _is_log(node.value)
    return isinstance(node, ast.JoinedStr)


def _is_log(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in LOG_METHODS
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id.lower() in ("log", "logger", "_log", "logging", "_logger")
    )


def _is_type_checking(node: ast.expr) -> bool:
    names: Iterable[ast.AST] = ast.walk(node)
    return any(isinstance(n, ast.Name) and n.id == "TYPE_CHECKING" for n in names)


def _is_call(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Expr) or _is_log(statement.value):
        return False
    value = statement.value.value if isinstance(statement.value, ast.Await) else statement.value
    return isinstance(value, ast.Call)


def _can_be_omitted(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Assign):
        return all(isinstance(target, ast.Attribute | ast.Subscript) for target in statement.targets)
    return _is_call(statement) or isinstance(
        statement, ast.Raise | ast.Assert | ast.AugAssign | ast.Delete | ast.Continue | ast.Break
    )


def _is_text(node: ast.BinOp) -> bool:
    return any(_is_string(side) for side in (node.left, node.right))


def _is_string(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
    )


def _compiles(content: bytes) -> bool:
    try:
        compile(content, "mutant", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True
