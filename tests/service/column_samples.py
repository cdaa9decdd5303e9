"""Columns of every Arrow type, by the title of their family in the table of column types."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_NS = 1_700_000_000_123_456_789
_DAY = datetime.date(2026, 1, 2)

SAMPLES: dict[str, list[Any]] = {
    "extension types (uuid, json, bool8, pandas' period and interval, ...)": [
        pa.array([b"0123456789abcdef"] * 2, pa.uuid()),
        pa.array(["{}", "[]"], pa.json_()),
        pa.array([1, 0], pa.bool8()),
        pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(4).reshape(2, 2)),
    ],
    "null": [pa.nulls(2)],
    "bool": [pa.array([True, False])],
    "int8, int16, int32, int64, uint8, uint16, uint32, uint64": [
        pa.array([1, 2], kind)
        for kind in (
            pa.int8(),
            pa.int16(),
            pa.int32(),
            pa.int64(),
            pa.uint8(),
            pa.uint16(),
            pa.uint32(),
            pa.uint64(),
        )
    ],
    "float16, float32": [pa.array([1.5, 2.25], kind) for kind in (pa.float16(), pa.float32())],
    "float64": [pa.array([0.1, 2.5])],
    "decimal32, decimal64, decimal128, decimal256": [
        pa.array([Decimal("0.10"), Decimal("-2.57")], kind)
        for kind in (pa.decimal32(9, 2), pa.decimal64(18, 2), pa.decimal128(38, 2), pa.decimal256(76, 2))
    ],
    "string, large_string, string_view": [
        pa.array(["1.50", "NA"], kind) for kind in (pa.string(), pa.large_string(), pa.string_view())
    ],
    "date32, date64": [pa.array([_DAY, _DAY], kind) for kind in (pa.date32(), pa.date64())],
    "timestamp, with and without a time zone": [
        pa.array([_NS // scale, -_NS // scale], pa.timestamp(unit, zone))
        for unit, scale in (("s", 10**9), ("ms", 10**6), ("us", 10**3), ("ns", 1))
        for zone in (None, "Europe/Berlin")
    ],
    "time32, time64": [
        pa.array([1, 86_399], kind)
        for kind in (pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns"))
    ],
    "duration": [pa.array([1_000_000_007, -1], pa.duration(unit)) for unit in ("s", "ms", "us", "ns")],
    "month_day_nano_interval": [pa.array([(1, 2, 3), (0, 0, 0)], pa.month_day_nano_interval())],
    "binary, large_binary, binary_view, fixed_size_binary": [
        pa.array([b"ab", b"cd"], kind)
        for kind in (pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(2))
    ],
    "list, large_list, list_view, large_list_view, fixed_size_list, struct, map, union": [
        pa.array([[1], [2]], pa.list_(pa.int64())),
        pa.array([[1], [2]], pa.large_list(pa.int64())),
        pa.array([[1], [2]], pa.list_view(pa.int64())),
        pa.array([[1], [2]], pa.large_list_view(pa.int64())),
        pa.array([[1], [2]], pa.list_(pa.int64(), 1)),
        pa.array([{"a": 1}, {"a": 2}]),
        pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())),
        pa.UnionArray.from_dense(
            pa.array([0, 0], pa.int8()), pa.array([0, 1], pa.int32()), [pa.array([1, 2])]
        ),
    ],
}
"""Two rows each."""


def encodings(array: Any) -> list[Any]:
    """Return the same values as they are, dictionary encoded and run-end encoded, where Arrow can do it."""
    positions = pa.array([0, 1], pa.int8())
    encoded = [array]
    for encode in (
        lambda: pa.DictionaryArray.from_arrays(positions, array),
        lambda: pa.RunEndEncodedArray.from_arrays(pa.array([1, 2], pa.int32()), array),
        lambda: pa.RunEndEncodedArray.from_arrays(pa.array([1, 2], pa.int16()), pc.dictionary_encode(array)),
    ):
        try:
            encoded.append(encode())
        except (pa.ArrowException, TypeError):
            continue
    return encoded
