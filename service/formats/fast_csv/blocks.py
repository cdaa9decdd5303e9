"""Blocks of plain CSV as checked rows. Other blocks are left to pyarrow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from registry.rows import Array, Rows
from service.formats.cells import CellFaults, check_missing, finite_columns
from service.formats.dataset import Block
from service.formats.fast_csv.compiled import copy_cells, parse
from service.runtime.codec.arrow import arrow_value
from service.runtime.codec.columns import Column


def read_block(
    data: bytes, names: Sequence[str], columns: Sequence[Column], extra: Sequence[str]
) -> Block | None:
    """Read a block of complete rows. None if it is not plain or has invalid cells other than missing ones.

    `names` are the columns of the file, `columns` the features, `extra` the id and passthrough columns.
    """
    if b'"' in data or any(c.dtype in ("string", "bool") for c in columns):
        return None
    octets = np.frombuffer(data if data.endswith(b"\n") else data + b"\n", dtype=np.uint8)
    features = {c.name: j for j, c in enumerate(columns)}
    number_index = np.array([features.get(name, -1) for name in names], dtype=np.int32)
    text_index = np.array([extra.index(name) if name in extra else -1 for name in names], dtype=np.int32)
    # A complete row has at least one byte per cell, and the last row may be incomplete. Memory that is not
    # written to is never allocated.
    max_rows = len(octets) // len(names) + 1
    matrix = np.empty((max_rows, len(columns)))
    spans = np.empty((len(extra), max_rows, 2), dtype=np.int32)
    length = parse(octets, number_index, text_index, matrix, spans)
    if length < 0:
        return None
    faults: CellFaults = {}
    rows = _check_numbers(columns, matrix[:length], faults)
    texts = [_to_strings(octets, spans[k, :length]) for k in range(len(extra))]
    if rows is None or any(text is None for text in texts):
        return None
    schema = pa.schema([pa.field(name, pa.string()) for name in extra])
    return Block(length, rows, pa.RecordBatch.from_arrays(texts, schema=schema), cell_faults=faults)


def _check_numbers(columns: Sequence[Column], matrix: Array, faults: CellFaults) -> Rows | None:
    finite = finite_columns(matrix)
    for j, column in enumerate(columns):
        if finite[j] and column.dtype == "float64" and column.closed_categories is None:
            continue
        array = column.numbers(matrix[:, j])
        if array is None:
            array = check_missing(column, pa.array(matrix[:, j]), arrow_value, 0, faults)
        if array is None:
            return None
        matrix[:, j] = array
    return Rows(matrix=matrix)


def _to_strings(octets: Array, spans: Array) -> Any:
    """Return the cells at `spans` (start and end) as an Arrow array, or None if they are not UTF-8."""
    offsets = np.empty(len(spans) + 1, dtype=np.int32)
    data = np.empty(int((spans[:, 1] - spans[:, 0]).sum()), dtype=np.uint8)
    copy_cells(octets, spans, offsets, data)
    array = pa.StringArray.from_buffers(len(spans), pa.py_buffer(offsets), pa.py_buffer(data))
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return None
    return array
