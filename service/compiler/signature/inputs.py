"""A signature's inputs from the example: dtype, range and categories per column, and the rows."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from registry.rows import Rows
from registry.signature import MAX_SAFE_INTEGER, NUMERIC_DTYPES, DType, Input, Scalar, is_numeric, max_integer
from service.compiler import example
from service.compiler.example import ExampleTable

MAX_CATEGORIES = 100
"""A string column that no encoder describes lists its values up to this many distinct ones."""


def describe_input(name: str, sample: ExampleTable | None, dtype: DType | None) -> Input:
    """The feature as the example's column shows it, in `dtype` or else in the column's own.

    Raises `Refused` when the column does not fit `dtype`.
    """
    if sample is None:
        return Input(name, dtype or "float64")
    dtype = dtype or sample.dtype(name)
    column = sample.column(name, dtype)
    minimum, maximum = _range(column, dtype)
    return Input(
        name,
        dtype,
        nullable=bool(column.null_count),
        minimum=minimum,
        maximum=maximum,
        example=_example_value(column),
    )


def _range(column: pa.Array, dtype: DType) -> tuple[float | None, float | None]:
    """Lowest and highest finite value; None for strings and booleans, and without such a value."""
    if dtype not in NUMERIC_DTYPES or dtype == "bool":
        return None, None
    values = np.asarray(column.drop_null().to_numpy(zero_copy_only=False), dtype=np.float64)
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (None, None)


def _example_value(column: pa.Array) -> Scalar | None:
    """The first row's value, or the first present one when that is missing; None when it is not finite."""
    first = (column.drop_null() if column[0].as_py() is None else column)[:1].to_pylist()
    if not first or (isinstance(first[0], float) and not np.isfinite(first[0])):
        return None
    value: Scalar = first[0]
    return value


def with_categories(
    inputs: tuple[Input, ...], encoded: dict[str, tuple[Scalar, ...]], sample: ExampleTable | None
) -> tuple[Input, ...]:
    """`inputs` with the encoders' categories; other string columns get the example's distinct values."""
    return tuple(_with_categories(i, encoded.get(i.name), sample) for i in inputs)


def _with_categories(
    feature: Input, encoded: tuple[Scalar, ...] | None, sample: ExampleTable | None
) -> Input:
    if encoded and all(isinstance(v, str) for v in encoded):
        return msgspec.structs.replace(feature, categories=encoded)
    if encoded:
        is_bool = sample is None and all(isinstance(v, bool) for v in encoded)
        return msgspec.structs.replace(
            feature, categories=encoded, dtype="bool" if is_bool else feature.dtype
        )
    if sample is not None and feature.dtype == "string":
        distinct = sorted(set(sample.column(feature.name, "string").drop_null().to_pylist()))
        is_text = len(distinct) == len(sample)  # every row has a different value
        if len(distinct) <= MAX_CATEGORIES and not is_text:
            return msgspec.structs.replace(feature, categories=tuple(distinct))
    return feature


def example_rows(inputs: tuple[Input, ...], sample: ExampleTable) -> Rows:
    """The example's rows in the signature's order and dtypes.

    An empty cell of a CSV is the empty string where a string feature is not nullable, as in requests.

    Raises `Refused` for integers that float64 cannot represent where the model receives float64.
    """
    columns = [_feature_column(i, sample) for i in inputs]
    in_matrix = is_numeric(inputs)
    for feature, column in zip(inputs, columns, strict=True):
        if feature.dtype == "int64" and max_integer(feature, in_matrix) == MAX_SAFE_INTEGER:
            example.require_exact_in_float64(feature.name, column)
    return pack_rows(inputs, [example.to_numpy(c, i.dtype) for i, c in zip(inputs, columns, strict=True)])


def _feature_column(feature: Input, sample: ExampleTable) -> pa.Array:
    if feature.dtype == "string" and not feature.nullable and feature.name in sample.texts:
        return sample.texts[feature.name]
    return sample.column(feature.name, feature.dtype)


def pack_rows(inputs: tuple[Input, ...], columns: list[Any]) -> Rows:
    """One array per feature as `Rows`: a float64 matrix when all features are numeric."""
    if is_numeric(inputs):
        return Rows(matrix=np.column_stack(columns).astype(np.float64))
    return Rows(columns=tuple(columns))


def with_value(row: Rows, inputs: tuple[Input, ...], name: str, value: Scalar | None) -> Rows:
    """`row` (of length 1) with another value for one feature; None is missing."""
    index = [i.name for i in inputs].index(name)
    if row.matrix is not None:
        matrix = row.matrix.copy()
        matrix[:, index] = np.nan if value is None else value
        return Rows(matrix=matrix)
    assert row.columns is not None
    columns = list(row.columns)
    if inputs[index].dtype == "string":
        columns[index] = np.array([value], dtype=object)
    else:
        columns[index] = np.array([np.nan if value is None else value])
    return Rows(columns=tuple(columns))
