"""Decodes the rows of a CSV body, and what CSV and Arrow bodies have in common.

CSV here is RFC 4180 in UTF-8: comma, double quotes, any line end, and a header with the features' names in
any order. An empty cell is null, except in a string column that is not nullable, where it is the empty string.
(So the empty string cannot be sent as CSV to a nullable string column; JSON and Arrow can send it.) `NaN` and
infinity are null where the column is nullable. Blank lines are skipped.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from registry.errors import invalid_field
from registry.rows import Array, Rows
from registry.text_tables import other_separator
from service.runtime.codec.columns import Column, Faults, ValueRejected, rows_of, show

_NUMBER = re.compile(r"[+-]?(\d+|(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?)", re.ASCII)
_INFINITE = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
_NAN = re.compile(r"([+-]?nan)?", re.IGNORECASE)
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def decode_csv(body: bytes, columns: Sequence[Column], max_rows: int) -> Rows:
    """Return 1 to `max_rows` rows. Raises `Invalid` with every fault."""
    header, cells = _read(body, max_rows)
    faults = Faults()
    check_names(header, columns, faults)
    for index, row in enumerate(cells):
        if len(row) != len(header):
            message = f"the row has {len(row)} cells, the header has {len(header)}"
            faults.add(message, index, None, f"{len(header)} cells")
    faults.raise_any()
    texts_by_name = dict(zip(header, zip(*cells, strict=True), strict=True))
    arrays = []
    for column in columns:
        texts = texts_by_name[column.name]
        array = _convert_column(column, texts)
        arrays.append(read_column(column, texts, csv_value, faults) if array is None else array)
    return rows_or_raise(columns, arrays, len(cells), faults)


def check_names(names: Sequence[str], columns: Sequence[Column], faults: Faults) -> None:
    """Add a fault for each column that is repeated, missing, or not a feature."""
    features = {c.name for c in columns}
    if len(names) == 1 and len(features) > 1 and (separator := other_separator(names[0])):
        message = f"the header {show(names[0])} seems to be separated by {separator}; use commas"
        faults.add(message, None, names[0])
        return
    for name, count in Counter(names).items():
        if count > 1:
            faults.add(f"column {show(name)} occurs {count} times; send it once", None, name)
        if name not in features:
            faults.add_unknown("is not a feature of this model", name, features - set(names))
    for column in columns:
        if column.name not in names:
            message = f"column {show(column.name)} is missing; {column.advice}"
            faults.add(message, None, column.name, column.expected)


def read_column(
    column: Column, values: Sequence[Any], read: Callable[[Any, Column], Any], faults: Faults
) -> Array | None:
    """Convert a column value by value with `Column.check`; None if a fault was added."""
    checked = []
    for index, value in enumerate(values):
        try:
            checked.append(column.check(read(value, column)))
        except ValueRejected as error:
            faults.add(f"{show(column.name)} {error}", index, column.name, column.expected)
            if faults.full:
                break
    return column.array(checked) if len(checked) == len(values) else None


def rows_or_raise(
    columns: Sequence[Column], arrays: Sequence[Array | None], length: int, faults: Faults
) -> Rows:
    """Combine the arrays to `Rows`. Raises `Invalid`, with the faults in the order of the rows, if any."""
    faults.sort(key=lambda f: -1 if f.instance is None else f.instance)
    faults.raise_any()
    return rows_of(columns, [a for a in arrays if a is not None], length)


def _read(body: bytes, max_rows: int) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows, as cells of text."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise invalid_field(
            None, f"the CSV is not UTF-8: byte {error.start} is not valid", "UTF-8"
        ) from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    lines: list[list[str]] = []
    try:
        for count, line in enumerate(reader):
            if line:
                lines.append(line)
            # The second bound: a body of line ends alone would take seconds.
            if len(lines) > max_rows + 1 or count > 2 * max_rows + 2:
                message = f"there are more than {max_rows} rows; send the rest in other calls"
                raise invalid_field("instances", message)
    except csv.Error as error:
        raise invalid_field(None, f"the CSV cannot be read: {error} (line {reader.line_num})") from error
    if len(lines) < 2:
        fault = "has no rows below the header" if lines else "is empty"
        raise invalid_field("instances", f"the CSV {fault}; send a header and 1 to {max_rows} rows")
    return lines[0], lines[1:]


def _convert_column(column: Column, texts: Sequence[str]) -> Array | None:
    """Convert all cells of a column at once; None if a cell must be read with `csv_value`.

    Python's `float` and `int` also accept `1_000` and the digits of other scripts, which are not CSV numbers.
    """
    if column.dtype in ("string", "bool"):
        return None
    joined = "".join(texts)
    if not joined.isascii() or "_" in joined:
        return None
    try:
        if column.dtype == "int64" and not column.nullable:
            numbers = np.array(list(map(int, texts)), dtype=np.int64)
        else:
            if "" in texts:
                texts = [t or "nan" for t in texts]
            numbers = np.array(list(map(float, texts)), dtype=np.float64)
    except (ValueError, OverflowError):
        return None
    # Infinity may be a number too large for a float, which only `csv_value` distinguishes.
    return None if np.isinf(numbers).any() else column.numbers(numbers)


def csv_value(text: str, column: Column) -> Any:
    """Return the cell's value as in JSON; a text that the column's type cannot read stays text."""
    if column.dtype == "string":
        return None if column.nullable and not text else text
    text = text.strip()
    if _NAN.fullmatch(text):
        return None
    if column.dtype == "bool":
        return _BOOLEANS.get(text.lower(), text)
    if _INFINITE.fullmatch(text):
        return None if column.nullable else float(text)
    if not _NUMBER.fullmatch(text):
        return text
    try:
        return int(text) if len(text) < 400 else math.inf
    except ValueError:
        return float(text)
