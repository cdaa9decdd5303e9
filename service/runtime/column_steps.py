"""Arithmetic on single columns, as pipelines do it before their last step: one number per column."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from registry.rows import Array

FILL = "fill"
ARITHMETIC = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
}


class ColumnStep(NamedTuple):
    """One operation on every column: a key of `ARITHMETIC`, or FILL, which replaces NaN.

    `numbers` are float64 [columns].
    """

    operation: str
    numbers: Array

    def take(self, columns: Array | slice) -> ColumnStep:
        """The same operation on a selection of the columns."""
        return ColumnStep(self.operation, self.numbers[columns])


def apply_step(step: ColumnStep, rows: Array) -> Array:
    """Apply a step to `rows` [..., columns]. Float32 rows give float64 results."""
    with np.errstate(all="ignore"):
        if step.operation == FILL:
            return np.where(np.isnan(rows), step.numbers, rows)
        return np.asarray(ARITHMETIC[step.operation](rows, step.numbers))


def apply_steps(steps: tuple[ColumnStep, ...], rows: Array) -> Array:
    """Apply the steps in turn to `rows` float64 [n, columns], without changing `rows` itself."""
    for step in steps:
        rows = apply_step(step, rows)
    return rows
