"""Read the publisher's answers: a CSV, Parquet or JSON file with the columns of a batch output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from registry.errors import Refused
from registry.media_types import CSV, EXAMPLE_TYPES, JSON, PARQUET
from registry.rows import Array
from registry.signature import DType
from registry.text_tables import is_missing, other_separator

MAX_LISTED = 10
"""Names of columns in a message."""


def read(path: Path, media_type: str | None) -> dict[str, pa.Array]:
    """Columns by name, each in the file's own type; those of a CSV file are strings.

    Raises `Refused`, with the reason, when the file is not a table.
    """
    try:
        names, columns = _READERS[media_type or ""](path)
    except KeyError:
        supported = ", ".join(EXAMPLE_TYPES)
        raise Refused(
            f"answers of type {media_type!r} are not supported; supported are {supported}"
        ) from None
    except (pa.ArrowException, ValueError, RecursionError) as error:
        raise Refused(f"the answers are not readable as {media_type}: {error}") from error
    if repeated := sorted({n for n in names if names.count(n) > 1}):
        raise Refused(f"the answers have the column {repeated[0]!r} more than once")
    return dict(zip(names, columns, strict=True))


def require_known(names: list[str], known: list[str]) -> None:
    """Raise `Refused`, naming the columns, unless all `names` are columns of this version's answers."""
    expected = f"this version answers {_join(known)}"
    if not names:
        raise Refused(f"the answers have no columns; {expected}")
    unknown = [name for name in names if name not in known]
    if not unknown:
        return
    if len(names) == 1 and (separator := other_separator(names[0])):
        raise Refused(f"the header of the answers has {separator}; separate its columns by commas")
    hint = ""
    if any(name == "" or name.startswith(("Unnamed: ", "__index_level_")) for name in unknown):
        hint = " (write the file without pandas' index: index=False)"
    raise Refused(f"the answers have the column {_join(unknown)}{hint}; {expected}; leave out all others")


def labels(name: str, column: pa.Array, dtype: DType) -> list[Any]:
    """`column` as labels of `dtype`; None where it is missing. Raises `Refused`, naming column and row."""
    if dtype == "string":
        if not _is_text(column):
            raise Refused(f"the answers' column {name!r} holds {column.type}; the model's labels are text")
        return list(column.to_pylist())
    if dtype == "bool":
        return _booleans(name, column)
    if dtype == "int64" and pa.types.is_integer(column.type):
        return list(column.to_pylist())
    if dtype == "int64":
        return _integers(name, column)
    return [None if v != v else v for v in numbers(name, column).tolist()]


def _integers(name: str, column: pa.Array) -> list[Any]:
    """Integers that may be written as 3.0; exact also where float64 is not."""
    values = numbers(name, column).tolist()
    cells = column.to_pylist()
    for row, value in enumerate(values):
        if value == value and not float(value).is_integer():
            raise _cannot_read(name, row, cells[row], "an integer")
    return [None if v != v else _exact(cell, v) for cell, v in zip(cells, values, strict=True)]


def _exact(cell: Any, value: float) -> int:
    try:
        return int(cell)
    except ValueError:
        return int(value)


def numbers(name: str, column: pa.Array) -> Array:
    """`column` as float64, NaN where it is missing. Raises `Refused`, naming column and row."""
    if _is_text(column):
        return _parsed(name, column)
    kind = column.type
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if not (is_number or pa.types.is_null(kind)):
        raise Refused(f"the answers' column {name!r} holds {kind}; it must hold numbers")
    values: Array = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return values


def _parsed(name: str, column: pa.Array) -> Array:
    values = np.full(len(column), np.nan)
    for row, text in enumerate(column.to_pylist()):
        if text is not None and not is_missing(text):
            try:
                values[row] = float(text)
            except ValueError:
                raise _cannot_read(name, row, text, "a number") from None
    return values


def _booleans(name: str, column: pa.Array) -> list[Any]:
    if pa.types.is_boolean(column.type):
        return list(column.to_pylist())
    meanings = {"true": True, "false": False, "1": True, "0": False}
    values = []
    for row, value in enumerate(column.to_pylist()):
        text = str(value).strip().lower()
        if text not in meanings and value is not None and not is_missing(str(value)):
            raise _cannot_read(name, row, value, "true or false")
        values.append(meanings.get(text))
    return values


def _cannot_read(name: str, row: int, value: object, expected: str) -> Refused:
    return Refused(
        f"the answers' column {name!r} holds {value!r} in row {row} (the first is 0), expected {expected}"
    )


def _is_text(column: pa.Array) -> bool:
    return bool(pa.types.is_string(column.type))


def _join(names: list[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(map(repr, names[:MAX_LISTED])) + more


NamesAndColumns = tuple[list[str], list[pa.Array]]


def _read_csv(path: Path) -> NamesAndColumns:
    with pacsv.open_csv(path) as reader:
        names = list(reader.schema.names)
    options = pacsv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False, null_values=[]
    )
    return _columns_of(pacsv.read_csv(path, convert_options=options))


def _read_parquet(path: Path) -> NamesAndColumns:
    return _columns_of(pq.read_table(path))


def _read_json(path: Path) -> NamesAndColumns:
    rows = json.loads(path.read_bytes(), object_pairs_hook=_unique_keys)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected a list of objects, one for each row")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return names, [_json_column(name, [row.get(name) for row in rows]) for name in names]


_READERS = {CSV: _read_csv, PARQUET: _read_parquet, JSON: _read_json}


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"an object has a repeated key; its keys are {[key for key, _ in pairs]}")
    return values


def _json_column(name: str, values: list[Any]) -> pa.Array:
    """JSON may write 1.0 as 1: a column of integers and floats is a column of floats."""
    if {type(v) for v in values if v is not None} == {int, float}:
        values = [None if v is None else float(v) for v in values]
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(f"the column {name!r} holds values of several types: {error}") from error


def _columns_of(table: pa.Table) -> NamesAndColumns:
    return list(table.column_names), [_plain(column) for column in table.columns]


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """One array; texts as `string`, without dictionaries."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        column = column.cast(pa.string())
    array = column.combine_chunks()
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
