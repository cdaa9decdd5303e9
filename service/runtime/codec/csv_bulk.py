"""Decodes large CSV bodies with Arrow, which releases the interpreter's lock while it works.

Cell by cell, 10,000 rows of 500 numbers take ten times as long, and every other request of the process waits
for the lock. `service.runtime.codec.csv` is the definition: this module returns the same rows and the same
faults. A column that Arrow cannot convert as a whole is read cell by cell; a body that the two parsers might
divide differently is left to the definition.

Imports pyarrow, and is itself imported at the first large body.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from registry.errors import invalid_field
from registry.rows import Array, Rows
from registry.signature import MAX_SAFE_INTEGER
from registry.text_tables import MISSING_WORDS
from service.runtime.codec.arrow import convert_distinct
from service.runtime.codec.columns import (
    MAX_FAULTS,
    Column,
    Faults,
    ValueRejected,
    check_names,
    rows_or_raise,
    show,
)
from service.runtime.codec.csv import MAX_CELL, csv_value, row_limit_message, width_fault

_BOM = b"\xef\xbb\xbf"
MIN_HALVED = 16  # cells; shorter ranges are read cell by cell
_QUOTE = 0x22
_OUTSIDE = np.zeros(256, dtype=bool)  # characters next to a quote that opens or closes a cell
_OUTSIDE[list(b',\r\n"')] = True
_MISSING = pa.array(MISSING_WORDS, pa.string())
_EXACT_LIMIT = float(MAX_SAFE_INTEGER + 1)  # from here on float64 does not represent every integer


def decode_bulk(body: bytes, columns: Sequence[Column], max_rows: int) -> Rows | None:
    """Return 1 to `max_rows` rows, or None if only the definition can read the body.

    Raises `Invalid` with every fault.
    """
    header = _read_header(body)
    if header is None or not _is_utf8(body) or b"\0" in body or not _has_regular_quotes(body):
        return None
    names, start = header
    parsed = _parse(memoryview(body)[start:], names)
    if parsed is None:
        return None
    table, widths = parsed
    if table.num_rows + len(widths) == 0 or _has_long_cell(table):
        return None
    if len(widths) <= MAX_FAULTS and table.num_rows + len(widths) > max_rows:
        raise invalid_field("instances", row_limit_message(max_rows))
    faults = Faults()
    check_names(names, columns, faults)
    for row, width in widths.items():
        width_fault(faults, row, width, len(names))
    faults.raise_any()
    arrays = []
    for column in columns:
        pieces = _convert(column, table.column(names.index(column.name)).combine_chunks(), 0, faults)
        arrays.append(pieces[0] if len(pieces) == 1 else np.concatenate(pieces))
        if faults.full:
            break
    return rows_or_raise(columns, arrays, table.num_rows, faults)


def _read_header(body: bytes) -> tuple[list[str], int] | None:
    """Return the names of the columns and the start of the first row; None if quotes hold a line end."""
    start = len(_BOM) if body.startswith(_BOM) else 0
    while body[start : start + 1] in (b"\r", b"\n"):
        start += 1
    end = min((at for at in (body.find(b"\n", start), body.find(b"\r", start)) if at >= 0), default=-1)
    if end < 0:
        return None
    try:
        return next(csv.reader([body[start:end].decode()], strict=True)), end
    except (UnicodeDecodeError, csv.Error):
        return None


def _is_utf8(body: bytes) -> bool:
    try:
        return body.isascii() or bool(body.decode())
    except UnicodeDecodeError:
        return False


def _has_regular_quotes(body: bytes) -> bool:
    """Whether each quote opens or closes a cell, or is doubled inside a quoted one."""
    if b'"' not in body:
        return True
    octets = np.frombuffer(body, dtype=np.uint8)
    quotes = np.flatnonzero(octets == _QUOTE)
    if len(quotes) % 2:
        return False
    before = octets[quotes[0::2] - 1]
    if quotes[0] in (0, len(_BOM)):
        before = before[1:]
    after = quotes[1::2] + 1
    return bool(_OUTSIDE[before].all() and _OUTSIDE[octets[after[after < len(octets)]]].all())


def _parse(data: memoryview, names: Sequence[str]) -> tuple[Any, dict[int, int]] | None:
    """Return a table of text, and the number of cells of each row with a wrong one, by row.

    None if Arrow cannot parse the data. After more than `MAX_FAULTS` wrong rows the table is empty.
    """
    widths: dict[int, int] = {}

    def skip_row(row: Any) -> str:
        widths[row.number - 1] = row.actual_columns
        return "skip" if len(widths) <= MAX_FAULTS else "error"

    labels = [str(position) for position in range(len(names))]  # names may be repeated
    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(pa.py_buffer(data)),
            pyarrow.csv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=labels),
            pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip_row),
            pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(labels, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowException:
        if len(widths) <= MAX_FAULTS:
            return None
        table = pa.table({label: pa.array([], pa.string()) for label in labels})
    return table, widths


def _has_long_cell(table: Any) -> bool:
    """Whether a cell may exceed the limit of the definition's parser."""
    if table.nbytes <= MAX_CELL:
        return False
    lengths = (pc.max(pc.binary_length(column)).as_py() for column in table.columns)
    return any(length is not None and length > MAX_CELL for length in lengths)


def _convert(column: Column, texts: Any, first_row: int, faults: Faults) -> list[Array]:
    """Convert cells at once, or in halves until those that cannot be are isolated. Faults have no value."""
    if column.dtype in ("string", "bool"):
        array = convert_distinct(column, texts, csv_value)
    else:
        array = parse_numbers(column, texts)
    if array is not None:
        return [array]
    if len(texts) <= MIN_HALVED:
        return [_read_cells(column, texts.to_pylist(), first_row, faults)]
    half = len(texts) // 2
    pieces = _convert(column, texts.slice(0, half), first_row, faults)
    return pieces if faults.full else pieces + _convert(column, texts.slice(half), first_row + half, faults)


def _read_cells(column: Column, texts: Sequence[str], first_row: int, faults: Faults) -> Array:
    values = []
    for row, text in enumerate(texts, first_row):
        try:
            values.append(column.check(csv_value(text, column)))
        except ValueRejected as error:
            faults.add(f"{show(column.name)} {error}", row, column.name, column.expected)
    return column.array(values)


def parse_numbers(column: Column, text: Any) -> Array | None:
    """Convert a column of text to numbers at once. None if a cell must be read with `csv_value`."""
    try:
        numbers = text.cast(pa.float64())
    except pa.ArrowInvalid:
        numbers = _parse_with_missing(text)
    if numbers is None:
        return None
    array = numbers.to_numpy(zero_copy_only=False)
    if not is_exact(column, array) or (np.isnan(array).sum() > numbers.null_count and _has_nan_payload(text)):
        return None
    return column.numbers(array)


def _parse_with_missing(text: Any) -> Any:
    text = pc.ascii_trim(text, characters=" \t")
    try:
        return pc.if_else(pc.is_in(text, value_set=_MISSING), None, text).cast(pa.float64())
    except pa.ArrowInvalid:
        return None


def is_exact(column: Column, array: Array) -> bool:
    """Whether numbers that Arrow parsed are the values that `csv_value` returns for the same text.

    Infinity may represent a number too large for a float, and large integers may need all of their digits.
    """
    if np.isinf(array).any():
        return False
    return column.dtype != "int64" or not (np.abs(array) >= _EXACT_LIMIT).any()


def _has_nan_payload(text: Any) -> bool:
    return bool(pc.any(pc.match_substring(text, "(")).as_py())  # Arrow parses nan(...) as a number
