"""How far a candidate's answers are from a reference's.

The reference answers each block of rows once; every candidate is then compared with the same answers. The
module depends neither on scikit-learn nor on a serving runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from registry.errors import Invalid, Refused
from registry.rows import Array, Outputs, Rows
from registry.signature import Output, Signature

TOLERANCE = 1e-6
"""Of a probability: absolute. Of another number: relative to it, or to the output's usual size if larger."""
MAX_SINGLE_ROWS = 64
"""Rows of a block that are answered one by one when the reference does not accept the whole block."""

AnswerRows = Callable[[Rows], Outputs]


@dataclass(frozen=True)
class ReferenceBlock:
    """Rows of one kind, and the reference's answers to them."""

    kind: str
    rows: Rows
    answers: Outputs


class ParityFigures(msgspec.Struct, kw_only=True):
    """How far a candidate is from the reference; differences are those of outputs other than labels."""

    rows: dict[str, int]
    label_mismatches: int = 0
    largest_difference: float = 0.0  # absolute or relative, as `TOLERANCE`
    beyond: int = 0  # numbers outside the tolerance
    broken: int = 0  # numbers that are NaN or infinite on one side, another number on the other
    worst: str | None = None  # the kind of rows with the most faults
    error: str | None = None  # the candidate raised

    @property
    def within(self) -> bool:
        return self.error is None and not self.label_mismatches and not self.beyond


def reference(answer: AnswerRows, kinds: dict[str, Rows]) -> list[ReferenceBlock]:
    """One block per kind, of the rows that `answer` accepts; the others cannot be compared."""
    blocks = []
    for kind, rows in kinds.items():
        accepted, answers = _accepted(answer, rows)
        if answers is not None:
            blocks.append(ReferenceBlock(kind, accepted, answers))
    return blocks


def _accepted(answer: AnswerRows, rows: Rows) -> tuple[Rows, Outputs | None]:
    if not len(rows):
        return rows, None
    if (answers := _try_answer(answer, rows)) is not None:
        return rows, answers
    chosen = np.unique(np.linspace(0, len(rows) - 1, MAX_SINGLE_ROWS).astype(int))
    accepted = [i for i in chosen.tolist() if _try_answer(answer, rows.take([i])) is not None]
    if not accepted:
        return rows, None
    rows = rows.take(accepted)
    return rows, _try_answer(answer, rows)


def _try_answer(answer: AnswerRows, rows: Rows) -> Outputs | None:
    try:
        return answer(rows)
    except Exception:  # an estimator may raise anything for rows outside its domain
        return None


def report_entry(figures: ParityFigures, tolerance: float = TOLERANCE) -> dict[str, Any]:
    """The figures and their bounds as a report states them."""
    return {
        "bounds": {
            "label_mismatches": 0,
            "probabilities": {"absolute": tolerance},
            "numbers": {"relative": tolerance},
        },
        "rows": figures.rows,
        "label_mismatches": figures.label_mismatches,
        "largest_difference": figures.largest_difference,
    }


def compare(
    blocks: list[ReferenceBlock],
    answer: AnswerRows,
    signature: Signature,
    tolerance: float = TOLERANCE,
    scales: dict[str, Any] | None = None,
) -> ParityFigures:
    """Compare `answer` with the reference. An exception of `answer` is recorded in the figures.

    `scales` are the `output_scales` of more blocks than these, when only some blocks are compared.
    """
    figures = ParityFigures(rows={b.kind: len(b.rows) for b in blocks})
    scales = scales if scales is not None else output_scales(blocks, signature)
    largest_count = 0
    for block in blocks:
        try:
            answers = answer(block.rows)
        except Exception as error:
            figures.error = f"{block.kind} rows: {error}"
            figures.worst = block.kind
            return figures
        faults = 0
        for o in signature.outputs:
            faults += _compare_output(
                figures, o, block.answers[o.name], answers[o.name], scales[o.name], tolerance
            )
        if faults > largest_count:
            figures.worst, largest_count = block.kind, faults
    return figures


def _compare_output(
    figures: ParityFigures, output: Output, expected: Array, actual: Array, scale: Any, tolerance: float
) -> int:
    """Add one output of one block to the figures; return the number of its faults."""
    if expected.shape != actual.shape:
        figures.error = f"{output.name} has the shape {actual.shape} instead of {expected.shape}"
        return expected.size
    if is_label(output):
        same = (expected == actual) | ((expected != expected) & (actual != actual))
        mismatches = int(np.count_nonzero(~same))
        figures.label_mismatches += mismatches
        return mismatches
    expected, actual = expected.astype(np.float64), actual.astype(np.float64)
    same = (expected == actual) | (np.isnan(expected) & np.isnan(actual))
    with np.errstate(all="ignore"):
        size = np.maximum(np.abs(expected), scale)
        difference = np.where(same, 0.0, np.abs(expected - actual) / np.where(size > 0, size, 1.0))
        outside = ~(difference <= tolerance)
    finite = difference[np.isfinite(difference)]
    if finite.size:
        figures.largest_difference = max(figures.largest_difference, float(finite.max()))
    figures.broken += int(np.count_nonzero(~np.isfinite(difference)))
    beyond = int(np.count_nonzero(outside))
    figures.beyond += beyond
    return beyond


def is_label(output: Output) -> bool:
    """Labels are equal or not; numbers of other outputs differ by an amount."""
    return output.dtype not in ("float64", "float32") or output.name.rpartition(".")[2] == "label"


def output_scales(blocks: list[ReferenceBlock], signature: Signature) -> dict[str, Any]:
    """By output: the size that differences are relative to where the numbers themselves are smaller."""
    return {o.name: _output_scale(o, blocks) for o in signature.outputs}


def _output_scale(output: Output, blocks: list[ReferenceBlock]) -> Any:
    """1 for probabilities, else the mean magnitude on example and random rows, per column."""
    if output.dtype not in ("float64", "float32"):
        return 0.0
    if output.name.rpartition(".")[2] == "probabilities":
        return 1.0
    plain = [b.answers[output.name] for b in blocks if b.kind in ("example", "random")]
    if not plain:
        return 0.0
    values = np.abs(np.concatenate(plain).astype(np.float64))
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    return np.where(finite, values, 0.0).sum(axis=0) / np.maximum(count, 1)


def _refused_row(answer: AnswerRows, rows: Rows) -> int | None:
    """A row that is refused alone; None when the rows are refused only together."""
    start, stop = 0, len(rows)
    while stop - start > 1:
        middle = (start + stop) // 2
        if _try_answer(answer, rows.take(slice(start, middle))) is None:
            stop = middle
        else:
            start = middle
    return start if _try_answer(answer, rows.take(slice(start, stop))) is None else None


def run_checked(runtime: Any, rows: Rows, made_up: bool) -> Outputs:
    """The answers of a published graph, for which a reference does not exist.

    Raises `Refused` when the graph fails or does not return one answer per row. `made_up`: the rows are not
    those of an example.
    """
    try:
        answers: Outputs = runtime.run(rows)
    except Invalid as error:
        hint = ""
        if made_up:
            hint = ": they are made up, so publish it with an example of the rows that it takes"
        elif (row := _refused_row(runtime.run, rows)) is not None:
            hint = f": it refuses row {row} of the example (the first is 0)"
        raise Refused(f"the graph fails on {len(rows)} rows{hint} ({error})") from error
    for name, array in answers.items():
        if (count := len(np.atleast_1d(array))) != len(rows):
            raise Refused(
                f"the graph does not return one answer per row: {count} of the output {name!r} to "
                f"{len(rows)} rows"
            )
    return answers
