"""The table of column types: what a column of each Arrow type becomes, as a feature and as a copied column.

All readers use this table: the published example, online Arrow bodies, batch files and training. The page
docs/column-types.md shows it. CSV and JSON have no column types; there the signature's dtype decides.

A feature becomes one of the five dtypes of a signature, or its type is refused with the reason and the
remedy. A copied column (id or passthrough) keeps its exact values, or its type is refused.

Imports pyarrow: see `service.runtime.codec.arrow`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from registry.signature import MAX_SAFE_INTEGER, DType
from service import startup

startup.import_pyarrow()


class TypeFamily(NamedTuple):
    """Arrow types with one rule."""

    title: str
    matches: Callable[[Any], bool]
    dtype: DType | None  # of a feature; None: not a feature
    reason: str  # why it is not a feature, and the remedy; "" for a feature
    copied: bool = True  # whether an id or passthrough column may have the type


def _any_of(*predicates: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda kind: any(matches(kind) for matches in predicates)


def _is_extension(kind: Any) -> bool:
    return isinstance(kind, pa.BaseExtensionType)


_is = pa.types
FAMILIES = (
    # Extension types come first: some of them also match the type that they store.
    TypeFamily(
        "extension types (uuid, json, bool8, pandas' period and interval, ...)",
        _is_extension,
        None,
        "extension types are not features; convert the column to a number or to text before fitting",
        copied=False,
    ),
    TypeFamily("null", _is.is_null, "float64", ""),
    TypeFamily("bool", _is.is_boolean, "bool", ""),
    TypeFamily(
        "int8, int16, int32, int64, uint8, uint16, uint32, uint64",
        _is.is_integer,
        "int64",
        "",
    ),
    TypeFamily("float16, float32", _any_of(_is.is_float16, _is.is_float32), "float32", ""),
    TypeFamily("float64", _is.is_float64, "float64", ""),
    TypeFamily("decimal32, decimal64, decimal128, decimal256", _is.is_decimal, "float64", ""),
    TypeFamily(
        "string, large_string, string_view",
        _any_of(_is.is_string, _is.is_large_string, _is.is_string_view),
        "string",
        "",
    ),
    TypeFamily(
        "date32, date64",
        _is.is_date,
        None,
        "dates are not features; convert the column to a number, such as the days since a date, or to text, "
        "before fitting",
    ),
    TypeFamily(
        "timestamp, with and without a time zone",
        _is.is_timestamp,
        None,
        "timestamps are not features; convert the column to a number, such as the seconds since a date, or "
        "to text, before fitting",
    ),
    TypeFamily(
        "time32, time64",
        _is.is_time,
        None,
        "times of day are not features; convert the column to a number, such as the seconds since midnight, "
        "or to text, before fitting",
    ),
    TypeFamily(
        "duration",
        _is.is_duration,
        None,
        "durations are not features; convert the column to a number, such as seconds, before fitting",
    ),
    TypeFamily(
        "month_day_nano_interval",
        _is.is_interval,
        None,
        "calendar intervals are not features; convert the column to a number, such as days, before fitting",
        copied=False,
    ),
    TypeFamily(
        "binary, large_binary, binary_view, fixed_size_binary",
        _any_of(_is.is_binary, _is.is_large_binary, _is.is_binary_view, _is.is_fixed_size_binary),
        None,
        "bytes are not features; decode the column to text, or to columns of numbers, before fitting",
        copied=False,
    ),
    TypeFamily(
        "list, large_list, list_view, large_list_view, fixed_size_list, struct, map, union",
        _is.is_nested,
        None,
        "nested values are not features; write each value to a column of its own before fitting",
        copied=False,
    ),
)
"""In the order in which a type is looked up. Dictionary and run-end encoded columns are decoded first."""

_UNKNOWN = TypeFamily(
    "any other type",
    lambda kind: True,
    None,
    "columns of this type are not features; convert the column to a number or to text before fitting",
    copied=False,
)
ARROW_TYPES: dict[DType, Any] = {
    "float64": pa.float64(),
    "float32": pa.float32(),
    "int64": pa.int64(),
    "bool": pa.bool_(),
    "string": pa.string(),
}
"""The Arrow type of a feature's decoded column."""

_MAX_EXACT_POWER = 22  # float64 represents the powers of ten up to this one exactly

EXTENSION_NAME = b"ARROW:extension:name"
"""Metadata of a field whose extension type this process does not know. pandas registers its own types, such
as periods, only where it is imported; elsewhere the column looks like the integers that it stores."""


class TypeNotSupported(ValueError):
    """A type that a feature cannot have; the text completes the sentence "column 'd' ..."."""


def plain_type(kind: Any) -> Any:
    """Return the type of the values, without dictionary or run-end encoding, and without views."""
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def family_of(kind: Any) -> TypeFamily:
    """Return the row of the table for an Arrow type or field."""
    if isinstance(kind, pa.Field):
        if EXTENSION_NAME in (kind.metadata or {}):
            return FAMILIES[0]
        kind = kind.type
    plain = plain_type(kind)
    return next((family for family in FAMILIES if family.matches(plain)), _UNKNOWN)


def feature_dtype(kind: Any) -> DType:
    """Return the dtype of a feature of this Arrow type or field. Raises `TypeNotSupported`."""
    family = family_of(kind)
    if family.dtype is None:
        raise TypeNotSupported(f"is of type {describe_type(kind)}: {family.reason}")
    return family.dtype


def describe_type(kind: Any) -> str:
    if isinstance(kind, pa.Field):
        name = (kind.metadata or {}).get(EXTENSION_NAME)
        return describe_type(kind.type) if name is None else f"extension<{name.decode(errors='replace')}>"
    return str(kind)[:100]


def is_number(kind: Any) -> bool:
    """Whether columns of a plain type are numbers: integers, floats or decimals."""
    return bool(_is.is_integer(kind) or _is.is_floating(kind) or _is.is_decimal(kind))


def is_text(kind: Any) -> bool:
    return bool(_is.is_string(kind) or _is.is_large_string(kind) or _is.is_string_view(kind))


def decode(data: Any) -> Any:
    """Return an array or chunked array in its `plain_type`.

    A text in a dictionary or in a run is copied for each of its rows.
    """
    if data.type == plain_type(data.type):
        return data
    if isinstance(data, pa.ChunkedArray):
        return pa.chunked_array([decode(chunk) for chunk in data.chunks], plain_type(data.type))
    if pa.types.is_string_view(data.type) or pa.types.is_binary_view(data.type):
        return data.cast(plain_type(data.type))
    positions, values = positions_and_values(data)
    return decode(values).take(positions)


def positions_and_values(data: Any) -> tuple[Any, Any]:
    """Return a dictionary or run-end encoded array as its distinct values and the position of each row's."""
    if pa.types.is_dictionary(data.type):
        return data.indices, data.dictionary
    ends = data.run_ends.to_numpy()
    rows = np.arange(data.offset, data.offset + len(data))
    return pa.array(np.searchsorted(ends, rows, side="right")), data.values


def to_dtype(data: Any, dtype: DType) -> Any:
    """Return a decoded column as an Arrow column of a signature's dtype.

    Raises `pa.ArrowException` where that would change a value, except that floats are rounded to float32 and
    decimals to floats.
    """
    data = decode(data)
    if _is.is_decimal(data.type) and dtype in ("float64", "float32"):
        data = decimals_to_float64(data)
    return data.cast(ARROW_TYPES[dtype], safe=not (dtype == "float32" and _is.is_floating(data.type)))


def decimals_to_float64(data: Any) -> Any:
    """Return the float64 nearest to each decimal. Arrow's own cast is off by one unit in one of ten.

    The digits of most decimals, as an integer, and the power of ten are exact floats, so that one division
    rounds correctly (Clinger 1990). Other decimals are converted through text, ten times slower.
    """
    if isinstance(data, pa.ChunkedArray):
        return pa.chunked_array([decimals_to_float64(chunk) for chunk in data.chunks], pa.float64())
    digits = _decimal_digits(data)
    if digits is None or abs(data.type.scale) > _MAX_EXACT_POWER:
        return data.cast(pa.string()).cast(pa.float64())
    power = 10.0 ** abs(data.type.scale)
    numbers = digits / power if data.type.scale >= 0 else digits * power
    return pa.array(numbers, mask=data.is_null().to_numpy(zero_copy_only=False))


def _decimal_digits(data: Any) -> Any:
    """Return the unscaled integers of decimals, 0 for null; None if one is too large for an exact float."""
    if not len(data):
        return None
    width = max(1, data.type.bit_width // 64)  # words of a decimal, the lowest one first
    words = np.frombuffer(data.buffers()[1], dtype=np.int32 if data.type.bit_width == 32 else np.int64)
    words = words[data.offset * width : (data.offset + len(data)) * width].reshape(-1, width)
    words = np.where(data.is_valid().to_numpy(zero_copy_only=False)[:, None], words, 0)
    low = words[:, 0].astype(np.int64)
    is_small = (low <= MAX_SAFE_INTEGER) & (low >= -MAX_SAFE_INTEGER)
    has_one_word = words[:, 1:] == (low >> 63)[:, None]
    return low if is_small.all() and has_one_word.all() else None
