"""Parquet and Arrow: the formats with column types."""

from __future__ import annotations

import datetime
import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from registry.errors import Changed, Invalid
from registry.media_types import ARROW, PARQUET
from registry.signature import Input
from service.formats import arrow_reader, parquet_reader, reading
from service.formats import dataset as dataset_module
from service.runtime.codec.columns import Column
from tests.service.formats.read_all import COLOUR, FLAG, WORD_COLUMN, A, B, N, read_all

Write = Callable[[Any, Path], Path]


def write_parquet(table: Any, directory: Path) -> Path:
    pq.write_table(table, directory / "input.parquet", row_group_size=7)
    return directory / "input.parquet"


def write_file(table: Any, directory: Path) -> Path:
    with pa.ipc.new_file(directory / "input.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return directory / "input.arrow"


def write_stream(table: Any, directory: Path) -> Path:
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(directory / "input.arrows", table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=7)
    return directory / "input.arrows"


@pytest.fixture(
    params=[(write_parquet, PARQUET), (write_file, ARROW), (write_stream, ARROW)], ids=lambda p: p[0].__name__
)
def form(request: pytest.FixtureRequest) -> tuple[Write, str]:
    return request.param  # type: ignore[no-any-return]


TABLE = pa.table(
    {
        "id": pa.array([f"{i:03}" for i in range(50)]),
        "a": pa.array([i / 4 for i in range(50)]),
        "n": pa.array([*range(50)], pa.int32()),
        "b": pa.array([None if i % 3 else float("nan") if i % 2 else i for i in range(50)], pa.float64()),
        "flag": pa.array([i % 2 == 0 for i in range(50)]),
        "word": pa.array([None if i % 4 == 0 else f"w{i % 5}" for i in range(50)]).dictionary_encode(),
        "colour": pa.array(["red", "blue"] * 25, pa.large_string()),
        "day": pa.array([datetime.date(2024, 1, 1 + i % 30) for i in range(50)]),
        "list": pa.array([[i] for i in range(50)]),
    }
)


def test_numbers_are_read_as_one_matrix(form: tuple[Write, str], tmp_path: Path) -> None:
    write, media_type = form
    result = read_all(write(TABLE, tmp_path), media_type, [N, A, B, FLAG], ["id", "day"], "id")
    assert result.columns[0] == [*range(50)]
    assert result.columns[1] == [i / 4 for i in range(50)]
    assert [math.isnan(v) for v in result.columns[2]] == [i % 3 != 0 or i % 2 == 1 for i in range(50)]
    assert result.columns[3] == [i % 2 == 0 for i in range(50)]
    assert result.extra == {"id": TABLE["id"].to_pylist(), "day": TABLE["day"].to_pylist()}


def test_text_dictionaries_and_null_are_read(form: tuple[Write, str], tmp_path: Path) -> None:
    write, media_type = form
    result = read_all(write(TABLE, tmp_path), media_type, [WORD_COLUMN, COLOUR, N], ["word"])
    assert result.columns[0] == TABLE["word"].to_pylist()
    assert result.extra["word"] == TABLE["word"].to_pylist()
    assert result.columns[1] == ["red", "blue"] * 25


def test_an_invalid_value_is_a_fault_of_its_row_only(form: tuple[Write, str], tmp_path: Path) -> None:
    write, media_type = form
    broken = TABLE.set_column(
        1, "a", pa.array([None if i == 8 else math.inf if i == 9 else 1.5 for i in range(50)])
    )
    broken = broken.set_column(6, "colour", pa.array(["green" if i in (9, 20) else "red" for i in range(50)]))
    result = read_all(write(broken, tmp_path), media_type, [A, COLOUR], ["id"], "id")
    assert [(f.row, f.id, f.field) for f in result.faults] == [
        (8, "008", "a"),
        (9, "009", "a"),
        (20, "020", "colour"),
    ]
    assert '"colour" is "green"' in result.faults[1].message
    assert result.extra["id"] == [f"{i:03}" for i in range(50) if i not in (8, 9, 20)]


def test_each_missing_value_in_a_column_without_null_is_a_fault(
    form: tuple[Write, str], tmp_path: Path
) -> None:
    write, media_type = form
    values = [None if i % 3 == 0 else float("nan") if i % 7 == 0 else i / 2 for i in range(500)]
    integers = [None if i % 5 else i for i in range(500)]
    table = pa.table({"a": pa.array(values, pa.float64()), "n": pa.array(integers, pa.int64())})
    result = read_all(write(table, tmp_path), media_type, [A, N])
    assert result.fault_rows == [i for i in range(500) if i % 3 == 0 or i % 7 == 0 or i % 5]
    assert result.columns[1] == [i for i in range(500) if i not in result.fault_rows]
    assert [f.message.count("is null") for f in result.faults[:2]] == [1, 1]


def test_integers_are_checked_if_the_file_has_floats(form: tuple[Write, str], tmp_path: Path) -> None:
    write, media_type = form
    table = pa.table({"n": [1.0, 2.5, 3.0, 2.0**63], "big": pa.array([1, 2, 3, 2**64 - 1], pa.uint64())})
    path = write(table, tmp_path)
    assert read_all(path, media_type, [N]).fault_rows == [1, 3]
    assert read_all(path, media_type, [Column(Input("big", "int64"))]).fault_rows == [3]
    assert read_all(path, media_type, [Column(Input("big", "float32"))]).length == 4


def test_a_column_type_that_does_not_fit_is_rejected_by_name(form: tuple[Write, str], tmp_path: Path) -> None:
    write, media_type = form
    dataset = reading.open_dataset(str(write(TABLE, tmp_path)), media_type)
    for column in (Column(Input("id", "float64")), Column(Input("a", "string")), Column(Input("n", "bool"))):
        with pytest.raises(Invalid) as caught:
            reading.read_head(dataset, [column], [], None, 10)
        assert [e.field for e in caught.value.errors] == [column.name]
    with pytest.raises(Invalid, match="cannot be copied to the output"):
        reading.read_head(dataset, [A], ["list"], None, 10)


def test_a_file_without_rows_is_one_empty_part(form: tuple[Write, str], tmp_path: Path) -> None:
    write, media_type = form
    result = read_all(write(TABLE.slice(0, 0), tmp_path), media_type, [A, WORD_COLUMN], ["id"])
    assert (result.length, result.parts) == (0, 1)


def test_a_truncated_file_is_rejected(form: tuple[Write, str], tmp_path: Path) -> None:
    write, media_type = form
    path = write(TABLE, tmp_path)
    data = path.read_bytes()
    for size in (3, 7, len(data) // 2, len(data) - 8, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(Invalid) as caught:
            read_all(path, media_type, [A])
        assert caught.value.errors
    path.write_bytes(b"a,b\n1,2\n" * 10)
    with pytest.raises(Invalid, match=r"input\."):
        read_all(path, media_type, [A])


def test_a_damaged_page_is_an_error_of_its_part(tmp_path: Path) -> None:
    table = pa.table({"a": np.random.default_rng(0).random(5000)})
    path = tmp_path / "input.parquet"
    pq.write_table(table, path, use_dictionary=False, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[100:140] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(Invalid, match="cannot be read"):
        read_all(path, PARQUET, [A])


def test_a_changed_file_is_not_read(form: tuple[Write, str], tmp_path: Path) -> None:
    write, media_type = form
    path = write(TABLE, tmp_path)
    dataset = reading.open_dataset(str(path), media_type)
    part = reading.split(dataset)[0]
    write(TABLE.slice(1), tmp_path)
    with pytest.raises(Changed):
        list(reading.read_batches(dataset, part, [A], [], None))


def test_small_row_groups_are_combined_and_large_ones_divided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_reader, "PART_ROWS", 20)
    path = write_parquet(TABLE, tmp_path)
    parts = reading.split(reading.open_dataset(str(path), PARQUET))
    assert [(p.start, p.stop, p.rows) for p in parts] == [(0, 2, 14), (2, 4, 14), (4, 6, 14), (6, 8, 8)]
    monkeypatch.setattr(parquet_reader, "PART_ROWS", 2)
    parts = reading.split(reading.open_dataset(str(path), PARQUET))
    assert [(p.start, p.skip, p.rows) for p in parts[:4]] == [(0, 0, 1), (0, 1, 2), (0, 3, 2), (0, 5, 2)]
    monkeypatch.setattr(dataset_module, "BATCH_ROWS", 3)
    assert read_all(path, PARQUET, [N], ["id"]).columns == [[*range(50)]]


def test_record_batches_of_an_arrow_file_are_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_reader, "PART_BYTES", 1000)
    result = read_all(write_file(TABLE, tmp_path), ARROW, [N], ["id"])
    assert result.columns == [[*range(50)]]
    assert result.parts == 8


def test_files_of_a_directory_are_converted_to_common_types(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1.5], "id": pa.array([1], pa.int64())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": pa.array([2], pa.int8()), "a": [2]}), tmp_path / "b.parquet")
    result = read_all(tmp_path, PARQUET, [A], ["id"])
    assert result.columns == [[1.5, 2.0]]
    assert result.extra["id"] == [1, 2]
    pq.write_table(pa.table({"id": ["x"], "a": [2]}), tmp_path / "c.parquet")
    result = read_all(tmp_path, PARQUET, [A], ["id"])
    assert result.extra["id"] == ["1", "2", "x"]
    with pytest.raises(Invalid, match=r'column "id" is int64 in "a.parquet" and string in "c.parquet"'):
        reading.open_dataset(str(tmp_path), PARQUET, uniform=True)


def test_ids_that_are_text_in_one_file_keep_leading_zeros(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [7, None], "a": [1.0, 2.0]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": ["007", "x"], "a": [1.0, 2.0]}), tmp_path / "b.parquet")
    assert read_all(tmp_path, PARQUET, [A], ["id"]).extra["id"] == ["7", None, "007", "x"]


def test_a_column_without_values_does_not_influence_its_type(form: tuple[Write, str], tmp_path: Path) -> None:
    write, media_type = form
    empty = pa.table({"id": pa.array([None], pa.null()), "a": pa.array([1.0])})
    full = pa.table({"id": pa.array(["x"]), "a": pa.array([2.0])})
    directory = tmp_path / "many"
    directory.mkdir()
    for name, table in (("0", empty), ("1", full)):
        (tmp_path / name).mkdir()
        written = write(table, tmp_path / name)
        written.rename(directory / f"{name}{written.suffix}")
    assert read_all(directory, media_type, [A], ["id"]).extra["id"] == [None, "x"]


def test_fixed_size_binary_columns_are_not_copied_to_the_output(tmp_path: Path) -> None:
    table = pa.table({"a": [1.0], "id": pa.array([bytes(range(240, 256))], pa.binary(16))})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(Invalid, match="cannot be copied to the output"):
        read_all(tmp_path / "a.parquet", PARQUET, [A], ["id"])


def test_training_reads_the_same_types_in_every_part(form: tuple[Write, str], tmp_path: Path) -> None:
    write, media_type = form
    dataset = reading.open_dataset(str(write(TABLE, tmp_path)), media_type)
    batches = [
        b
        for part in reading.split(dataset)
        for b in reading.read_record_batches(dataset, part, ["word", "n"])
    ]
    assert pa.Table.from_batches(batches).to_pydict() == TABLE.select(["word", "n"]).to_pydict()
    assert {str(b.schema.field("word").type) for b in batches} == {"string"}


@pytest.mark.parametrize("rows", [200_000, 800_000])
def test_a_row_group_is_never_completely_in_memory(tmp_path: Path, rows: int) -> None:
    numbers = np.random.default_rng(0).random((8, rows))
    pq.write_table(
        pa.table(dict(zip("abcdefgh", numbers, strict=True))), tmp_path / "input", row_group_size=rows
    )
    dataset = reading.open_dataset(str(tmp_path / "input"), PARQUET)
    columns = [Column(Input(name, "float64")) for name in "abcdefgh"]
    before, peak = pa.total_allocated_bytes(), 0
    tracemalloc.start()  # counts bytes that Python read and pyarrow still holds
    try:
        for part in reading.split(dataset):
            for _ in reading.read_batches(dataset, part, columns, [], None):
                peak = max(peak, pa.total_allocated_bytes() - before + tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert peak < 40 * 2**20  # dictionaries, pages and a batch; the larger row group has 51 MB
