"""Rows out of CSV, and what every table has in common.

CSV here is RFC 4180 in UTF-8: comma, double quotes, any line end, a header with the features' names in
any order. The empty cell is null, except in a string column that is not nullable: there it is the empty
string. (So a nullable string column cannot be sent the empty string as CSV; JSON and Arrow can.) `NaN`
and infinity are null where the column is nullable. Blank lines are skipped.
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

from registry.errors import Invalid, invalid_field
from registry.rows import Array, Rows
from registry.text_codes import separator
from service.runtime.codec.columns import Column, Faults, Wrong, rows_of, show

_NUMBER = re.compile(r"[+-]?(\d+|(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?)", re.ASCII)
_INFINITE = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
_NAN = re.compile(r"([+-]?nan)?", re.IGNORECASE)
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def decode_csv(body: bytes, columns: Sequence[Column], max_rows: int) -> Rows:
    """1 to `max_rows` rows; raises `Invalid` with every fault that was found."""
    header, cells = _read(body, max_rows)
    faults = Faults()
    check_names(header, columns, faults)
    for index, row in enumerate(cells):
        if len(row) != len(header):
            message = f"the row has {len(row)} cells, the header has {len(header)}"
            faults.add(message, index, None, f"{len(header)} cells")
    faults.raise_any()
    by_name = dict(zip(header, zip(*cells, strict=True), strict=True))
    arrays = []
    for column in columns:
        texts = by_name[column.name]
        array = _whole(column, texts)
        arrays.append(walk(column, texts, csv_value, faults) if array is None else array)
    return finish(columns, arrays, len(cells), faults)


def check_names(names: Sequence[str], columns: Sequence[Column], faults: Faults) -> None:
    """A fault for each column that is there twice, missing, or none of the features."""
    known, there = {c.name for c in columns}, set(names)
    if len(names) == 1 and len(known) > 1 and (mark := separator(names[0])):
        faults.add(
            f"the header {show(names[0])} seems to be separated by {mark}; write commas", None, names[0]
        )
        return
    for name, count in Counter(names).items():
        if count > 1:
            faults.add(f"column {show(name)} is there {count} times; send it once", None, name)
        if name not in known:
            faults.add_unknown("is no feature of this model", name, known - there)
    for column in columns:
        if column.name not in there:
            message = f"column {show(column.name)} is missing; {column.advice}"
            faults.add(message, None, column.name, column.expected)


def walk(
    column: Column, values: Sequence[Any], read: Callable[[Any, Column], Any], faults: Faults
) -> Array | None:
    """The column's array, value by value through `Column.cell`; None when a fault was added."""
    taken = []
    for index, value in enumerate(values):
        try:
            taken.append(column.cell(read(value, column)))
        except Wrong as wrong:
            faults.add(f"{show(column.name)} {wrong}", index, column.name, column.expected)
            if faults.full:
                break
    return column.array(taken) if len(taken) == len(values) else None


def finish(columns: Sequence[Column], arrays: Sequence[Array | None], length: int, faults: Faults) -> Rows:
    """`Rows` of the arrays; raises `Invalid`, the faults in the order of the rows, if there are any."""
    faults.sort(key=lambda f: -1 if f.instance is None else f.instance)
    faults.raise_any()
    return rows_of(columns, [a for a in arrays if a is not None], length)


def refuse(message: str, field: str | None = None, expected: str | None = None) -> Invalid:
    return invalid_field(field, message, expected)


def _read(body: bytes, max_rows: int) -> tuple[list[str], list[list[str]]]:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refuse(f"the CSV is not UTF-8: byte {error.start} is not valid", None, "UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    lines: list[list[str]] = []
    try:
        for count, line in enumerate(reader):
            if line:
                lines.append(line)
            # twice as many records: a body of nothing but line ends would take seconds
            if len(lines) > max_rows + 1 or count > 2 * max_rows + 2:
                raise refuse(
                    f"there are more than {max_rows} rows; send the rest in other calls", "instances"
                )
    except csv.Error as error:
        raise refuse(f"the CSV cannot be read: {error} (line {reader.line_num})") from error
    if len(lines) < 2:
        what = "no rows below the header" if lines else "nothing in it"
        raise refuse(f"the CSV has {what}; send a header and 1 to {max_rows} rows", "instances")
    return lines[0], lines[1:]


def _whole(column: Column, texts: Sequence[str]) -> Array | None:
    """The column read in one go; None where a cell needs `Column.cell`. Python's `float` and `int` take
    `1_000` and the digits of other scripts, which are no CSV numbers."""
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
    # infinity may be a number too large for a float, which only `csv_value` tells apart
    return None if np.isinf(numbers).any() else column.numbers(numbers)


def csv_value(text: str, column: Column) -> Any:
    """The cell as the JSON value that it stands for; text that is none stays text."""
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
