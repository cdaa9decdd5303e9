"""A fitted estimator behind the serving interface: the answer every other runtime is measured against."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from registry.rows import NUMPY, Array, Outputs, Rows
from registry.signature import Input, Signature
from service.compiler.signature import answers, row_layout


class Estimator:
    """`model` answering rows as its `signature` says. The reference of parity, and the isolated runtime."""

    def __init__(self, model: Any, signature: Signature) -> None:
        self.model = model
        self.signature = signature
        self._kind = row_layout.kind(model)

    def run(self, rows: Rows) -> Outputs:
        """The estimator's own answer. Raises whatever it raises (mostly ValueError) for rows it refuses."""
        answered = answers.answer(
            self.model, self.signature.task, arrange(self._kind, rows, self.signature.inputs)
        )
        typed = {o.name: as_dtype(answered[o.name], o.dtype) for o in self.signature.outputs}
        if any(len(array) != len(rows) for array in typed.values()):
            raise ValueError(f"{row_layout.name(self.model)} does not answer row by row")
        return typed


def as_dtype(array: Array, dtype: str) -> Array:
    """`array` in a signature's dtype; strings become an object array of `str`."""
    if dtype == "string":
        return array.astype(str).astype(object)
    return array.astype(NUMPY[dtype], copy=False)


def arrange(kind: row_layout.Kind, rows: Rows, inputs: tuple[Input, ...]) -> Any:
    """`rows` in the form an estimator of that kind takes."""
    if kind == "matrix":
        return _matrix(rows, inputs)
    columns = _columns(rows, inputs)
    if kind in ("texts", "labels"):
        return columns[0]
    if kind == "records":
        return _records(columns, inputs)
    return pd.DataFrame(
        {i.name: c for i, c in zip(inputs, columns, strict=True)}, columns=[i.name for i in inputs]
    )


def _columns(rows: Rows, inputs: tuple[Input, ...]) -> list[Array]:
    """One array per feature in the signature's dtypes; missing values are NaN in all of them."""
    if rows.columns is None:
        assert rows.matrix is not None
        return [_typed(rows.matrix[:, i], given) for i, given in enumerate(inputs)]
    return [_typed(column, given) for column, given in zip(rows.columns, inputs, strict=True)]


def _typed(column: Array, given: Input) -> Array:
    if given.dtype == "string":
        return np.array([np.nan if v is None else v for v in column], dtype=object)
    if given.dtype in ("int64", "bool") and column.dtype.kind == "f" and np.isnan(column).any():
        return column
    return column.astype(NUMPY[given.dtype], copy=False)


def _matrix(rows: Rows, inputs: tuple[Input, ...]) -> Array:
    """[n, features]: of the one dtype all features have, else float64; objects when there are strings."""
    dtypes = {i.dtype for i in inputs}
    if rows.matrix is not None:
        wanted = NUMPY[dtypes.pop()] if len(dtypes) == 1 else np.float64
        whole = np.issubdtype(wanted, np.floating) or not np.isnan(rows.matrix).any()
        return rows.matrix.astype(wanted, copy=False) if whole else rows.matrix
    matrix = np.empty((len(rows), len(inputs)), dtype=object)
    for i, column in enumerate(_columns(rows, inputs)):
        matrix[:, i] = column
    return matrix


def _records(columns: list[Array], inputs: tuple[Input, ...]) -> list[dict[str, Any]]:
    """One dict per row, without the missing values."""
    names = [i.name for i in inputs]
    return [
        {name: value for name, value in zip(names, row, strict=True) if value == value}
        for row in zip(*(c.tolist() for c in columns), strict=True)
    ]
