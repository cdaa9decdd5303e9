"""Arrow columns to checked rows. What a value may be is `Column`'s to say; this module only finds out,
as fast as it can, where it has to be asked.

A column that is right as a whole is taken as a whole. One that is not is halved until the bad cells
stand alone, so that a few of them in many rows cost little. Text is looked at once per distinct value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from registry.errors import FieldError
from registry.rows import Array, Rows
from registry.signature import SAFE
from service.formats.dataset import Block, refuse
from service.runtime.codec.arrow import arrow_value, check_type, is_number
from service.runtime.codec.columns import Column, Faults, Wrong, rows_of, show
from service.runtime.codec.tables import csv_value

Value = Callable[[Any, Column], Any]
Wrongs = dict[int, list[FieldError]]

WALKED = 16  # cells: fewer are not worth halving
PLACEHOLDERS: dict[str, Any] = {"string": "", "bool": False, "int64": 0, "float64": 0, "float32": 0}
EXACT = float(SAFE + 1)  # from here on float64 does not tell integers apart


class Checked(NamedTuple):
    rows: Rows
    wrong: Wrongs


def checked(columns: Sequence[Column], batch: Any, value: Value) -> Checked:
    """The rows of a batch with one Arrow column for each of `columns`, and the faults of the bad ones.

    `value` says what a cell stands for: `arrow_value`, or `csv_value` for text (as bytes or strings).
    """
    if _is_numeric(batch):
        return _matrix(columns, batch, _tensor(batch), value)
    wrong: Wrongs = {}
    arrays = [_column(c, batch.column(j), value, wrong) for j, c in enumerate(columns)]
    return Checked(rows_of(columns, arrays, batch.num_rows), wrong)


def parsed(columns: Sequence[Column], batch: Any) -> Checked | None:
    """The rows of CSV cells whose numbers Arrow has parsed; None where only their text tells."""
    if _is_numeric(batch):
        matrix = _tensor(batch)
        found = None if np.isinf(matrix).any() else _matrix(columns, batch, matrix, csv_value)
    else:
        for column, data in zip(columns, batch.columns, strict=True):
            if is_number(data.type) and not _trusted(column, data.to_numpy(zero_copy_only=False)):
                return None
        found = checked(columns, batch, csv_value)
    return None if found is None or found.wrong else found


def _is_numeric(batch: Any) -> bool:
    """Whether Arrow can make a tensor of it."""
    kinds = [f.type for f in batch.schema]
    return bool(kinds) and all(is_number(k) and k != pa.float16() for k in kinds)


def _tensor(batch: Any) -> Array:
    matrix: Array = batch.to_tensor(null_to_nan=True, row_major=True).to_numpy()
    return matrix.astype(np.float64, copy=False)


def _matrix(columns: Sequence[Column], batch: Any, matrix: Array, value: Value) -> Checked:
    """The rows of a batch of numbers, which `matrix` holds as float64."""
    whole = all_finite(matrix)
    wrong: Wrongs = {}
    for j, column in enumerate(columns):
        if not (whole[j] and _is_plain(column, batch.schema.field(j).type)):
            matrix[:, j] = _column(column, batch.column(j), value, wrong)
    return Checked(Rows(matrix=matrix), wrong)


def all_finite(matrix: Array) -> list[bool]:
    """Of each column, whether all of it is. A sum tells at once, and takes no memory: where it is not finite,
    which numbers near the largest can do too, each cell is looked at."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(matrix.sum()):
            return [True] * matrix.shape[1]
    return [bool(whole) for whole in np.all(np.isfinite(matrix), axis=0)]


def _is_plain(column: Column, kind: Any) -> bool:
    """Whether the column takes every finite value of the Arrow type, as it is."""
    if column.known is not None:
        return False
    if column.dtype == "int64":
        return bool(pa.types.is_integer(kind)) and kind.bit_width <= 32
    return column.dtype == "float64" or (column.dtype == "float32" and kind == pa.float32())


def _column(column: Column, data: Any, value: Value, wrong: Wrongs) -> Array:
    pieces: list[Array] = []
    if is_number(data.type):  # parsed already
        value = arrow_value
    _take(column, data, value, 0, pieces, wrong)
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _take(column: Column, data: Any, value: Value, start: int, pieces: list[Array], wrong: Wrongs) -> None:
    array = _whole(column, data, value)
    if array is None and len(data) <= WALKED:
        array = _walk(column, data, value, range(start, start + len(data)), wrong)
    elif array is None:
        array = around_missing(column, data, value, start, wrong)
    if array is not None:
        pieces.append(array)
    else:
        half = len(data) // 2
        _take(column, data.slice(0, half), value, start, pieces, wrong)
        _take(column, data.slice(half), value, start + half, pieces, wrong)


def around_missing(column: Column, data: Any, value: Value, start: int, wrong: Wrongs) -> Array | None:
    """The column with its missing cells looked at one by one; None when others are wrong too. Where null is
    not taken there tend to be many, too many to find each by halving."""
    if column.nullable or column.dtype in ("string", "bool"):
        return None
    number = is_number(data.type)
    empty = pc.is_null(data, nan_is_null=True) if number else pc.equal(data.cast(pa.binary()), b"")
    missing: Array = empty.to_numpy(zero_copy_only=False)
    rest = _whole(column, data.filter(pa.array(~missing)), value) if missing.any() else None
    if rest is None:
        return None
    array = np.empty(len(data), dtype=column.storage)
    array[~missing] = rest
    places = (start + np.flatnonzero(missing)).tolist()
    array[missing] = _walk(column, data.filter(pa.array(missing)), value, places, wrong)
    return array


def _whole(column: Column, data: Any, value: Value) -> Array | None:
    """The column in one go; None where a cell has to be looked at."""
    if is_number(data.type):
        return column.numbers(data.to_numpy(zero_copy_only=False))
    text = _as_text(data)
    if text is None:
        return None
    if value is csv_value and column.dtype not in ("string", "bool"):
        return _parsed(column, text)
    return _distinct(column, text, value)


def _as_text(data: Any) -> Any:
    """`data` with bytes read as UTF-8; None when they are none."""
    if not pa.types.is_binary(data.type):
        return data
    try:
        return data.cast(pa.string())
    except pa.ArrowInvalid:
        return None


def _parsed(column: Column, text: Any) -> Array | None:
    text = pc.ascii_trim(text, characters=" \t")
    try:
        numbers = pc.if_else(pc.equal(text, ""), None, text).cast(pa.float64())
    except pa.ArrowInvalid:
        return None
    array = numbers.to_numpy(zero_copy_only=False)
    if not _trusted(column, array) or (np.isnan(array).sum() > numbers.null_count and _odd_nan(text)):
        return None
    return column.numbers(array)


def _trusted(column: Column, array: Array) -> bool:
    """Whether numbers that Arrow parsed from text are what `csv_value` makes of it: infinity may be a
    number too large for a float, and integers may need all their digits."""
    if np.isinf(array).any():
        return False
    return column.dtype != "int64" or not (np.abs(array) >= EXACT).any()


def _odd_nan(text: Any) -> bool:
    return bool(pc.any(pc.match_substring(text, "(")).as_py())  # Arrow takes nan(...) for a number


def _distinct(column: Column, data: Any, value: Value) -> Array | None:
    """Each distinct value looked at once, and its array spread over the rows."""
    if pa.types.is_dictionary(data.type):  # it may hold values that no row names
        data = data.cast(data.type.value_type)
    encoded = data.dictionary_encode()
    given = encoded.dictionary.to_pylist()
    if data.null_count:
        given.append(None)
    try:
        taken = column.array([column.cell(value(v, column)) for v in given])
    except Wrong:
        return None
    index: Array = encoded.indices.fill_null(len(given) - 1).to_numpy()
    return np.asarray(taken[index])


def _walk(column: Column, data: Any, value: Value, places: Sequence[int], wrong: Wrongs) -> Array:
    taken = []
    for index, given in zip(places, data.to_pylist(), strict=True):
        try:
            if isinstance(given, bytes):
                given = _decoded(given)
            taken.append(column.cell(value(given, column)))
        except Wrong as error:
            fault = FieldError(f"{show(column.name)} {error}", index, column.name, column.expected)
            wrong.setdefault(index, []).append(fault)
            taken.append(PLACEHOLDERS[column.dtype])
    return column.array(taken)


def _decoded(given: bytes) -> str:
    try:
        return given.decode()
    except UnicodeDecodeError as error:
        raise Wrong(f"is no valid UTF-8 at byte {error.start} of the cell; send UTF-8") from error


def strings(batch: Any, wrong: Wrongs) -> Any:
    """Columns of bytes as strings; a cell that is no UTF-8 is a fault of its row."""
    arrays = [
        _string(name, data, wrong) for name, data in zip(batch.schema.names, batch.columns, strict=True)
    ]
    fields = [pa.field(n, pa.string()) for n in batch.schema.names]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def _string(name: str, data: Any, wrong: Wrongs) -> Any:
    text = _as_text(data)
    if text is not None:
        return text
    taken = []
    for index, given in enumerate(data.to_pylist()):
        try:
            taken.append(_decoded(given))
        except Wrong as error:
            wrong.setdefault(index, []).append(FieldError(f"{show(name)} {error}", index, name, "UTF-8"))
            taken.append("")
    return pa.array(taken, pa.string())


def block_of(batch: Any, columns: Sequence[Column], extra: Sequence[str]) -> Block:
    """A record batch of typed columns as a block. Raises `Invalid` when a type does not fit its column."""
    faults = Faults()
    for column in columns:
        check_type(column, batch.schema.field(column.name).type, faults)
    faults.raise_any()
    if not _is_numeric(batch):
        try:
            batch.validate(full=True)  # strings may hold anything
        except pa.ArrowInvalid as error:
            raise refuse(f"the input is damaged: {str(error)[:300]}") from error
    found = checked(columns, batch.select([c.name for c in columns]), arrow_value)
    return Block(batch.num_rows, found.rows, batch.select(list(extra)), None, found.wrong)
