"""Joining of Parquet files without decoding them: row groups are copied, and one footer is written for all.

With `pyarrow.parquet.ParquetWriter`, one core would decode and encode everything again at the end of a job,
while the other lanes are idle. A job on two lanes that copies 30 columns to its output would take 60
percent longer (docs/adr/0022 has the measurements and the alternatives).

A footer is a `FileMetaData` struct in Thrift's compact protocol. This module parses it to dictionaries,
shifts the file offsets, appends the lists of row groups, and writes the result. A struct is `{field id:
(type, value)}`, a list `(element type, [values])`. Unknown fields are preserved, so footers of newer Arrow
versions remain valid.

Only for files that `writing.PartWriter` wrote: they have the same schema and no page indexes.

Sources: parquet.thrift of Apache Parquet; thrift-compact-protocol.md of Apache Thrift.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from registry.artifacts import CHUNK_BYTES
from service.formats.dataset import invalid_input

MAGIC = b"PAR1"

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, _MAP, STRUCT = range(1, 13)

ThriftStruct = dict[int, tuple[int, Any]]

# field ids of parquet.thrift
_FILE_NUM_ROWS, _FILE_ROW_GROUPS = 3, 4
_GROUP_COLUMNS, _GROUP_FILE_OFFSET, _GROUP_ORDINAL = 1, 5, 7
_CHUNK_FILE_OFFSET, _CHUNK_META_DATA = 2, 3
_CHUNK_INDEXES = (4, 5, 6, 7)  # offsets and lengths of page indexes
_COLUMN_OFFSETS = (9, 10, 11, 14)  # data page, index page, dictionary page, bloom filter


class FooterJoiner:
    """Collects the footers of files whose row groups are copied to one output."""

    def __init__(self) -> None:
        self._footer: ThriftStruct = {}
        self._position = len(MAGIC)  # where the next row group is in the output

    def add(self, file: Any, name: str) -> Iterator[bytes]:
        """Yield the bytes of the file's row groups. Raises `Invalid` if the file is incomplete."""
        footer, end = _read_footer(file, name)
        _shift_offsets(footer, self._position - len(MAGIC))
        if self._footer:
            rows = self._footer[_FILE_NUM_ROWS][1] + footer[_FILE_NUM_ROWS][1]
            self._footer[_FILE_NUM_ROWS] = (I64, rows)
            self._footer[_FILE_ROW_GROUPS][1][1].extend(footer[_FILE_ROW_GROUPS][1][1])
        else:
            self._footer = footer
        file.seek(len(MAGIC))
        remaining = end - len(MAGIC)
        while remaining and (chunk := file.read(min(CHUNK_BYTES, remaining))):
            yield chunk
            remaining -= len(chunk)
        self._position += end - len(MAGIC) - remaining

    def ending(self) -> bytes:
        """Return the bytes after the last row group."""
        footer = bytearray()
        write_struct(self._footer, footer)
        return bytes(footer) + struct.pack("<I", len(footer)) + MAGIC


def _read_footer(file: Any, name: str) -> tuple[ThriftStruct, int]:
    """Return the footer, and the position where the row groups end."""
    size = file.seek(-8, os.SEEK_END) + 8
    (length,) = struct.unpack("<I", file.read(4))
    if file.read(4) != MAGIC:
        raise invalid_input(f"the output {name!r} is incomplete")
    end = size - 8 - length
    file.seek(end)
    return ThriftReader(file.read(length)).read_struct(), end


def _shift_offsets(footer: ThriftStruct, distance: int) -> None:
    """Add `distance` to every file offset.

    Optional fields that number row groups or locate page indexes are removed.
    """
    for group in footer[_FILE_ROW_GROUPS][1][1]:
        group.pop(_GROUP_ORDINAL, None)
        _shift(group, (_GROUP_FILE_OFFSET,), distance)
        for chunk in group[_GROUP_COLUMNS][1][1]:
            for field in _CHUNK_INDEXES:
                chunk.pop(field, None)
            _shift(chunk, (_CHUNK_FILE_OFFSET,), distance)
            _shift(chunk[_CHUNK_META_DATA][1], _COLUMN_OFFSETS, distance)


def _shift(values: ThriftStruct, fields: Sequence[int], distance: int) -> None:
    for field in fields:
        kind, offset = values.get(field, (0, 0))
        if offset:
            values[field] = (kind, offset + distance)


class ThriftReader:
    """Parses a struct at the start of `data`. Raises `ValueError` or `IndexError` if it is not one."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def read_struct(self) -> ThriftStruct:
        fields: ThriftStruct = {}
        number = 0
        while head := self._byte():
            kind, step = head & 0x0F, head >> 4
            number = number + step if step else self._zigzag()
            fields[number] = (kind, self._value(kind))
        return fields

    def _value(self, kind: int) -> Any:
        if kind in (TRUE, FALSE):
            return None
        if kind == BYTE:
            return self._byte()
        if kind in (I16, I32, I64):
            return self._zigzag()
        if kind in (DOUBLE, BINARY):
            return self._bytes(8 if kind == DOUBLE else self._varint())
        if kind in (LIST, SET):
            return self._list()
        if kind == STRUCT:
            return self.read_struct()
        raise ValueError(f"the Thrift type {kind} is not supported")

    def _list(self) -> tuple[int, list[Any]]:
        head = self._byte()
        kind, size = head & 0x0F, head >> 4
        if size == 15:
            size = self._varint()
        if kind in (TRUE, FALSE):  # one byte per element; a field has its value in the type instead
            return kind, [self._byte() for _ in range(size)]
        return kind, [self._value(kind) for _ in range(size)]

    def _byte(self) -> int:
        self._position += 1
        return self._data[self._position - 1]

    def _bytes(self, size: int) -> bytes:
        self._position += size
        return self._data[self._position - size : self._position]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
        return value | byte << shift

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)


def write_struct(fields: ThriftStruct, output: bytearray) -> None:
    """Append the struct to `output`."""
    previous = 0
    for number, (kind, value) in sorted(fields.items()):
        if 0 < number - previous < 16:
            output.append((number - previous) << 4 | kind)
        else:
            output.append(kind)
            _write_zigzag(number, output)
        previous = number
        _write_value(kind, value, output)
    output.append(0)


def _write_value(kind: int, value: Any, output: bytearray) -> None:
    if kind == BYTE:
        output.append(value)
    elif kind in (I16, I32, I64):
        _write_zigzag(value, output)
    elif kind in (DOUBLE, BINARY):
        if kind == BINARY:
            _write_varint(len(value), output)
        output += value
    elif kind in (LIST, SET):
        element, values = value
        output.append(min(len(values), 15) << 4 | element)
        if len(values) >= 15:
            _write_varint(len(values), output)
        for item in values:
            _write_value(BYTE if element in (TRUE, FALSE) else element, item, output)
    elif kind == STRUCT:
        write_struct(value, output)


def _write_varint(value: int, output: bytearray) -> None:
    while value > 0x7F:
        output.append(value & 0x7F | 0x80)
        value >>= 7
    output.append(value)


def _write_zigzag(value: int, output: bytearray) -> None:
    _write_varint(value << 1 if value >= 0 else (-value << 1) - 1, output)
