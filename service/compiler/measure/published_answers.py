"""Compare a version's answers with the publisher's: what the model answered where it was trained.

The other measures compare the served form with the model as it is loaded here. This one also finds a model
that answers differently here, because of another library version or because of how its rows are read.

Answers are text more often than not, so numbers that were rounded when they were written are compared as far
as they were written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from registry.errors import Refused
from registry.rows import Array, Outputs
from registry.signature import Output, Signature
from registry.vocabulary import Format
from service.compiler.measure import answer_table, parity
from service.runtime.codec.answer_encoder import AnswerEncoder
from service.runtime.codec.columns import show

TOLERANCES: dict[Format, float] = {"sklearn-joblib": 1e-5, "onnx": 1e-3, "keras": 1e-3, "tflite": 1e-3}
"""Of a probability: absolute. Of another number: as in `parity.TOLERANCE`.

Ten times the bound between a model and its served form: the publisher's machine rounds as well. Graphs
compute in float32, where another order of additions changes more digits."""
MAX_ROUNDING = 5e-3
"""Numbers that were rounded more coarsely than this, as a share of their usual size, are not accepted."""
MIN_DIGITS, MIN_DECIMALS = 3, 2
"""A column whose numbers have fewer significant digits and decimals is taken as exact."""
MAX_EXAMINED = 1000
"""Numbers of a column whose digits are counted."""
MAX_WORST = 10


@dataclass
class AnswerFigures:
    """How far the answers are from the publisher's; differences are those of columns other than labels."""

    tolerance: float
    rows: int
    columns: list[str]
    label_mismatches: int = 0
    ties: int = 0  # other labels whose class has the same probability
    largest_difference: float = 0.0
    beyond: int = 0  # numbers outside the tolerance, and those that only one side has
    missing: int = 0  # of `beyond`: numbers that only one side has
    coarse: list[str] = field(default_factory=list)  # columns with too few digits to be compared as rounded
    rounding: float = 0.0  # the largest difference that was accepted because of how numbers were written
    worst: list[dict[str, Any]] = field(default_factory=list)  # row, column, expected, actual

    @property
    def within(self) -> bool:
        return not self.label_mismatches and not self.beyond

    def to_json(self) -> dict[str, Any]:
        bounds: dict[str, Any] = {
            "label_mismatches": 0,
            "probabilities": {"absolute": self.tolerance},
            "numbers": {"relative": self.tolerance},
        }
        if self.rounding:
            bounds["rounding"] = self.rounding
        return {
            "rows": self.rows,
            "columns": self.columns,
            "label_mismatches": self.label_mismatches,
            "ties": self.ties,
            "largest_difference": self.largest_difference,
            "bounds": bounds,
            "worst": self.worst,
        }

    def explain(self) -> str:
        """Why the version is rejected, with the worst row."""
        faults = []
        if self.label_mismatches:
            faults.append(f"{self.label_mismatches} labels differ")
        if off := self.beyond - self.missing:
            faults.append(f"{off} numbers are off by up to {self.largest_difference:.2g}")
        if self.missing:
            faults.append(f"{self.missing} numbers are missing on one side")
        worst = self.worst[0]
        return (
            f"the version does not give the publisher's answers: {' and '.join(faults)} in {self.rows} rows; "
            f"in row {worst['row']} (the first is 0) {worst['column']} is {show(worst['actual'])}, the "
            f"answers have {show(worst['expected'])}. Check that the answers belong to this model and are in "
            f"the example's order.{self._explain_coarse()} A model made with other library versions has to "
            "be trained with those of this server, or converted where it was made and published as .onnx"
        )

    def _explain_coarse(self) -> str:
        if not self.coarse:
            return ""
        return (
            f" The numbers of {show(self.coarse[0])} have fewer than {MIN_DECIMALS} decimals and "
            f"{MIN_DIGITS} digits, so they are taken as exact: if they were rounded, write them with more."
        )


def read(path: Path, media_type: str | None, example_rows: int) -> dict[str, pa.Array]:
    """The publisher's answers, one for each of `example_rows`. Raises `Refused`, with the reason."""
    table = answer_table.read(path, media_type)
    rows = len(next(iter(table.values()))) if table else 0
    if rows != example_rows:
        raise Refused(
            f"the answers have {rows} rows and the example has {example_rows}; they must have the same rows "
            "in the same order"
        )
    return table


def compare(
    table: dict[str, pa.Array],
    usable: Array,
    served: Outputs,
    signature: Signature,
    tolerance: float,
) -> AnswerFigures:
    """Compare `served`, the answers to the example's `usable` rows (bool [n]), with the publisher's `table`.

    Rows of the table after the first n are not compared. Raises `Refused` when the table has other columns
    than the version's answers, or values of another type.
    """
    columns = _answer_columns(signature, served)
    answer_table.require_known(list(table), list(columns))
    rows = np.flatnonzero(usable)
    faults = _WorstRows(rows)
    figures = AnswerFigures(tolerance, len(rows), list(table))
    for name, expected in table.items():
        output, actual = columns[name]
        if parity.is_label(output):
            labels = answer_table.labels(name, expected.slice(0, len(usable)), output.dtype)
            probabilities = _probabilities(output, signature, served)
            _compare_labels(figures, faults, name, [labels[r] for r in rows], actual, probabilities)
        else:
            values = answer_table.numbers(name, expected.slice(0, len(usable)))[rows]
            _compare_numbers(figures, faults, name, values, actual.astype(np.float64), output)
    figures.worst = faults.listed()
    return figures


def _answer_columns(signature: Signature, served: Outputs) -> dict[str, tuple[Output, Array]]:
    """The columns of a batch output by name, with the output that each belongs to."""
    return {
        name: (output, array)
        for output, encoded in zip(signature.outputs, AnswerEncoder(signature).fields, strict=True)
        for name, array in encoded.columns(served)
    }


class _WorstRows:
    """For each row, the column with the largest fault."""

    def __init__(self, rows: Array) -> None:
        self._rows = rows  # their numbers in the example
        self._severity = np.zeros(len(rows))
        self._entries: dict[int, dict[str, Any]] = {}

    def add(self, column: str, expected: list[Any], actual: list[Any], severity: Array) -> None:
        """`severity`, float [n]: 0 without a fault, infinite for a label."""
        for index in np.flatnonzero(severity > self._severity).tolist():
            self._severity[index] = severity[index]
            self._entries[index] = {
                "row": int(self._rows[index]),
                "column": column,
                "expected": _json_value(expected[index]),
                "actual": _json_value(actual[index]),
            }

    def listed(self) -> list[dict[str, Any]]:
        order = np.argsort(-self._severity, kind="stable")[:MAX_WORST]
        return [self._entries[i] for i in order.tolist() if i in self._entries]


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _compare_labels(
    figures: AnswerFigures,
    faults: _WorstRows,
    name: str,
    expected: list[Any],
    actual: Array,
    probabilities: _Probabilities | None,
) -> None:
    labels = actual.tolist()
    other = np.array([e != a and not _both_missing(e, a) for e, a in zip(expected, labels, strict=True)])
    tied = np.zeros(len(labels), dtype=bool)
    if probabilities is not None:
        for row in np.flatnonzero(other).tolist():
            gap = probabilities.gap(row, expected[row], labels[row])
            tied[row] = gap is not None and gap <= 2 * figures.tolerance
    figures.ties += int(tied.sum())
    mismatches = other & ~tied
    figures.label_mismatches += int(mismatches.sum())
    faults.add(name, expected, labels, np.where(mismatches, np.inf, 0.0))


def _both_missing(expected: Any, actual: Any) -> bool:
    return expected is None and isinstance(actual, float) and actual != actual


class _Probabilities(NamedTuple):
    """The served probabilities of one target, [n, k], and the column of each class."""

    values: Array
    index_of: dict[Any, int]

    def gap(self, row: int, first: Any, second: Any) -> float | None:
        """The difference between the probabilities of two classes: rounding decides between equal ones."""
        if first not in self.index_of or second not in self.index_of:
            return None
        pair = self.values[row, [self.index_of[first], self.index_of[second]]]
        return float(abs(pair[0] - pair[1]))


def _probabilities(label: Output, signature: Signature, served: Outputs) -> _Probabilities | None:
    name = label.name.removesuffix("label") + "probabilities"
    classes = next((o.classes for o in signature.outputs if o.name == name), None)
    return None if classes is None else _Probabilities(served[name], {c: i for i, c in enumerate(classes)})


def _compare_numbers(
    figures: AnswerFigures, faults: _WorstRows, name: str, expected: Array, actual: Array, output: Output
) -> None:
    size = np.maximum(np.abs(expected), _scale(output, actual))
    size = np.where(np.isfinite(size) & (size > 0), size, 1.0)
    # NaN and infinity are missing in an answer, and therefore also in a table of answers
    same = (expected == actual) | (np.isnan(expected) & ~np.isfinite(actual))
    written = _rounding(expected)
    rounding = np.minimum(np.zeros(len(expected)) if written is None else written, MAX_ROUNDING * size)
    difference = np.where(same, 0.0, np.abs(expected - actual))
    allowed = figures.tolerance * size + rounding
    beyond = ~(difference <= allowed)
    relative = difference / size
    finite = relative[np.isfinite(relative)]
    figures.largest_difference = max(figures.largest_difference, float(finite.max(initial=0.0)))
    rounded = ~beyond & (difference > figures.tolerance * size)
    figures.rounding = max(figures.rounding, float((rounding / size)[rounded].max(initial=0.0)))
    figures.beyond += int(beyond.sum())
    figures.missing += int((beyond & ~np.isfinite(difference)).sum())
    if written is None and beyond.any() and (expected != np.round(expected)).any():
        figures.coarse.append(name)
    severity = np.where(np.isfinite(difference), difference / allowed, np.finfo(float).max)
    faults.add(name, expected.tolist(), actual.tolist(), np.where(beyond, severity, 0.0))


def _scale(output: Output, actual: Array) -> float:
    """The size that differences are relative to where the numbers themselves are smaller."""
    if output.name.rpartition(".")[2] == "probabilities":
        return 1.0
    finite = np.abs(actual[np.isfinite(actual)])
    return float(finite.mean()) if len(finite) else 0.0


def _rounding(values: Array) -> Array | None:
    """By how much rounding to the digits that `values` were written with may have changed each, float [n].

    None when they have so few digits that the column is taken as exact.

    A writer rounds a column to some decimals or to some significant digits; trailing zeros are not written.
    So the number with the most decimals, and the one with the most digits, show what was kept.
    """
    finite = np.isfinite(values) & (values != 0)
    distinct = np.unique(values[finite])
    written = [_digits(v) for v in distinct[:: len(distinct) // MAX_EXAMINED + 1].tolist()]
    digits = max((d for d, _ in written), default=0)
    decimals = max((d for _, d in written), default=0)
    if digits < MIN_DIGITS and decimals < MIN_DECIMALS:
        return None
    exponents = np.floor(np.log10(np.abs(np.where(finite, values, 1.0))))
    by_digits = np.where(finite, 10.0 ** (exponents - digits + 1), 0.0)
    # 0.51: a number halfway between two may have been rounded in binary
    return 0.51 * np.maximum(by_digits, 10.0**-decimals)


def _digits(value: float) -> tuple[int, int]:
    """Significant digits and decimals of the shortest text that reads as `value`."""
    mantissa, _, exponent = f"{abs(value)!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    fraction = fraction.rstrip("0")
    significant = (whole + fraction).lstrip("0")
    return len(significant), max(0, len(fraction) - int(exponent or 0))
