"""Refuses numbers beyond the range of float32 for models that refuse them themselves.

Scikit-learn's trees round their input to float32 and raise an error for a number that becomes infinite. A
converted tree would compare infinity with its thresholds, and answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from registry.rows import Rows
from registry.signature import Input
from service.runtime.codec.columns import FLOAT32_MAX, Faults, show

_HARMLESS_SQUARES = 1e76
"""If the sum of all squares is smaller, no number is beyond float32. Squares cannot cancel each other."""


def require_float32(rows: Rows, inputs: Sequence[Input]) -> None:
    """Raise `Invalid`, naming rows and features, if a number is beyond the range of float32."""
    if rows.matrix is not None:
        if np.vdot(rows.matrix, rows.matrix) < _HARMLESS_SQUARES:  # false for NaN
            return
        if not (np.abs(rows.matrix) > FLOAT32_MAX).any():
            return
        columns = tuple(rows.matrix.T)
    else:
        assert rows.columns is not None
        columns = rows.columns
    faults = Faults()
    for feature, column in zip(inputs, columns, strict=True):
        if column.dtype.kind != "f":
            continue
        for row in np.flatnonzero(np.abs(column) > FLOAT32_MAX).tolist():
            faults.add(
                f"{show(feature.name)} is {float(column[row]):g}, and the model itself refuses numbers "
                f"beyond the range of float32; send {-FLOAT32_MAX:g} to {FLOAT32_MAX:g}",
                row,
                feature.name,
                "a number (float32)",
            )
    faults.sort(key=lambda fault: fault.instance or 0)
    faults.raise_any()
