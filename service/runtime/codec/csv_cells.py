"""Columns of CSV text where no signature states their type: in a published example and in a training.

`registry.text_tables` defines the words of missing values. Imports pyarrow.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from registry.text_tables import CODE_PATTERN, is_missing


def typed_cells(cells: Any) -> Any:
    """Return a column of text as int64, float64 or bool if all cells are that, apart from missing ones.

    Every other column is text: dates, codes such as 01067, and words beside numbers that are not missing
    values. A column without values is null.
    """
    present = without_missing_words(cells)
    if present.null_count == len(cells):
        return pa.nulls(len(cells)) if pc.all(pc.equal(cells, "")).as_py() else without_empty(cells)
    if pc.any(pc.match_substring_regex(cells, CODE_PATTERN)).as_py():
        return without_empty(cells)
    lower = pc.utf8_lower(present)
    if pc.all(pc.is_in(lower.drop_null(), pa.array(["true", "false"]))).as_py():
        return pc.equal(lower, "true")
    for dtype in (pa.int64(), pa.float64()):
        try:
            return _cast(present, dtype)
        except pa.ArrowInvalid:
            continue
    return without_empty(cells)


def cast_cells(cells: Any, arrow_type: Any) -> Any:
    """Return a column of text in a type of `typed_cells`. Raises `pa.ArrowInvalid` if a cell does not fit."""
    if pa.types.is_string(arrow_type):
        return without_empty(cells)
    return _cast(without_missing_words(cells), arrow_type)


def _cast(present: Any, arrow_type: Any) -> Any:
    if pa.types.is_floating(arrow_type):  # Arrow parses nan(1) as a number
        payload = present.filter(pc.fill_null(pc.match_substring(present, "("), False))
        if len(payload):
            raise pa.ArrowInvalid(f"Failed to parse string: {payload[0].as_py()!r} as a number")
    return present.cast(arrow_type)


def without_missing_words(cells: Any) -> Any:
    """Return trimmed cells for a column of numbers or booleans, with null for the words of missing values."""
    encoded = cells.dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    trimmed = [None if is_missing(text) else text.strip().removeprefix("+") for text in texts]
    return pa.array(trimmed, pa.string()).take(encoded.indices)


def without_empty(cells: Any) -> Any:
    """Return text with null for empty cells, which are the missing values of a column of text."""
    return pc.if_else(pc.equal(cells, ""), pa.scalar(None, pa.string()), cells)
