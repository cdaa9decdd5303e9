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
BLOCK_ROWS = 1000
"""Example rows that are answered in one call, to see whether the model accepts them all."""
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

    def answer(
        self, rows: Rows, inputs: tuple[Input, ...], subject: str = "the example's own rows"
    ) -> Outputs:
        """Raises `Refused`, with the model's own error, when the model does not accept `rows`."""
        try:
            return answers.answer(self.model, self.task, self.arrange(rows, inputs))
        except Refused:
            raise
        except Exception as error:
            raise Refused(
                f"{type(self.model).__name__} cannot answer {subject}: {describe_error(error)}"
                f"{_columns_hint(error, rows, inputs)}"
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


def _columns_hint(error: Exception, rows: Rows, inputs: tuple[Input, ...]) -> str:
    """Name the columns that the error is about: scikit-learn names a value or a dtype, but not its column."""
    text = str(error)
    if "convert string" in text and (names := [i.name for i in inputs if i.dtype == "string"]):
        return f"; text columns of the example: {list_names(names)}"
    if "infinity" in text and (names := infinite_columns(rows, inputs)):
        return f"; {list_names(names)} has infinite values; replace them, or leave out their rows"
    if "dtype bool" in text and (names := [i.name for i in inputs if i.dtype == "bool"]):
        return f"; boolean columns of the example: {list_names(names)}; fit the model on numbers instead"
    return ""


def infinite_columns(rows: Rows, inputs: tuple[Input, ...]) -> list[str]:
    """The names of the features that are infinite in one of the rows."""
    columns = rows.matrix.T if rows.matrix is not None else rows.columns
    assert columns is not None
    named = zip(inputs, columns, strict=True)
    return [i.name for i, c in named if i.dtype != "string" and np.isinf(c.astype(np.float64)).any()]


def require_answers(probe: Probe, rows: Rows, inputs: tuple[Input, ...], numbers: Array) -> None:
    """Raise `Refused`, naming the first row that the model does not accept.

    `numbers` [n] are those of `rows` in the example.
    """
    for start in range(0, len(rows), BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, len(rows))
        if probe.accepts(rows.take(slice(start, stop)), inputs):
            continue
        while stop - start > 1:
            middle = (start + stop) // 2
            if probe.accepts(rows.take(slice(start, middle)), inputs):
                start = middle
            else:
                stop = middle
        row = rows.take(slice(start, stop))
        probe.answer(row, inputs, f"row {numbers[start]} of the example (the first is 0)")


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
