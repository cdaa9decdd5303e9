"""Decodes Arrow streams to rows, and encodes outputs as Arrow streams.

Imports pyarrow, and is itself imported at the first use: a server starts without it. Compressed streams are
rejected: a few megabytes of them may expand to many gigabytes. The memory that a body may need is bounded by
its own size and by `MAX_TEXT_BYTES`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from registry.errors import Invalid, invalid_field
from registry.rows import Array, Rows
from service import startup
from service.runtime.codec.arrow_types import (
    decimals_to_float64,
    decode,
    describe_type,
    family_of,
    is_number,
    is_text,
    plain_type,
    positions_and_values,
)
from service.runtime.codec.columns import (
    Column,
    Faults,
    ValueRejected,
    check_names,
    read_column,
    rows_or_raise,
    show,
)

startup.import_pyarrow()

MAX_TEXT_BYTES = 256 * 2**20
"""Limit of all strings in a body: views and slices may refer to the same bytes many times."""

_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3  # MessageHeader in Arrow's Message.fbs


def decode_arrow(body: bytes, columns: Sequence[Column], max_rows: int) -> Rows:
    """Return 1 to `max_rows` rows. Raises `Invalid` with every fault."""
    try:
        return _decode(_read(body, max_rows), columns)
    except Invalid:
        raise
    except Exception as error:  # pyarrow raises a dozen types for malformed streams
        raise invalid_field(
            None, f"the body cannot be read as an Arrow stream: {str(error)[:300]}"
        ) from error


def encode_arrow(table: dict[str, Array]) -> bytes:
    """Encode the columns as one record batch; NaN and infinity become null."""
    arrays = [
        pa.array(a, mask=~np.isfinite(a)) if a.dtype.kind == "f" else pa.array(a, type=_text_type(a))
        for a in table.values()
    ]
    batch = pa.record_batch(arrays, names=list(table))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    encoded: bytes = sink.getvalue().to_pybytes()
    return encoded


def _text_type(array: Array) -> Any:
    return pa.string() if array.dtype.kind in "OU" else None


def _read(body: bytes, max_rows: int) -> Any:
    messages = pa.ipc.MessageReader.open_stream(body)
    for message in messages:
        if _compressed(message.metadata.to_pybytes()):
            raise invalid_field(None, "the Arrow stream is compressed; send it uncompressed")
    reader = pa.ipc.open_stream(body)
    batches: list[Any] = []
    rows = 0
    for batch in reader:
        rows += batch.num_rows
        if rows > max_rows or len(batches) > max_rows:  # empty batches cost time too
            message = f"there are more than {max_rows} rows; send the rest in other calls"
            raise invalid_field("instances", message, f"1 to {max_rows} rows")
        batch.validate(full=True)
        batches.append(batch)
    if rows == 0:
        raise invalid_field("instances", f"there are no rows; send 1 to {max_rows}", f"1 to {max_rows} rows")
    return pa.Table.from_batches(batches, reader.schema)


def _compressed(metadata: bytes) -> bool:
    """Whether a message's body is compressed: the `compression` field of its RecordBatch is set.

    Source: Arrow's Message.fbs. A flatbuffer table starts with an offset back to its vtable.
    """

    def field(table: int, slot: int) -> int:
        vtable = table - struct.unpack_from("<i", metadata, table)[0]
        size = struct.unpack_from("<H", metadata, vtable)[0]
        at = 4 + 2 * slot
        offset = struct.unpack_from("<H", metadata, vtable + at)[0] if at < size else 0
        return table + offset if offset else 0

    def follow(at: int) -> int:
        return at + int(struct.unpack_from("<I", metadata, at)[0])

    message = follow(0)
    kind = field(message, 1)
    header = metadata[kind] if kind else 0
    if header not in (_DICTIONARY_BATCH, _RECORD_BATCH):
        return False
    batch = follow(field(message, 2))
    if header == _DICTIONARY_BATCH:
        batch = follow(field(batch, 1))
    return field(batch, 3) != 0


def _decode(table: Any, columns: Sequence[Column]) -> Rows:
    faults = Faults()
    check_names(_column_names(table.schema), columns, faults)
    faults.raise_any()
    for column in columns:
        check_type(column, table.schema.field(column.name), faults)
    faults.raise_any()
    text_bytes = 0
    arrays = []
    for column in columns:
        data = table.column(column.name)
        text_bytes += sum(map(_text_bytes, data.chunks))
        if text_bytes > MAX_TEXT_BYTES:
            raise invalid_field(None, f"the strings hold more than {MAX_TEXT_BYTES} bytes; send fewer rows")
        array = _convert(column, data)
        arrays.append(read_column(column, _values(data), arrow_value, faults) if array is None else array)
    return rows_or_raise(columns, arrays, table.num_rows, faults)


def _column_names(schema: Any) -> list[str]:
    try:
        return list(schema.names)
    except UnicodeDecodeError as error:
        name = show(error.object.decode(errors="backslashreplace"))
        message = f"the name of column {name} is not valid UTF-8; rename it"
        raise invalid_field(name, message, "UTF-8") from error


def check_type(column: Column, field: Any, faults: Faults) -> None:
    """Add a fault if the feature cannot have the type of an Arrow field."""
    family, kind = family_of(field), plain_type(field.type)
    if family.reason:
        fits = False
    elif column.dtype in ("string", "bool"):
        fits = is_text(kind) if column.dtype == "string" else pa.types.is_boolean(kind)
    else:
        fits = is_number(kind)
    if not fits and not pa.types.is_null(kind):
        reason = f": {family.reason}" if family.reason else ""
        message = f"column {show(column.name)} is of type {describe_type(field)}{reason}; send {column.dtype}"
        faults.add(message, None, column.name, column.dtype)


def _convert(column: Column, data: Any) -> Array | None:
    """Convert a chunked column at once. None if a value must be read with `arrow_value` and `check`."""
    if is_number(plain_type(data.type)):
        return convert_numbers(column, data)
    if pa.types.is_null(plain_type(data.type)):
        return None
    arrays = [convert_distinct(column, chunk, arrow_value) for chunk in data.chunks]
    complete = [array for array in arrays if array is not None]
    return np.concatenate(complete) if len(complete) == len(arrays) else None


def convert_numbers(column: Column, data: Any) -> Array | None:
    """Convert a column of numbers at once. None if a value must be read with `arrow_value` and `check`."""
    data = decode(data)
    if pa.types.is_decimal(data.type):
        if column.dtype == "int64":
            try:
                data = data.cast(pa.int64())
            except pa.ArrowInvalid:
                return None
        else:
            data = decimals_to_float64(data)
    return column.numbers(data.to_numpy(zero_copy_only=False))


def convert_distinct(column: Column, data: Any, read_cell: Callable[[Any, Column], Any]) -> Array | None:
    """Convert a column, checking each distinct value once. None if one is invalid."""
    positions, distinct = _distinct_values(data)
    cells = [*distinct.to_pylist(), None]
    try:
        if not positions.null_count:
            cells.pop()
        values = column.array([column.check(read_cell(cell, column)) for cell in cells])
    except ValueRejected:
        return None
    index: Array = positions.fill_null(len(cells) - 1).to_numpy()
    return np.asarray(values[index])


def _distinct_values(data: Any) -> tuple[Any, Any]:
    """Return the position of each row's value among the distinct values, and those. Null has no position."""
    if not _is_encoded(data.type):
        encoded = decode(data).dictionary_encode()
        return encoded.indices, encoded.dictionary
    positions, values = positions_and_values(data)
    used = positions.unique().drop_null()  # a dictionary may contain values that no row has
    return pc.index_in(positions, value_set=used), decode(values).take(used)


def _text_bytes(array: Any) -> int:
    """The number of bytes of text that an array refers to. The array is one validated chunk."""
    if _is_encoded(array.type):
        return _text_bytes(positions_and_values(array)[1])
    if pa.types.is_string_view(array.type):
        # 16 bytes each, beginning with the length; pyarrow cannot add them up
        views = np.frombuffer(array.buffers()[1], dtype=np.int32)
        lengths = views[4 * array.offset :: 4][: len(array)]
        return int(lengths[array.is_valid().to_numpy(zero_copy_only=False)].sum(dtype=np.int64))
    return int(pc.sum(pc.binary_length(array)).as_py() or 0) if is_text(array.type) else 0


def _values(data: Any) -> list[Any]:
    """Return Python values. A string of a dictionary or a run is created once, however often it occurs."""
    return [value for chunk in data.chunks for value in _chunk_values(chunk)]


def _chunk_values(chunk: Any) -> list[Any]:
    if not _is_encoded(chunk.type):
        values: list[Any] = chunk.to_pylist()
        return values
    positions, distinct = positions_and_values(chunk)
    values = _chunk_values(distinct)
    return [None if i is None else values[i] for i in positions.to_pylist()]


def _is_encoded(kind: Any) -> bool:
    return bool(pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind))


def arrow_value(value: Any, column: Column) -> Any:
    """NaN is null. A whole decimal is an integer."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
