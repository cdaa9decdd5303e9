"""Decodes the rows of a CSV body.

CSV here is RFC 4180 in UTF-8: comma, double quotes, any line end, and a header with the features' names in
any order. An empty cell is null, except in a string column that is not nullable, where it is the empty
string. (So the empty string cannot be sent as CSV to a nullable string column; JSON and Arrow can send it. A
column whose model knows both refuses an empty cell.)
In columns of numbers and booleans `registry.text_tables.MISSING_WORDS` are null too. Blank lines are skipped.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from registry.errors import invalid_field
from registry.rows import Array, Rows
from registry.text_tables import MISSING_WORDS, is_missing
from service.runtime.codec.columns import (
    Column,
    Faults,
    ValueRejected,
    check_names,
    read_column,
    rows_or_raise,
)

_NUMBER = re.compile(r"[+-]?(\d+|(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?)", re.ASCII)
_INFINITE = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
BULK_BYTES = 64 * 1024
"""Larger bodies are decoded with Arrow."""
MAX_CELL = csv.field_size_limit()  # characters in a cell: the limit of Python's parser
_MISSING = frozenset(MISSING_WORDS)
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def decode_csv(body: bytes, columns: Sequence[Column], max_rows: int) -> Rows:
    """Return 1 to `max_rows` rows. Raises `Invalid` with every fault."""
    if len(body) >= BULK_BYTES:
        from service.runtime.codec.csv_bulk import decode_bulk  # pyarrow: see service/startup.py

        if (rows := decode_bulk(body, columns, max_rows)) is not None:
            return rows
    return decode_cells(body, columns, max_rows)


def decode_cells(body: bytes, columns: Sequence[Column], max_rows: int) -> Rows:
    """Decode cell by cell, which is the definition of CSV."""
    header, cells = _read(body, max_rows)
    faults = Faults()
    check_names(header, columns, faults)
    for index, row in enumerate(cells):
        if len(row) != len(header):
            width_fault(faults, index, len(row), len(header))
    faults.raise_any()
    texts_by_name = dict(zip(header, zip(*cells, strict=True), strict=True))
    arrays = []
    for column in columns:
        texts = texts_by_name[column.name]
        array = _convert_column(column, texts)
        arrays.append(read_column(column, texts, csv_value, faults) if array is None else array)
    return rows_or_raise(columns, arrays, len(cells), faults)


def width_fault(faults: Faults, row: int, width: int, expected: int) -> None:
    message = f"the row has {width} cells, the header has {expected}"
    faults.add(message, row, None, f"{expected} cells")


def row_limit_message(max_rows: int) -> str:
    return f"there are more than {max_rows} rows; send the rest in other calls"


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
                raise invalid_field("instances", row_limit_message(max_rows))
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
            if not _MISSING.isdisjoint(texts):
                texts = ["nan" if t in _MISSING else t for t in texts]
            numbers = np.array(list(map(float, texts)), dtype=np.float64)
    except (ValueError, OverflowError):
        return None
    # Infinity may be a number too large for a float, which only `csv_value` distinguishes.
    return None if np.isinf(numbers).any() else column.numbers(numbers)


def csv_value(text: str, column: Column) -> Any:
    """Return the cell's value as in JSON; a text that the column's type cannot read stays text."""
    if column.dtype == "string":
        if not text and column.distinguishes_empty:
            raise ValueRejected(
                "is an empty cell: the model distinguishes the empty text from a missing value, and CSV "
                "does not; send JSON or Arrow, or score Parquet or JSON lines"
            )
        return None if column.nullable and not text else text
    text = text.strip()
    if is_missing(text):
        return None
    if column.dtype == "bool":
        return _BOOLEANS.get(text.lower(), text)
    if _INFINITE.fullmatch(text):
        return float(text)
    if not _NUMBER.fullmatch(text):
        return text
    try:
        return int(text) if len(text) < 400 else math.inf
    except ValueError:
        return float(text)
