"""Measure by calls which rows a model accepts: missing values, unknown categories, made-up rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from registry.errors import Refused, describe_error
from registry.rows import Array, Outputs, Rows
from registry.signature import Input, Scalar, Task
from service.compiler import other_versions
from service.compiler.signature import answers
from service.compiler.signature.encoders import ColumnForm
from service.compiler.signature.estimator import InputForm, arrange
from service.compiler.signature.feature_names import list_names
from service.compiler.signature.inputs import pack_rows, with_value

MAX_PROBED_ROWS = 16
"""Example rows that are answered to see the shapes and dtypes of the outputs."""
UNKNOWN_CATEGORY = "a value the model has never seen"
FILL_VALUES = (0.5, 1.0, 0.0, 2.0, -1.0)
"""Values of the numeric features of made-up rows, tried in this order."""


@dataclass(frozen=True)
class Probe:
    """Calls of a model for one task, before its signature is complete."""

    model: Any
    form: InputForm
    task: Task
    columns: tuple[ColumnForm, ...] = ()

    def arrange(self, rows: Rows, inputs: tuple[Input, ...]) -> Any:
        return arrange(self.form, rows, inputs, self.columns)

    def answer(self, rows: Rows, inputs: tuple[Input, ...]) -> Outputs:
        """Raises `Refused`, with the model's own error, when the model does not accept `rows`."""
        try:
            return answers.answer(self.model, self.task, self.arrange(rows, inputs))
        except Refused:
            raise
        except Exception as error:
            raise Refused(
                f"{type(self.model).__name__} cannot answer the example's own rows: {describe_error(error)}"
                f"{_text_columns_hint(error, inputs)}"
            ) from error

    def accepts(self, rows: Rows, inputs: tuple[Input, ...]) -> bool:
        """Raises AttributeError when the estimator is incomplete, which other rows would not change."""
        try:
            answers.answer(self.model, self.task, self.arrange(rows, inputs))
        except Exception as error:  # an estimator may raise anything for rows it does not accept
            if other_versions.is_missing_attribute(error):
                raise
            return False
        return True


def _text_columns_hint(error: Exception, inputs: tuple[Input, ...]) -> str:
    """Name the text columns: scikit-learn names the value that is no number, but not its column."""
    texts = [i.name for i in inputs if i.dtype == "string"]
    if not texts or "convert string" not in str(error):
        return ""
    return f"; text columns of the example: {list_names(texts)}"


def made_up_rows(probe: Probe, inputs: tuple[Input, ...]) -> Rows:
    """Two rows that the model accepts, for a model without an example. Raises `Refused` without such rows."""
    for fill in FILL_VALUES:
        rows = pack_rows(inputs, [_filled(i, fill) for i in inputs])
        if probe.accepts(rows, inputs):
            return rows
    raise Refused(
        f"{type(probe.model).__name__} answers none of the rows made up for it; publish it with an example"
    )


def _filled(feature: Input, fill: float) -> Array:
    if feature.categories:
        dtype = object if feature.dtype == "string" else np.float64
        return np.array(feature.categories[:1] * 2, dtype=dtype)
    if feature.dtype == "string":
        return np.array(["text"] * 2, dtype=object)
    return np.full(2, round(fill) if feature.dtype in ("int64", "bool") else fill)


def leave_out_missing(
    probe: Probe, inputs: tuple[Input, ...], rows: Rows, warnings: list[str]
) -> tuple[tuple[Input, ...], Array]:
    """Inputs, and the rows to use, bool [n]: those without missing values that the model does not accept.

    A column stays nullable only if the model accepts its missing values. Raises `Refused` if no row is left.
    """
    missing = [_missing(rows, i) for i in range(len(inputs))]
    with_missing = [i.name for i, mask in zip(inputs, missing, strict=True) if mask.any()]
    forbidden = any(mask.any() and not i.nullable for i, mask in zip(inputs, missing, strict=True))
    if not with_missing or (not forbidden and probe.accepts(_rows_with_missing(rows, missing), inputs)):
        return inputs, np.ones(len(rows), dtype=bool)
    complete = ~np.any(missing, axis=0)
    if not complete.any():
        columns = list_names(with_missing)
        raise Refused(f"every row of the example lacks a value that the model needs, in {columns}")
    base = rows.take(np.flatnonzero(complete)[:1])
    refused = [
        i.name
        for i in inputs
        if i.name in with_missing
        and (not i.nullable or not probe.accepts(with_value(base, inputs, i.name, None), inputs))
    ]
    warnings.append(
        f"missing values in {list_names(refused)} are refused by the model or the given signature: "
        "rows left out"
    )
    usable = np.ones(len(rows), dtype=bool)
    for i, mask in zip(inputs, missing, strict=True):
        if i.name in refused:
            usable &= ~mask
    inputs = tuple(msgspec.structs.replace(i, nullable=i.nullable and i.name not in refused) for i in inputs)
    return inputs, usable


def _missing(rows: Rows, index: int) -> Array:
    column = rows.matrix[:, index] if rows.matrix is not None else rows.columns[index]  # type: ignore[index]
    return np.array([v is None or v != v for v in column.tolist()], dtype=bool)


def _rows_with_missing(rows: Rows, missing: list[Array]) -> Rows:
    """The first rows, and for each column one row in which its value is missing."""
    first = {int(np.flatnonzero(mask)[0]) for mask in missing if mask.any()}
    return rows.take(np.array(sorted({*first, *range(min(MAX_PROBED_ROWS, len(rows)))})))


def measure_closed(probe: Probe, inputs: tuple[Input, ...], row: Rows) -> tuple[Input, ...]:
    """`inputs` with `closed` set where the model itself does not accept a value outside the categories."""
    measured = []
    for i in inputs:
        closed = False
        if i.categories:
            other: Scalar = UNKNOWN_CATEGORY if i.dtype == "string" else max(map(float, i.categories)) + 1
            closed = not probe.accepts(with_value(row, inputs, i.name, other), inputs)
        measured.append(msgspec.structs.replace(i, closed=closed))
    return tuple(measured)


def measure_nullable(
    probe: Probe, inputs: tuple[Input, ...], row: Rows, names: set[str]
) -> tuple[Input, ...]:
    """`inputs` with `nullable` set for those of `names` whose missing values the model accepts."""
    return tuple(
        msgspec.structs.replace(
            i, nullable=i.nullable or probe.accepts(with_value(row, inputs, i.name, None), inputs)
        )
        if i.name in names
        else i
        for i in inputs
    )
