"""What a pipeline does to each of its columns before its last step: arithmetic with one number a column."""

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


class Step(NamedTuple):
    """`operation` is one of `ARITHMETIC`, or FILL, which replaces NaN; `numbers` float64 [features]."""

    operation: str
    numbers: Array


def apply(steps: tuple[Step, ...], matrix: Array) -> Array:
    """`matrix` float64 [n, features] is left as it is."""
    with np.errstate(all="ignore"):
        for operation, numbers in steps:
            if operation == FILL:
                matrix = np.where(np.isnan(matrix), numbers, matrix)
            else:
                matrix = ARITHMETIC[operation](matrix, numbers)
    return matrix
