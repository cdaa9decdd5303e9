"""Measure whether a model answers each row by itself.

A model that is served receives the rows of a file or a request in blocks of any size. Its answer to a row
must therefore depend neither on the other rows and their order, nor on chance, nor on earlier calls. The
check is one function over a callable, for estimators and for every runtime.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from registry.errors import Refused, summarize_error
from registry.rows import Array, Outputs, Rows
from registry.signature import Signature
from service.compiler.measure import parity
from service.compiler.measure.parity import TOLERANCE, AnswerRows, ReferenceBlock

MAX_ROWS = 32
SINGLE_ROWS = 8
MAX_NUMBERS = 5_000_000
"""Of the answers to all rows: fewer rows are compared for a model with long answers."""

DependenceKind = Literal["twice", "order", "alone"]

_REASONS: dict[DependenceKind, str] = {
    "twice": "answers the same rows differently when they are sent again: it draws random numbers, or keeps "
    "a state between calls",
    "order": "answers a row differently in another order, or with other rows beside it",
    "alone": "answers a row differently when it is sent alone: the answer is calculated from all rows of a "
    "call, for instance from their mean",
}
_FAILS: dict[DependenceKind, str] = {
    "twice": "fails when the same rows are sent again",
    "order": "fails when its rows are sent in another order, each twice",
    "alone": "fails when one of its rows is sent alone",
}
_NEED = "rows are served in blocks of any size, so each needs an answer of its own"


@dataclass(frozen=True)
class RowDependence:
    """The first way in which answers were found to depend on something else than their row."""

    kind: DependenceKind
    output: str | None = None  # None: the model failed
    rows: int = 0  # of the compared rows, those with another answer
    compared: int = 0
    difference: float = 0.0  # the largest one of numbers, as `ParityFigures.largest_difference`
    error: str | None = None

    @property
    def reason(self) -> str:
        """Completes the sentence "the model ..."."""
        if self.error is not None:
            return f"{_FAILS[self.kind]}, although it answers them together ({self.error}); {_NEED}"
        by = f" by up to {self.difference:.2g}" if self.difference else ""
        figures = f"{self.output} differs{by} in {self.rows} of {self.compared} rows"
        return f"{_REASONS[self.kind]} ({figures}); {_NEED}"


def require_independent_rows(
    answer: AnswerRows, rows: Rows, signature: Signature, subject: str, tolerance: float = TOLERANCE
) -> None:
    """Raise `Refused` when `find_dependence` reports one. `subject` starts the sentence: "the model"."""
    dependence = find_dependence(answer, rows, signature, tolerance)
    if dependence is not None:
        raise Refused(f"{subject} {dependence.reason}")


def find_dependence(
    answer: AnswerRows, rows: Rows, signature: Signature, tolerance: float = TOLERANCE
) -> RowDependence | None:
    """Answer some of `rows` together, again, in another order each twice, and alone; compare the answers.

    `rows` are rows that `answer` accepts. Labels must be equal, except where probabilities or a score tie
    within the tolerance; numbers must be within it, as in `parity.compare`. Float rounding
    between blocks of different sizes is no dependence.
    """
    compared = sample(rows, signature)
    if not len(compared):
        return None
    first = answer(compared)
    everything = np.arange(len(compared))
    twice_shuffled = np.random.default_rng(0).permutation(np.tile(everything, 2))
    trials: list[tuple[DependenceKind, Array]] = [("twice", everything), ("order", twice_shuffled)]
    singles = np.unique(np.linspace(0, len(compared) - 1, SINGLE_ROWS).astype(int))
    comparison = _Comparison(answer, compared, first, signature, tolerance)
    for kind, index in trials:
        if (found := comparison.run(kind, [index])) is not None:
            return found
    return comparison.run("alone", [np.array([i]) for i in singles.tolist()])


def sample(rows: Rows, signature: Signature) -> Rows:
    """Rows from all parts of `rows`: as many as the check compares."""
    width = sum(math.prod(o.shape[1:]) for o in signature.outputs)
    count = min(len(rows), MAX_ROWS, max(2, MAX_NUMBERS // max(width, 1)))
    return rows.take(np.unique(np.linspace(0, len(rows) - 1, count).astype(int))) if count else rows


@dataclass(frozen=True)
class _Comparison:
    answer: AnswerRows
    rows: Rows
    first: Outputs  # the answers to `rows`
    signature: Signature
    tolerance: float

    def run(self, kind: DependenceKind, blocks: list[Array]) -> RowDependence | None:
        """Answer each block of positions in `rows` in a call of its own."""
        answers: list[Outputs] = []
        for index in blocks:
            try:
                answers.append(self.answer(self.rows.take(index)))
            except Exception as error:  # a model may raise anything
                return RowDependence(kind, error=summarize_error(error, max_characters=200))
        positions = np.concatenate(blocks)
        expected = {o.name: self.first[o.name][positions] for o in self.signature.outputs}
        actual = {o.name: np.concatenate([a[o.name] for a in answers]) for o in self.signature.outputs}
        return self._differences(kind, positions, expected, actual)

    def _differences(
        self, kind: DependenceKind, positions: Array, expected: Outputs, actual: Outputs
    ) -> RowDependence | None:
        scales = parity.output_scales([ReferenceBlock("example", self.rows, self.first)], self.signature)
        rows = self.rows.take(positions)
        actual = _with_ties(expected, actual, self.tolerance, scales)
        for output in self.signature.outputs:
            only = Signature(self.signature.task, self.signature.inputs, (output,))
            figures = parity.compare(
                [ReferenceBlock("example", rows, expected)], lambda _: actual, only, self.tolerance, scales
            )
            if not figures.within:
                differing = _differing_rows(expected[output.name], actual[output.name])
                return RowDependence(
                    kind, output.name, differing, len(positions), figures.largest_difference, figures.error
                )
        return None


def _differing_rows(expected: Array, actual: Array) -> int:
    if expected.shape != actual.shape:
        return len(expected)
    same = (expected == actual) | ((expected != expected) & (actual != actual))
    return int((~same.reshape(len(same), -1).all(axis=1)).sum())


def _with_ties(expected: Outputs, actual: Outputs, tolerance: float, scales: dict[str, float]) -> Outputs:
    """`actual` with the expected labels where rounding decides between them.

    There, the two best probabilities are equal within the tolerance, or the score is 0, and they differ at
    all from the expected ones: labels that differ while the numbers are the same come from elsewhere.
    """
    result = dict(actual)
    for name, labels in expected.items():
        target, _, last = name.rpartition(".")
        prefix = f"{target}." if target else ""
        if last != "label" or labels.shape != actual[name].shape:
            continue
        for decisive in (f"{prefix}probabilities", f"{prefix}score"):
            if decisive not in expected or expected[decisive].shape != actual[decisive].shape:
                continue
            numbers = expected[decisive].astype(np.float64).reshape(len(labels), -1)
            rounded = (numbers != actual[decisive].reshape(len(labels), -1)).any(axis=1)
            tied = _is_tied(numbers, tolerance, float(np.max(scales[decisive])))
            result[name] = np.where(rounded & tied, labels, actual[name])
    return result


def _is_tied(numbers: Array, tolerance: float, scale: float) -> Array:
    """[n] for [n, classes] probabilities, or for [n, 1] scores, whose sign is the label."""
    if numbers.shape[1] == 1:
        tied: Array = np.abs(numbers[:, 0]) <= tolerance * max(1.0, scale)
        return tied
    best = np.sort(numbers, axis=1)
    return np.asarray(best[:, -1] - best[:, -2] <= 2 * tolerance)
