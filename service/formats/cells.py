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
from registry.signature import MAX_SAFE_INTEGER
from registry.text_tables import MISSING_WORDS
from service.formats.dataset import Block, invalid_input
from service.runtime.codec.arrow import arrow_value, check_type, convert_numbers
from service.runtime.codec.arrow_types import decode, is_number, plain_type, positions_and_values
from service.runtime.codec.columns import Column, Faults, ValueRejected, rows_of, show
from service.runtime.codec.csv import csv_value

ReadCell = Callable[[Any, Column], Any]
"""Returns the value that a cell represents: `arrow_value`, or `csv_value` for text (bytes or strings)."""
CellFaults = dict[int, list[FieldError]]
"""Faults by row."""

MIN_HALVED = 16  # cells; shorter ranges are checked cell by cell
PLACEHOLDERS: dict[str, Any] = {"string": "", "bool": False, "int64": 0, "float64": 0, "float32": 0}
_MISSING = pa.array([word.encode() for word in MISSING_WORDS], pa.binary())
EXACT_LIMIT = float(MAX_SAFE_INTEGER + 1)  # from here on float64 does not represent every integer


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
            if is_number(data.type) and not _is_exact(column, data.to_numpy(zero_copy_only=False)):
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
        return _parse_numbers(column, text)
    return _convert_distinct(column, text, read_cell)


def _decode(data: Any) -> Any:
    """Return `data` with bytes decoded as UTF-8, or None if they are not UTF-8."""
    if not pa.types.is_binary(data.type):
        return data
    try:
        return data.cast(pa.string())
    except pa.ArrowInvalid:
        return None


def _parse_numbers(column: Column, text: Any) -> Array | None:
    text = pc.ascii_trim(text, characters=" \t")
    try:
        numbers = pc.if_else(pc.is_in(text, value_set=_MISSING.cast(pa.string())), None, text).cast(
            pa.float64()
        )
    except pa.ArrowInvalid:
        return None
    array = numbers.to_numpy(zero_copy_only=False)
    if not _is_exact(column, array) or (
        np.isnan(array).sum() > numbers.null_count and _has_nan_payload(text)
    ):
        return None
    return column.numbers(array)


def _is_exact(column: Column, array: Array) -> bool:
    """Whether numbers that Arrow parsed are the values that `csv_value` returns for the same text.

    Infinity may represent a number too large for a float, and large integers may need all of their digits.
    """
    if np.isinf(array).any():
        return False
    return column.dtype != "int64" or not (np.abs(array) >= EXACT_LIMIT).any()


def _has_nan_payload(text: Any) -> bool:
    return bool(pc.any(pc.match_substring(text, "(")).as_py())  # Arrow parses nan(...) as a number


def _convert_distinct(column: Column, data: Any, read_cell: ReadCell) -> Array | None:
    """Check each distinct value once. None if one is invalid."""
    positions, distinct = _distinct_values(data)
    cells = [*distinct.to_pylist(), None]
    try:
        if not positions.null_count:
            cells.pop()
        values = column.array([column.check(read_cell(cell, column)) for cell in cells])
    except ValueRejected:
        return None
    index: Array = positions.fill_null(len(cells) - 1).to_numpy()
    return np.asarray(values[index])


def _distinct_values(data: Any) -> tuple[Any, Any]:
    """Return the position of each row's value among the distinct values, and those. Null has no position."""
    if not (pa.types.is_dictionary(data.type) or pa.types.is_run_end_encoded(data.type)):
        encoded = decode(data).dictionary_encode()
        return encoded.indices, encoded.dictionary
    positions, values = positions_and_values(data)
    used = positions.unique().drop_null()  # a dictionary may contain values that no row has
    return pc.index_in(positions, value_set=used), decode(values).take(used)


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
