"""Hive-partitioned directories: the columns in the paths of files, in every format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from registry.errors import Invalid
from registry.media_types import ARROW, CSV, NDJSON, PARQUET, SUFFIXES
from registry.signature import Input
from service.formats import key_columns, reading
from service.runtime.codec.columns import Column
from tests.service.formats.read_all import WORD_COLUMN, A, B, N, read_all

DAY = Column(Input("day", "string"))
YEAR = Column(Input("year", "int64"))
FORMATS = (CSV, NDJSON, PARQUET, ARROW)


def write(path: Path, media_type: str, columns: dict[str, Any]) -> None:
    """Write a file of a format; `path` has no suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.with_name(path.name + SUFFIXES[media_type][0])
    table = pa.table(columns)
    if media_type == PARQUET:
        pq.write_table(table, path)
    elif media_type == CSV:
        pc.write_csv(table, path)
    elif media_type == ARROW:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        rows = (", ".join(f'"{k}": {v}' for k, v in row.items()) for row in table.to_pylist())
        path.write_text("".join(f"{{{row}}}\n" for row in rows))


@pytest.mark.parametrize("media_type", FORMATS)
def test_keys_are_features_ids_and_copied_columns(tmp_path: Path, media_type: str) -> None:
    write(tmp_path / "year=2026" / "day=01" / "a", media_type, {"a": [1.5, 2.5]})
    write(tmp_path / "year=2025" / "day=31%2F12 %41" / "a", media_type, {"a": [0.5]})
    write(tmp_path / "year=2025" / f"day={key_columns.MISSING}" / "a", media_type, {"a": [0.25]})
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "year=2026" / "_temporary").mkdir()
    (tmp_path / "year=2026" / "day=01" / ".a.crc").write_text("x")
    result = read_all(tmp_path, media_type, [YEAR, A], ["day", "year"], "day")
    assert result.columns == [[2025, 2025, 2026, 2026], [0.5, 0.25, 1.5, 2.5]]
    assert result.extra == {"day": ["31/12 A", None, "01", "01"], "year": ["2025", "2025", "2026", "2026"]}


@pytest.mark.parametrize("media_type", FORMATS)
def test_text_and_numbers_beside_a_key_that_is_text(tmp_path: Path, media_type: str) -> None:
    write(tmp_path / "day=007" / "a", media_type, {"n": [7, 8], "a": [0.5, 1.5]})
    result = read_all(tmp_path, media_type, [N, DAY, A], [])
    assert result.columns == [[7, 8], ["007", "007"], [0.5, 1.5]]
    assert read_all(tmp_path, media_type, [DAY], ["day", "n"]).columns == [["007", "007"]]


@pytest.mark.parametrize("media_type", FORMATS)
def test_a_key_that_the_feature_does_not_accept_is_a_fault_of_each_row(
    tmp_path: Path, media_type: str
) -> None:
    write(tmp_path / "year=new" / "a", media_type, {"a": [1.5, 2.5], "n": [7, 8]})
    write(tmp_path / "year=2025" / "a", media_type, {"a": [0.5], "n": [6]})
    result = read_all(tmp_path, media_type, [A, YEAR], ["n"], "n")
    assert result.columns == [[0.5], [2025]]
    assert [(f.row, str(f.id), f.field) for f in result.faults] == [(1, "7", "year"), (2, "8", "year")]
    assert '"year" is' in result.faults[0].message
    assert "year=new/a" in result.faults[0].message


def test_a_missing_key_is_null_where_the_feature_takes_it_and_a_fault_elsewhere(tmp_path: Path) -> None:
    for name in ("b", "a"):
        directory = tmp_path / name / f"{name}={key_columns.MISSING}"
        write(directory / "x", CSV, {"n": [1]})
    assert read_all(tmp_path / "b", CSV, [B, N]).columns[1] == [1]
    assert "is null" in read_all(tmp_path / "a", CSV, [A, N]).faults[0].message


@pytest.mark.parametrize("media_type", FORMATS)
def test_a_column_in_the_files_and_in_the_path_must_be_equal(tmp_path: Path, media_type: str) -> None:
    write(tmp_path / "year=2025" / "a", media_type, {"a": [0.5, 1.5], "year": [2025, 2025]})
    result = read_all(tmp_path, media_type, [YEAR, A], ["year"])
    assert (result.columns, result.extra) == ([[2025, 2025], [0.5, 1.5]], {"year": ["2025", "2025"]})
    write(tmp_path / "year=2025" / "a", media_type, {"a": [0.5, 1.5], "year": [2025, 2024]})
    for columns, extra in (([YEAR, A], []), ([A], ["year"])):
        with pytest.raises(Invalid, match=r'"year" of .* differs from its value in the path, "2025"'):
            read_all(tmp_path, media_type, columns, extra)
    assert read_all(tmp_path, media_type, [A]).columns == [[0.5, 1.5]]  # not read


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["day=1/a", "b"], "are in directories with different columns"),
        (["day=1/a", "year=1/b"], "are in directories with different columns"),
        (["x=1/y=1/a", "y=1/x=1/b"], "are in directories with different columns"),
        (["day=1/new/a"], 'contains a directory, "new"; .* as in day=2026-01-01'),
        (["=1/a"], 'contains a directory, "=1"'),
        (["day=1/day=2/a"], 'has "day" twice'),
        (["day=%FF/a"], "is not valid UTF-8"),
        (["/".join(f"k{i}=1" for i in range(33)) + "/a"], "more than 32 levels"),
        (["_delta_log/0", "a"], "is a Delta Lake table"),
    ],
)
def test_directories_that_are_no_keys_are_rejected(tmp_path: Path, paths: list[str], message: str) -> None:
    for path in paths:
        write(tmp_path / path, CSV, {"a": [1]})
    with pytest.raises(Invalid, match=message):
        reading.open_dataset(str(tmp_path), CSV)


def test_a_link_to_a_directory_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "in" / "day=1" / "a", CSV, {"a": [1]})
    (tmp_path / "in" / "day=1" / "hour=1").symlink_to(tmp_path / "in")
    with pytest.raises(Invalid, match="a link to a directory"):
        reading.open_dataset(str(tmp_path / "in"), CSV)


def test_a_hidden_name_with_a_value_is_a_key(tmp_path: Path) -> None:
    write(tmp_path / "_part=5" / "a", CSV, {"a": [1]})
    assert read_all(tmp_path, CSV, [A], ["_part"]).extra == {"_part": ["5"]}


@pytest.mark.parametrize(
    ("values", "arrow_type"),
    [
        (["1", "2"], pa.int64()), (["1", "2.5", key_columns.MISSING], pa.float64()), (["true"], pa.bool_()),
        (["007"], pa.string()), (["2026-01-01"], pa.string()), (["1", "x"], pa.string()),
        (["nan"], pa.string()), (["99999999999999999999"], pa.string()),
        ([key_columns.MISSING], pa.float64()),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("media_type", [CSV, PARQUET])
def test_the_type_of_a_key_is_inferred_for_training(
    tmp_path: Path, media_type: str, values: list[str], arrow_type: pa.DataType
) -> None:
    for value in values:
        write(tmp_path / f"k={value}" / "a", media_type, {"a": [1.0]})
    dataset = reading.open_dataset(str(tmp_path), media_type, uniform=True)
    batches = [
        batch
        for part in reading.split(dataset)
        for batch in reading.read_record_batches(dataset, part, ["k", "a"])
    ]
    assert {batch.schema.field("k").type for batch in batches} == {arrow_type}
    read = [value for batch in batches for value in batch.column("k").to_pylist()]
    expected = [None if value == key_columns.MISSING else value for value in sorted(values)]
    assert [None if value is None else str(value).lower().removesuffix(".0") for value in read] == expected


def test_the_user_sets_the_type_of_a_key_for_training(tmp_path: Path) -> None:
    write(tmp_path / "k=1" / "a", CSV, {"a": [1.0]})
    dataset = reading.open_dataset(str(tmp_path), CSV, uniform=True, dtypes={"k": "string"})
    (batch,) = reading.read_record_batches(dataset, reading.split(dataset)[0], ["k"])
    assert batch.column("k").to_pylist() == ["1"]


@pytest.mark.parametrize("media_type", FORMATS)
def test_keys_alone_may_be_the_features(tmp_path: Path, media_type: str) -> None:
    write(tmp_path / "year=2025" / "a", media_type, {"a": [0.5, 1.5]})
    assert read_all(tmp_path, media_type, [YEAR]).columns == [[2025, 2025]]
    word = tmp_path / "word=x" / "a"
    write(word, media_type, {"a": [0.5, 1.5]})
    assert read_all(word.parent.parent / "word=x", media_type, [A]).columns == [[0.5, 1.5]]
    with pytest.raises(Invalid):
        read_all(tmp_path, media_type, [WORD_COLUMN])
