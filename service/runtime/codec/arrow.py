"""Decodes Arrow streams to rows, and encodes outputs as Arrow streams.

Imports pyarrow, and is itself imported at the first use: a server starts without it. Compressed streams are
rejected: a few megabytes of them may expand to many gigabytes. The memory that a body may need is bounded by
its own size and by `MAX_TEXT_BYTES`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from registry.errors import Invalid, invalid_field
from registry.rows import Array, Rows
from service import startup
from service.runtime.codec.columns import Column, Faults, check_names, read_column, rows_or_raise, show

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
    check_names(table.column_names, columns, faults)
    faults.raise_any()
    for column in columns:
        check_type(column, table.schema.field(column.name).type, faults)
    faults.raise_any()
    text_bytes = 0
    arrays = []
    for column in columns:
        data = table.column(column.name)
        text_bytes += sum(map(_text_bytes, data.chunks))
        if text_bytes > MAX_TEXT_BYTES:
            raise invalid_field(None, f"the strings hold more than {MAX_TEXT_BYTES} bytes; send fewer rows")
        array = column.numbers(data.to_numpy()) if is_number(data.type) else None
        arrays.append(read_column(column, _values(data), arrow_value, faults) if array is None else array)
    return rows_or_raise(columns, arrays, table.num_rows, faults)


def check_type(column: Column, kind: Any, faults: Faults) -> None:
    if pa.types.is_null(kind):
        return
    if column.dtype == "string":
        fits = is_text(kind) or (pa.types.is_dictionary(kind) and is_text(kind.value_type))
    elif column.dtype == "bool":
        fits = pa.types.is_boolean(kind)
    else:
        fits = is_number(kind)
    if not fits:
        message = f"column {show(column.name)} is of type {str(kind)[:100]}; send {column.dtype}"
        faults.add(message, None, column.name, column.dtype)


def is_number(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _text_bytes(array: Any) -> int:
    """The number of bytes of text that an array refers to. The array is one validated chunk."""
    if pa.types.is_dictionary(array.type):
        return _text_bytes(array.dictionary)
    if pa.types.is_string_view(array.type):
        # 16 bytes each, beginning with the length; pyarrow cannot add them up
        views = np.frombuffer(array.buffers()[1], dtype=np.int32)
        lengths = views[4 * array.offset :: 4][: len(array)]
        return int(lengths[array.is_valid().to_numpy(zero_copy_only=False)].sum(dtype=np.int64))
    return int(pc.sum(pc.binary_length(array)).as_py() or 0) if is_text(array.type) else 0


def _values(data: Any) -> list[Any]:
    """Return Python values. Each string of a dictionary is created once, however often it is used."""
    if not pa.types.is_dictionary(data.type):
        values: list[Any] = data.to_pylist()
        return values
    values = []
    for chunk in data.chunks:
        strings = chunk.dictionary.to_pylist()
        values += [None if i is None else strings[i] for i in chunk.indices.to_pylist()]
    return values


def arrow_value(value: Any, column: Column) -> Any:
    """NaN is null; infinity is null where the column is nullable."""
    if isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and column.nullable)):
        return None
    return value
