"""Joined Parquet files: every offset, size and count of the footer, and the Thrift encoding at its bounds."""

from __future__ import annotations

import io
import struct
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from registry.errors import Invalid
from registry.media_types import PARQUET
from service.formats import assembly, parquet_joining, writing
from service.formats.parquet_joining import (
    BINARY,
    BYTE,
    DOUBLE,
    FALSE,
    I16,
    I32,
    I64,
    LIST,
    SET,
    STRUCT,
    TRUE,
    FooterJoiner,
    ThriftReader,
    ThriftStruct,
    write_struct,
)
from service.formats.writing import PartWriter

SCHEMA = pa.schema([("id", pa.string()), ("value", pa.float64()), ("n", pa.int64()), ("flag", pa.bool_())])
PART_ROWS = (0, 5, 1, 0, 4, 2)
"""Rows of each part; the row groups have two rows."""


def rows_of_part(part: int) -> list[dict[str, Any]]:
    return [
        {"id": f"{part}-{'x' * (i % 3)}", "value": part + i / 8, "n": 1000 * part + i, "flag": i % 2 == 0}
        for i in range(PART_ROWS[part])
    ]


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(writing, "GROUP_ROWS", 2)
    paths = [tmp_path / f"part-{number}" for number in range(len(PART_ROWS))]
    for number, path in enumerate(paths):
        with PartWriter(path, PARQUET, SCHEMA) as writer:
            for row in rows_of_part(number):
                writer.write(pa.RecordBatch.from_pylist([row], schema=SCHEMA))
            writer.close()
    return paths


def join(parts: list[Path]) -> bytes:
    out = io.BytesIO()
    assembly.assemble(parts, PARQUET, out)
    return out.getvalue()


def footer_start(data: bytes) -> int:
    (length,) = struct.unpack("<I", data[-8:-4])
    assert data[-4:] == data[:4] == b"PAR1"
    return len(data) - 8 - int(length)


def row_groups(data: bytes) -> list[Any]:
    metadata = pq.read_metadata(io.BytesIO(data))
    return [metadata.row_group(number) for number in range(metadata.num_row_groups)]


def footer(data: bytes) -> ThriftStruct:
    return ThriftReader(data[footer_start(data) : -8]).read_struct()


def test_every_offset_of_a_joined_file_points_to_the_bytes_of_its_part(parts: list[Path]) -> None:
    data, contents = join(parts), [path.read_bytes() for path in parts]
    shifts = list(accumulate((footer_start(c) - 4 for c in contents), initial=0))
    expected = [(n, g) for n, content in enumerate(contents) for g in row_groups(content)]
    groups = row_groups(data)
    assert len(groups) == len(expected) == 3 + 1 + 2 + 1
    for group, (number, original) in zip(groups, expected, strict=True):
        assert (group.num_rows, group.total_byte_size) == (original.num_rows, original.total_byte_size)
        for index in range(len(SCHEMA)):
            column, before = group.column(index), original.column(index)
            shift = shifts[number]
            assert column.data_page_offset == before.data_page_offset + shift
            assert column.has_dictionary_page == before.has_dictionary_page == (index in (0, 2))
            if column.has_dictionary_page:
                assert column.dictionary_page_offset == before.dictionary_page_offset + shift
                assert column.dictionary_page_offset < column.data_page_offset
            assert column.file_offset in (0, before.file_offset + shift)
            assert column.total_compressed_size == before.total_compressed_size
            assert column.total_uncompressed_size == before.total_uncompressed_size
            assert column.num_values == before.num_values
            assert column.statistics == before.statistics
            first = before.dictionary_page_offset or before.data_page_offset
            size = before.total_compressed_size
            assert data[first + shift : first + shift + size] == contents[number][first : first + size]


def test_the_footer_of_a_joined_file_counts_all_rows_and_row_groups(parts: list[Path]) -> None:
    data, contents = join(parts), [path.read_bytes() for path in parts]
    shifts = list(accumulate((footer_start(c) - 4 for c in contents), initial=0))
    assert footer_start(data) == 4 + shifts[-1], "the footer follows the last row group"
    joined, before = footer(data), [footer(content) for content in contents]
    assert joined[3] == (I64, sum(PART_ROWS))
    kind, (element, groups) = joined[4]
    assert (kind, element, len(groups)) == (LIST, STRUCT, 7)
    position = 0
    for number, original in enumerate(before):
        for group in original[4][1][1]:
            merged = groups[position]
            assert 7 not in merged, "the number of a row group in its file"
            assert merged[5] == (I64, group[5][1] + shifts[number])
            assert {k: merged[k] for k in (2, 3, 6)} == {k: group[k] for k in (2, 3, 6)}
            for chunk in merged[1][1][1]:
                assert not {4, 5, 6, 7} & set(chunk)
            first_column = merged[1][1][1][0][3][1]
            assert merged[5][1] == first_column[11][1], "the group starts with the dictionary of its column"
            position += 1
    rest = {k: v for k, v in joined.items() if k not in (3, 4)}
    assert rest == {k: v for k, v in before[0].items() if k not in (3, 4)}


@pytest.mark.parametrize("selected", [[0], [1], [0, 3], [1, 2], [0, 1], [1, 0], [5, 4, 2, 1]])
def test_any_parts_are_joined_in_their_order(parts: list[Path], selected: list[int]) -> None:
    data = join([parts[number] for number in selected])
    file = pq.ParquetFile(io.BytesIO(data))
    expected = [row for number in selected for row in rows_of_part(number)]
    assert file.metadata.num_rows == len(expected)
    assert file.read().to_pylist() == expected
    by_group = [row for g in range(file.num_row_groups) for row in file.read_row_group(g).to_pylist()]
    assert by_group == expected


def test_a_part_is_copied_in_chunks_of_any_size(parts: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    content, expected = parts[1].read_bytes(), join(parts[:3])
    size = footer_start(content) - 4
    for chunk_bytes in (1, 7, size - 1, size, size + 1):
        monkeypatch.setattr(parquet_joining, "CHUNK_BYTES", chunk_bytes)
        chunks = list(FooterJoiner().add(io.BytesIO(content), "part"))
        assert {len(c) for c in chunks[:-1]} <= {chunk_bytes}
        assert b"".join(chunks) == content[4 : 4 + size]
        assert join(parts[:3]) == expected


@pytest.mark.parametrize("lost", [1, 3, 4])
def test_a_part_without_its_last_bytes_is_incomplete(parts: list[Path], lost: int) -> None:
    with pytest.raises(Invalid, match="the output 'part' is incomplete"):
        list(FooterJoiner().add(io.BytesIO(parts[1].read_bytes()[:-lost]), "part"))


def test_optional_fields_of_other_writers_are_shifted_or_removed(tmp_path: Path) -> None:
    """Of files with page indexes, bloom filters and an offset of each column chunk."""
    meta: ThriftStruct = {5: (I64, 3), 9: (I64, 40), 10: (I64, 50), 11: (I64, 4), 14: (I64, 60)}
    indexes: ThriftStruct = {4: (I64, 70), 5: (I32, 8), 6: (I64, 80), 7: (I32, 9)}
    chunk: ThriftStruct = {2: (I64, 30), 3: (STRUCT, meta)} | indexes
    without: ThriftStruct = {2: (I64, 0), 3: (STRUCT, {9: (I64, 90)})}
    group: ThriftStruct = {1: (LIST, (STRUCT, [chunk, without])), 5: (I64, 4), 7: (I16, 0)}
    whole: ThriftStruct = {3: (I64, 1), 4: (LIST, (STRUCT, [group]))}
    parquet_joining._shift_offsets(whole, 1000)
    assert group == {1: (LIST, (STRUCT, [chunk, without])), 5: (I64, 1004)}
    assert chunk == {2: (I64, 1030), 3: (STRUCT, meta)}
    assert meta == {5: (I64, 3), 9: (I64, 1040), 10: (I64, 1050), 11: (I64, 1004), 14: (I64, 1060)}
    assert without == {2: (I64, 0), 3: (STRUCT, {9: (I64, 1090)})}


def encoded(fields: ThriftStruct) -> bytes:
    output = bytearray()
    write_struct(fields, output)
    return bytes(output)


@pytest.mark.parametrize(
    ("fields", "data"),
    [
        ({}, "00"),
        ({1: (I32, 0)}, "15 00 00"),
        ({15: (I32, 1)}, "f5 02 00"),  # a step of 15 is in the head
        ({16: (I32, 1)}, "05 20 02 00"),  # 16 is not
        ({1: (I32, 1), 16: (I32, 1)}, "15 02 f5 02 00"),
        ({1: (I32, 1), 17: (I32, 1)}, "15 02 05 22 02 00"),
        ({1: (I64, 63)}, "16 7e 00"),
        ({1: (I64, 64)}, "16 80 01 00"),
        ({1: (I64, -1)}, "16 01 00"),
        ({1: (I64, -64)}, "16 7f 00"),
        ({1: (I64, -65)}, "16 81 01 00"),
        ({1: (I64, 8192)}, "16 80 80 01 00"),
        ({1: (I64, 2**63 - 1)}, "16 fe ff ff ff ff ff ff ff ff 01 00"),
        ({1: (I64, -(2**63))}, "16 ff ff ff ff ff ff ff ff ff 01 00"),
        ({1: (TRUE, None), 2: (FALSE, None)}, "11 12 00"),
        ({1: (BYTE, 255)}, "13 ff 00"),
        ({1: (I16, 1)}, "14 02 00"),
        ({1: (DOUBLE, bytes(8))}, "17 00 00 00 00 00 00 00 00 00"),
        ({1: (BINARY, b"")}, "18 00 00"),
        ({1: (BINARY, b"ab")}, "18 02 61 62 00"),
        ({1: (LIST, (I32, []))}, "19 05 00"),
        ({1: (LIST, (I32, [1] * 14))}, "19 e5" + " 02" * 14 + " 00"),
        ({1: (LIST, (I32, [1] * 15))}, "19 f5 0f" + " 02" * 15 + " 00"),
        ({1: (LIST, (I32, [1] * 16))}, "19 f5 10" + " 02" * 16 + " 00"),
        ({1: (SET, (TRUE, [1, 2]))}, "1a 21 01 02 00"),
        ({1: (LIST, (FALSE, [2]))}, "19 12 02 00"),
        ({1: (STRUCT, {2: (I32, 1)}), 3: (I32, 1)}, "1c 25 02 00 25 02 00"),
        ({1: (LIST, (STRUCT, [{1: (I32, 1)}, {}]))}, "19 2c 15 02 00 00 00"),
        ({1: (LIST, (BINARY, [b"a", b""]))}, "19 28 01 61 00 00"),
    ],
)
def test_thrift_structs_are_encoded_as_in_the_specification(fields: ThriftStruct, data: str) -> None:
    assert encoded(fields).hex(" ") == data
    reader = ThriftReader(bytes.fromhex(data) + b"\xff")
    assert reader.read_struct() == fields
    assert reader._byte() == 0xFF, "the reader stops at the end of the struct"


@pytest.mark.parametrize("size", [127, 128, 16_383, 16_384])
def test_long_text_is_encoded_with_its_length(size: int) -> None:
    data = encoded({1: (BINARY, b"x" * size)})
    assert len(data) == 2 + size + (1 if size < 128 else 2 if size < 16_384 else 3)
    assert ThriftReader(data).read_struct() == {1: (BINARY, b"x" * size)}


def test_maps_and_incomplete_structs_are_errors() -> None:
    with pytest.raises(ValueError, match="type 11 is not supported"):
        ThriftReader(bytes.fromhex("1b 00")).read_struct()
    with pytest.raises(IndexError):
        ThriftReader(bytes.fromhex("15 02")).read_struct()
