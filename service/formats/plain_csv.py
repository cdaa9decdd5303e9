"""Blocks of plain CSV as checked rows, where `digits` can read them; pyarrow reads all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from registry.rows import Array, Rows
from service.formats.cells import Wrongs, all_finite, around_missing
from service.formats.csv_cells import gather
from service.formats.csv_numbers import parse
from service.formats.dataset import Block
from service.runtime.codec.arrow import arrow_value
from service.runtime.codec.columns import Column


def block(data: bytes, names: Sequence[str], columns: Sequence[Column], extra: Sequence[str]) -> Block | None:
    """The block; None when it is not plain, or when more is wrong with a row of it than a missing cell."""
    if b'"' in data or any(c.dtype in ("string", "bool") for c in columns):
        return None
    octets = np.frombuffer(data if data.endswith(b"\n") else data + b"\n", dtype=np.uint8)
    features = {c.name: j for j, c in enumerate(columns)}
    number_of = np.array([features.get(n, -1) for n in names], dtype=np.int32)
    text_of = np.array([extra.index(n) if n in extra else -1 for n in names], dtype=np.int32)
    # A whole row has as many bytes as cells at least, and one may be cut. What is not written costs nothing.
    room = len(octets) // len(names) + 1
    matrix = np.empty((room, len(columns)))
    places = np.empty((len(extra), room, 2), dtype=np.int32)
    length = parse(octets, number_of, text_of, matrix, places)
    if length < 0:
        return None
    wrong: Wrongs = {}
    rows = _checked(columns, matrix[:length], wrong)
    arrays = [_strings(octets, places[k, :length]) for k in range(len(extra))]
    if rows is None or any(a is None for a in arrays):
        return None
    fields = [pa.field(n, pa.string()) for n in extra]
    return Block(length, rows, pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)), None, wrong)


def _checked(columns: Sequence[Column], matrix: Array, wrong: Wrongs) -> Rows | None:
    whole = all_finite(matrix)
    for j, column in enumerate(columns):
        if whole[j] and column.dtype == "float64" and column.known is None:
            continue
        array = column.numbers(matrix[:, j])
        if array is None:
            array = around_missing(column, pa.array(matrix[:, j]), arrow_value, 0, wrong)
        if array is None:
            return None
        matrix[:, j] = array
    return Rows(matrix=matrix)


def _strings(octets: Array, places: Array) -> Any:
    offsets = np.empty(len(places) + 1, dtype=np.int32)
    out = np.empty(int((places[:, 1] - places[:, 0]).sum()), dtype=np.uint8)
    gather(octets, places, offsets, out)
    array = pa.StringArray.from_buffers(len(places), pa.py_buffer(offsets), pa.py_buffer(out))
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:  # no UTF-8
        return None
    return array
