"""The rows that int8 quantization takes its ranges from: given ones, or a part of the version's example."""

from __future__ import annotations

import numpy as np

from registry.errors import Refused
from registry.rows import Array, Rows
from registry.signature import Signature
from service.compiler import example
from service.compiler.signature.inputs import example_rows

ENOUGH = 40
"""An example of at least so many rows is split: one half to calibrate with, the other to measure on."""


def read_calibration_rows(path: str, media_type: str | None, signature: Signature) -> Rows:
    """Given rows. Raises `Refused`, naming the column, when they are not rows of the model's features."""
    try:
        sample = example.read(path, media_type)
    except Refused as error:
        raise Refused(f"the calibration rows cannot be read: {error}") from error
    for given in signature.inputs:
        if given.name not in sample.columns:
            has = ", ".join(list(sample.columns)[:10])
            raise Refused(
                f"the calibration rows lack the column {given.name!r}; the model takes "
                f"{len(signature.inputs)} features, the rows have {len(sample.columns)} columns ({has})"
            )
        try:
            example.cast_column(given.name, sample.columns[given.name], given.dtype)
        except Refused as error:
            raise Refused(
                f"the calibration rows' column {given.name!r} holds {sample.dtype(given.name)}, which "
                f"does not fit the feature's dtype {given.dtype}"
            ) from error
    return complete_rows(example_rows(signature.inputs, sample))


def complete_rows(rows: Rows) -> Rows:
    """The rows without gaps: a range of NaN is none. Raises `Refused` when none is left."""
    if rows.matrix is None:
        raise Refused("int8 needs numbers to calibrate with, and these rows hold text")
    chosen = rows.take(np.isfinite(rows.matrix).all(axis=1))
    if not len(chosen):
        raise Refused("every calibration row has a missing value; int8 needs rows without gaps")
    return chosen


def split_example(rows: Rows) -> tuple[Array, Array]:
    """Indices of the example's rows: to calibrate with, and to measure on. The same when they are few."""
    everything = np.arange(len(rows))
    if len(rows) < ENOUGH:
        return everything, everything
    return everything[::2], everything[1::2]


def evenly_spaced(count: int, most: int) -> Array:
    """Indices of at most `most` of so many rows, evenly apart: rows are often sorted by class."""
    return np.linspace(0, count - 1, min(count, most)).astype(int)
