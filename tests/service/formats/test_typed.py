"""Parquet and Arrow: the formats that know their types."""

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
from registry.signature import Input
from service.formats import arrow_reader, parquet_reader, reading
from service.formats import dataset as bounds
from service.runtime.codec.columns import Column
from tests.service.formats.inputs import ARROW, COLOUR, FLAG, PARQUET, WORD, A, B, N, everything

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


def test_numbers_become_one_matrix(form: tuple[Write, str], tmp_path: Path) -> None:
    write, media_type = form
    found = everything(write(TABLE, tmp_path), media_type, [N, A, B, FLAG], ["id", "day"], "id")
    assert found.columns[0] == [*range(50)]
    assert found.columns[1] == [i / 4 for i in range(50)]
    assert [math.isnan(v) for v in found.columns[2]] == [i % 3 != 0 or i % 2 == 1 for i in range(50)]
    assert found.columns[3] == [i % 2 == 0 for i in range(50)]
    assert found.extra == {"id": TABLE["id"].to_pylist(), "day": TABLE["day"].to_pylist()}


def test_text_dictionaries_and_null_are_read(form: tuple[Write, str], tmp_path: Path) -> None:
    write, media_type = form
    found = everything(write(TABLE, tmp_path), media_type, [WORD, COLOUR, N], ["word"])
    assert found.columns[0] == TABLE["word"].to_pylist()
    assert found.extra["word"] == TABLE["word"].to_pylist()
    assert found.columns[1] == ["red", "blue"] * 25


def test_a_bad_value_is_the_fault_of_its_row_alone(form: tuple[Write, str], tmp_path: Path) -> None:
    write, media_type = form
    broken = TABLE.set_column(
        1, "a", pa.array([None if i == 8 else math.inf if i == 9 else 1.5 for i in range(50)])
    )
    broken = broken.set_column(6, "colour", pa.array(["green" if i in (9, 20) else "red" for i in range(50)]))
    found = everything(write(broken, tmp_path), media_type, [A, COLOUR], ["id"], "id")
    assert [(f.row, f.id, f.field) for f in found.faults] == [
        (8, "008", "a"),
        (9, "009", "a"),
        (20, "020", "colour"),
    ]
    assert '"colour" is "green"' in found.faults[1].message
    assert found.extra["id"] == [f"{i:03}" for i in range(50) if i not in (8, 9, 20)]


def test_each_missing_value_is_a_fault_where_none_is_taken(form: tuple[Write, str], tmp_path: Path) -> None:
    write, media_type = form
    values = [None if i % 3 == 0 else float("nan") if i % 7 == 0 else i / 2 for i in range(500)]
    whole = [None if i % 5 else i for i in range(500)]
    table = pa.table({"a": pa.array(values, pa.float64()), "n": pa.array(whole, pa.int64())})
    found = everything(write(table, tmp_path), media_type, [A, N])
    assert found.bad == [i for i in range(500) if i % 3 == 0 or i % 7 == 0 or i % 5]
    assert found.columns[1] == [i for i in range(500) if i not in found.bad]
    assert [f.message.count("is null") for f in found.faults[:2]] == [1, 1]


def test_whole_numbers_are_checked_when_the_file_has_floats(form: tuple[Write, str], tmp_path: Path) -> None:
    write, media_type = form
    table = pa.table({"n": [1.0, 2.5, 3.0, 2.0**63], "big": pa.array([1, 2, 3, 2**64 - 1], pa.uint64())})
    path = write(table, tmp_path)
    assert everything(path, media_type, [N]).bad == [1, 3]
    assert everything(path, media_type, [Column(Input("big", "int64"))]).bad == [3]
    assert everything(path, media_type, [Column(Input("big", "float32"))]).length == 4


def test_a_type_that_cannot_be_the_features_is_refused_by_name(
    form: tuple[Write, str], tmp_path: Path
) -> None:
    write, media_type = form
    dataset = reading.open_dataset(str(write(TABLE, tmp_path)), media_type)
    for column in (Column(Input("id", "float64")), Column(Input("a", "string")), Column(Input("n", "bool"))):
        with pytest.raises(Invalid) as refused:
            reading.read_head(dataset, [column], [], None, 10)
        assert [e.field for e in refused.value.errors] == [column.name]
    with pytest.raises(Invalid, match="cannot be copied to the output"):
        reading.read_head(dataset, [A], ["list"], None, 10)


def test_no_rows_are_one_empty_part(form: tuple[Write, str], tmp_path: Path) -> None:
    write, media_type = form
    found = everything(write(TABLE.slice(0, 0), tmp_path), media_type, [A, WORD], ["id"])
    assert (found.length, found.parts) == (0, 1)


def test_half_a_file_is_refused_not_read_short(form: tuple[Write, str], tmp_path: Path) -> None:
    write, media_type = form
    path = write(TABLE, tmp_path)
    whole = path.read_bytes()
    for size in (3, 7, len(whole) // 2, len(whole) - 8, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(Invalid) as refused:
            everything(path, media_type, [A])
        assert refused.value.errors
    path.write_bytes(b"a,b\n1,2\n" * 10)
    with pytest.raises(Invalid, match=r"input\."):
        everything(path, media_type, [A])


def test_damage_in_the_middle_is_an_error_of_the_part(tmp_path: Path) -> None:
    table = pa.table({"a": np.random.default_rng(0).random(5000)})
    path = tmp_path / "input.parquet"
    pq.write_table(table, path, use_dictionary=False, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[100:140] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(Invalid, match="cannot be read"):
        everything(path, PARQUET, [A])


def test_a_changed_file_is_not_read(form: tuple[Write, str], tmp_path: Path) -> None:
    write, media_type = form
    path = write(TABLE, tmp_path)
    dataset = reading.open_dataset(str(path), media_type)
    part = reading.split(dataset)[0]
    write(TABLE.slice(1), tmp_path)
    with pytest.raises(Changed):
        list(reading.read_batches(dataset, part, [A], [], None))


def test_small_row_groups_go_together_and_large_ones_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_reader, "PART_ROWS", 20)
    path = write_parquet(TABLE, tmp_path)
    parts = reading.split(reading.open_dataset(str(path), PARQUET))
    assert [(p.start, p.stop, p.rows) for p in parts] == [(0, 2, 14), (2, 4, 14), (4, 6, 14), (6, 8, 8)]
    monkeypatch.setattr(parquet_reader, "PART_ROWS", 2)
    parts = reading.split(reading.open_dataset(str(path), PARQUET))
    assert [(p.start, p.skip, p.rows) for p in parts[:4]] == [(0, 0, 1), (0, 1, 2), (0, 3, 2), (0, 5, 2)]
    monkeypatch.setattr(bounds, "BATCH_ROWS", 3)
    assert everything(path, PARQUET, [N], ["id"]).columns == [[*range(50)]]


def test_record_batches_of_an_arrow_file_are_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_reader, "PART_BYTES", 1000)
    found = everything(write_file(TABLE, tmp_path), ARROW, [N], ["id"])
    assert found.columns == [[*range(50)]]
    assert found.parts == 8


def test_files_of_a_directory_are_brought_to_the_types_that_hold_them_all(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1.5], "id": pa.array([1], pa.int64())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": pa.array([2], pa.int8()), "a": [2]}), tmp_path / "b.parquet")
    found = everything(tmp_path, PARQUET, [A], ["id"])
    assert found.columns == [[1.5, 2.0]]
    assert found.extra["id"] == [1, 2]
    pq.write_table(pa.table({"id": ["x"], "a": [2]}), tmp_path / "c.parquet")
    found = everything(tmp_path, PARQUET, [A], ["id"])
    assert found.extra["id"] == ["1", "2", "x"]
    with pytest.raises(Invalid, match=r'column "id" is int64 in "a.parquet" and string in "c.parquet"'):
        reading.open_dataset(str(tmp_path), PARQUET, uniform=True)


def test_an_id_that_is_text_in_one_file_keeps_its_zeros(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [7, None], "a": [1.0, 2.0]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": ["007", "x"], "a": [1.0, 2.0]}), tmp_path / "b.parquet")
    assert everything(tmp_path, PARQUET, [A], ["id"]).extra["id"] == ["7", None, "007", "x"]


def test_a_file_without_values_says_nothing_of_a_columns_type(
    form: tuple[Write, str], tmp_path: Path
) -> None:
    write, media_type = form
    empty = pa.table({"id": pa.array([None], pa.null()), "a": pa.array([1.0])})
    full = pa.table({"id": pa.array(["x"]), "a": pa.array([2.0])})
    place = tmp_path / "many"
    place.mkdir()
    for name, table in (("0", empty), ("1", full)):
        (tmp_path / name).mkdir()
        made = write(table, tmp_path / name)
        made.rename(place / f"{name}{made.suffix}")
    assert everything(place, media_type, [A], ["id"]).extra["id"] == [None, "x"]


def test_bytes_of_a_fixed_size_are_not_handed_on(tmp_path: Path) -> None:
    table = pa.table({"a": [1.0], "id": pa.array([bytes(range(240, 256))], pa.binary(16))})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(Invalid, match="cannot be copied to the output"):
        everything(tmp_path / "a.parquet", PARQUET, [A], ["id"])


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
def test_a_row_group_is_never_in_memory_whole(tmp_path: Path, rows: int) -> None:
    numbers = np.random.default_rng(0).random((8, rows))
    pq.write_table(
        pa.table(dict(zip("abcdefgh", numbers, strict=True))), tmp_path / "input", row_group_size=rows
    )
    dataset = reading.open_dataset(str(tmp_path / "input"), PARQUET)
    columns = [Column(Input(name, "float64")) for name in "abcdefgh"]
    before, most = pa.total_allocated_bytes(), 0
    tracemalloc.start()  # what Python has read and pyarrow has not given back
    try:
        for part in reading.split(dataset):
            for _ in reading.read_batches(dataset, part, columns, [], None):
                most = max(most, pa.total_allocated_bytes() - before + tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert most < 40 * 2**20  # dictionaries, pages and a batch; the larger row group has 51 MB
