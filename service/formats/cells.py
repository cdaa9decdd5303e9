"""Arrow columns to checked rows.

`Column.check` of the online codec defines which values a feature accepts. This module avoids calling it for
every cell: a column that is valid as a whole is converted at once. Any other column is divided in halves
until the invalid cells are isolated, so that a few of them among many rows cost little. Text is checked
once per distinct value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from registry.errors import FieldError
from registry.rows import Array, Rows
from registry.text_tables import MISSING_WORDS
from service.formats.dataset import Block, invalid_input
from service.runtime.codec.arrow import arrow_value, check_type, convert_distinct, convert_numbers
from service.runtime.codec.arrow_types import decode, is_number, plain_type
from service.runtime.codec.columns import Column, Faults, ValueRejected, rows_of, show
from service.runtime.codec.csv import csv_value
from service.runtime.codec.csv_bulk import is_exact, parse_numbers

ReadCell = Callable[[Any, Column], Any]
"""Returns the value that a cell represents: `arrow_value`, or `csv_value` for text (bytes or strings)."""
CellFaults = dict[int, list[FieldError]]
"""Faults by row."""

MIN_HALVED = 16  # cells; shorter ranges are checked cell by cell
PLACEHOLDERS: dict[str, Any] = {"string": "", "bool": False, "int64": 0, "float64": 0, "float32": 0}
_MISSING = pa.array([word.encode() for word in MISSING_WORDS], pa.binary())


class CheckedRows(NamedTuple):
    """Rows with placeholders where a cell is invalid, and the faults of those rows."""

    rows: Rows
    faults: CellFaults


def check_batch(columns: Sequence[Column], batch: Any, read_cell: ReadCell) -> CheckedRows:
    """Check a record batch with one Arrow column for each of `columns`."""
    if _is_numeric(batch):
        return _check_matrix(columns, batch, _to_matrix(batch), read_cell)
    faults: CellFaults = {}
    arrays = [_check_column(c, batch.column(j), read_cell, faults) for j, c in enumerate(columns)]
    return CheckedRows(rows_of(columns, arrays, batch.num_rows), faults)


def accept_parsed_csv(columns: Sequence[Column], batch: Any) -> CheckedRows | None:
    """Check CSV cells whose numbers Arrow has parsed. None if the text of the cells is needed.

    The text is needed where it may mean another value to the codec, and for the messages of invalid cells.
    """
    if _is_numeric(batch):
        matrix = _to_matrix(batch)
        checked = None if np.isinf(matrix).any() else _check_matrix(columns, batch, matrix, csv_value)
    else:
        for column, data in zip(columns, batch.columns, strict=True):
            if is_number(data.type) and not is_exact(column, data.to_numpy(zero_copy_only=False)):
                return None
        checked = check_batch(columns, batch, csv_value)
    return None if checked is None or checked.faults else checked


def typed_block(batch: Any, columns: Sequence[Column], extra: Sequence[str]) -> Block:
    """Convert a record batch of a format with column types. Raises `Invalid` if a type does not fit."""
    faults = Faults()
    for column in columns:
        check_type(column, batch.schema.field(column.name), faults)
    faults.raise_any()
    if not _is_numeric(batch):
        try:
            batch.validate(full=True)  # string offsets of a damaged file may be arbitrary
        except pa.ArrowInvalid as error:
            raise invalid_input(f"the input is damaged: {str(error)[:300]}") from error
    checked = check_batch(columns, batch.select([c.name for c in columns]), arrow_value)
    return Block(batch.num_rows, checked.rows, batch.select(list(extra)), cell_faults=checked.faults)


def _is_numeric(batch: Any) -> bool:
    """Whether Arrow can convert the batch to a tensor."""
    types = [f.type for f in batch.schema]
    return bool(types) and all(
        (pa.types.is_integer(t) or pa.types.is_floating(t)) and t != pa.float16() for t in types
    )


def _to_matrix(batch: Any) -> Array:
    matrix: Array = batch.to_tensor(null_to_nan=True, row_major=True).to_numpy()
    return matrix.astype(np.float64, copy=False)


def _check_matrix(columns: Sequence[Column], batch: Any, matrix: Array, read_cell: ReadCell) -> CheckedRows:
    """Check a batch of numbers. `matrix` holds the same numbers as float64 and is updated in place."""
    finite = finite_columns(matrix)
    faults: CellFaults = {}
    for j, column in enumerate(columns):
        if not (finite[j] and _accepts_finite(column, batch.schema.field(j).type)):
            matrix[:, j] = _check_column(column, batch.column(j), read_cell, faults)
    return CheckedRows(Rows(matrix=matrix), faults)


def finite_columns(matrix: Array) -> list[bool]:
    """Return for each column whether all of its numbers are finite.

    One sum over the matrix is fast and allocates nothing. If it is not finite, which the largest float64 can
    also cause, every cell is checked.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(matrix.sum()):
            return [True] * matrix.shape[1]
    return [bool(finite) for finite in np.all(np.isfinite(matrix), axis=0)]


def _accepts_finite(column: Column, arrow_type: Any) -> bool:
    """Whether the column accepts every finite value of the Arrow type unchanged."""
    if column.closed_categories is not None:
        return False
    if column.dtype == "int64":
        return not column.enforced and bool(pa.types.is_integer(arrow_type)) and arrow_type.bit_width <= 32
    return column.dtype == "float64" or (column.dtype == "float32" and arrow_type == pa.float32())


def _check_column(column: Column, data: Any, read_cell: ReadCell, faults: CellFaults) -> Array:
    arrays: list[Array] = []
    if is_number(plain_type(data.type)):  # also in CSV, where Arrow has parsed the text
        data, read_cell = decode(data), arrow_value
    _check_range(column, data, read_cell, 0, arrays, faults)
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _check_range(
    column: Column, data: Any, read_cell: ReadCell, start: int, arrays: list[Array], faults: CellFaults
) -> None:
    """Append the array of `data`, whose first cell is in row `start`, to `arrays`."""
    array = _convert(column, data, read_cell)
    if array is None and len(data) <= MIN_HALVED:
        array = _check_cells(column, data, read_cell, range(start, start + len(data)), faults)
    elif array is None:
        array = check_missing(column, data, read_cell, start, faults)
    if array is not None:
        arrays.append(array)
    else:
        half = len(data) // 2
        _check_range(column, data.slice(0, half), read_cell, start, arrays, faults)
        _check_range(column, data.slice(half), read_cell, start + half, arrays, faults)


def check_missing(
    column: Column, data: Any, read_cell: ReadCell, start: int, faults: CellFaults
) -> Array | None:
    """Check only the missing cells one by one. None if the column has other invalid cells.

    Columns that do not accept null tend to have many missing cells, too many to isolate each by halving.
    """
    if column.nullable or column.dtype in ("string", "bool"):
        return None
    if is_number(data.type):
        is_empty = pc.is_null(data, nan_is_null=True)
    else:
        is_empty = pc.is_in(data.cast(pa.binary()), value_set=_MISSING)
    missing: Array = is_empty.to_numpy(zero_copy_only=False)
    present = _convert(column, data.filter(pa.array(~missing)), read_cell) if missing.any() else None
    if present is None:
        return None
    array = np.empty(len(data), dtype=column.storage)
    array[~missing] = present
    rows = (start + np.flatnonzero(missing)).tolist()
    array[missing] = _check_cells(column, data.filter(pa.array(missing)), read_cell, rows, faults)
    return array


def _convert(column: Column, data: Any, read_cell: ReadCell) -> Array | None:
    """Convert all cells at once. None if some must be checked one by one."""
    if is_number(data.type):
        return convert_numbers(column, data)
    text = _decode(data)
    if text is None:
        return None
    if read_cell is csv_value and column.dtype not in ("string", "bool"):
        return parse_numbers(column, text)
    return convert_distinct(column, text, read_cell)


def _decode(data: Any) -> Any:
    """Return `data` with bytes decoded as UTF-8, or None if they are not UTF-8."""
    if not pa.types.is_binary(data.type):
        return data
    try:
        return data.cast(pa.string())
    except pa.ArrowInvalid:
        return None


def _check_cells(
    column: Column, data: Any, read_cell: ReadCell, rows: Sequence[int], faults: CellFaults
) -> Array:
    """Check each cell, add the faults of invalid ones, and put placeholders in their place."""
    values = []
    for row, cell in zip(rows, data.to_pylist(), strict=True):
        try:
            text = _decode_cell(cell) if isinstance(cell, bytes) else cell
            values.append(column.check(read_cell(text, column)))
        except ValueRejected as error:
            fault = FieldError(f"{show(column.name)} {error}", row, column.name, column.expected)
            faults.setdefault(row, []).append(fault)
            values.append(PLACEHOLDERS[column.dtype])
    return column.array(values)


def _decode_cell(cell: bytes) -> str:
    try:
        return cell.decode()
    except UnicodeDecodeError as error:
        raise ValueRejected(f"is not valid UTF-8 at byte {error.start} of the cell; send UTF-8") from error


def decode_columns(batch: Any, faults: CellFaults) -> Any:
    """Decode columns of bytes as UTF-8. A cell that is not UTF-8 is a fault of its row."""
    arrays = [
        _decode_column(name, data, faults)
        for name, data in zip(batch.schema.names, batch.columns, strict=True)
    ]
    fields = [pa.field(name, pa.string()) for name in batch.schema.names]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def _decode_column(name: str, data: Any, faults: CellFaults) -> Any:
    text = _decode(data)
    if text is not None:
        return text
    values = []
    for row, cell in enumerate(data.to_pylist()):
        try:
            values.append(_decode_cell(cell))
        except ValueRejected as error:
            faults.setdefault(row, []).append(FieldError(f"{show(name)} {error}", row, name, "UTF-8"))
            values.append("")
    return pa.array(values, pa.string())
