"""The rows from which quantization takes its ranges: those of the request, or a part of the example."""

from __future__ import annotations

import numpy as np

from registry.errors import Refused
from registry.rows import Array, Rows
from registry.signature import Signature
from service.compiler import example
from service.compiler.signature.inputs import example_rows

MIN_SPLIT_ROWS = 40
"""A smaller example is not split: all its rows are used to calibrate and to compare."""


def read_calibration_rows(path: str, media_type: str | None, signature: Signature) -> Rows:
    """Read the rows of a request. Raises `Refused`, naming the column, when they do not fit the features."""
    try:
        sample = example.read(path, media_type)
    except Refused as error:
        raise Refused(f"the calibration rows cannot be read: {error}") from error
    for feature in signature.inputs:
        if feature.name not in sample.columns:
            columns = ", ".join(list(sample.columns)[:10])
            raise Refused(
                f"the calibration rows lack the column {feature.name!r}; the model has "
                f"{len(signature.inputs)} features, the rows have {len(sample.columns)} columns ({columns})"
            )
        try:
            example.cast_column(feature.name, sample.columns[feature.name], feature.dtype)
        except Refused as error:
            raise Refused(
                f"the calibration rows' column {feature.name!r} holds {sample.dtype(feature.name)}, which "
                f"does not fit the feature's dtype {feature.dtype}"
            ) from error
    return complete_rows(example_rows(signature.inputs, sample))


def complete_rows(rows: Rows) -> Rows:
    """The rows without missing values. Raises `Refused` for text, and when no row is complete."""
    if rows.matrix is None:
        raise Refused("the calibration rows hold text; calibration needs numbers")
    complete = rows.take(np.isfinite(rows.matrix).all(axis=1))
    if not len(complete):
        raise Refused("every calibration row has a missing value; calibration needs complete rows")
    return complete


def split_example(rows: Rows) -> tuple[Array, Array]:
    """(indices to calibrate with, indices to compare on). For a small example, both are all rows."""
    indices = np.arange(len(rows))
    if len(rows) < MIN_SPLIT_ROWS:
        return indices, indices
    return indices[::2], indices[1::2]


def evenly_spaced(count: int, limit: int) -> Array:
    """At most `limit` indices below `count`, evenly spaced: rows are often sorted by class."""
    return np.linspace(0, count - 1, min(count, limit)).astype(int)
