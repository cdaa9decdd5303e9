"""Parts of Parquet files at the limits of rows and bytes, and the rows that each part reads."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from registry.errors import Invalid
from registry.media_types import PARQUET
from service.formats import parquet_reader, reading
from service.formats.dataset import Dataset, FileRange, InputFile
from tests.service.formats.read_all import N


def write(path: Path, *groups: int) -> Dataset:
    """Write a file with row groups of these sizes. Row `i` of the file has `n` = i."""
    schema = pa.schema([("n", pa.int64()), ("text", pa.string())])
    first = 0
    with pq.ParquetWriter(path / "input.parquet", schema) as writer:
        for rows in groups:
            numbers = [*range(first, first + rows)]
            table = pa.table({"n": numbers, "text": [f"text {n}" for n in numbers]}, schema=schema)
            writer.write_table(table, row_group_size=max(1, rows))
            first += rows
    return reading.open_dataset(str(path / "input.parquet"), PARQUET)


def group_bytes(dataset: Dataset) -> list[int]:
    """Return the size of each row group with all of its columns."""
    metadata = pq.read_metadata(dataset.files[0].location)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    for group in groups:
        columns = [group.column(i).total_uncompressed_size for i in range(group.num_columns)]
        assert group.total_byte_size == sum(columns) > max(columns)
    return [group.total_byte_size for group in groups]


def spans(dataset: Dataset) -> list[tuple[int, int, int | None, int]]:
    return [(p.start, p.stop, p.rows, p.skip) for p in parquet_reader.split_file(dataset, 0)]


def rows_read(dataset: Dataset, part: FileRange) -> list[int]:
    batches = reading.read_batches(dataset, part, [N], ["n"], None)
    numbers = [n for b in batches for n in b.extra.column(0).to_pylist()]
    assert len(numbers) == part.rows
    return numbers


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (14, [(0, 2, 14, 0), (2, 4, 14, 0)]),  # two groups of 7 rows reach the limit exactly
        (13, [(0, 1, 7, 0), (1, 2, 7, 0), (2, 3, 7, 0), (3, 4, 7, 0)]),
        (20, [(0, 2, 14, 0), (2, 4, 14, 0)]),
        (21, [(0, 3, 21, 0), (3, 4, 7, 0)]),
        (28, [(0, 4, 28, 0)]),
    ],
)
def test_row_groups_are_combined_up_to_the_limit_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, expected: list[tuple[int, ...]]
) -> None:
    dataset = write(tmp_path, 7, 7, 7, 7)
    monkeypatch.setattr(parquet_reader, "PART_ROWS", limit)
    assert spans(dataset) == expected


def test_row_groups_are_combined_up_to_the_bytes_of_all_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write(tmp_path, 5, 8, 3)
    first, second, third = group_bytes(dataset)
    monkeypatch.setattr(parquet_reader, "PART_BYTES", first + second)
    assert spans(dataset) == [(0, 2, 13, 0), (2, 3, 3, 0)]
    monkeypatch.setattr(parquet_reader, "PART_BYTES", first + second - 1)
    assert spans(dataset)[0] == (0, 1, 5, 0)
    monkeypatch.setattr(parquet_reader, "PART_BYTES", first + second + third)
    assert spans(dataset) == [(0, 3, 16, 0)]
    monkeypatch.setattr(parquet_reader, "PART_BYTES", 1)
    assert spans(dataset) == [(0, 1, 5, 0), (1, 2, 8, 0), (2, 3, 3, 0)]


def test_row_groups_without_rows_are_in_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write(tmp_path, 0, 4, 0, 0, 5, 0)
    assert [n for part in reading.split(dataset) for n in rows_read(dataset, part)] == [*range(9)]
    monkeypatch.setattr(parquet_reader, "PART_ROWS", 4)
    parts = reading.split(dataset)
    assert [part.rows for part in parts] == [4, 5]
    assert [n for part in parts for n in rows_read(dataset, part)] == [*range(9)]


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [
        (0, [0]), (1, [1]), (9, [9]), (10, [10]), (14, [14]), (15, [7, 8]), (16, [8, 8]), (24, [12, 12]),
        (26, [8, 9, 9]), (75, [9, 9, 10, 9, 9, 10, 9, 10]), (80, [10] * 8), (90, [11, 11, 11, 12] * 2),
        (8000, [1000] * 8),
    ],
)  # fmt: skip
def test_a_row_group_is_divided_into_equal_parts_at_most_eight(rows: int, sizes: list[int]) -> None:
    parts = parquet_reader._divide(FileRange(3, 4, 5), rows, 10)
    assert sorted(p.rows or 0 for p in parts) == sorted(sizes)
    assert all((p.file, p.start, p.stop) == (3, 4, 5) for p in parts)
    assert [p.skip for p in parts] == [sum(p.rows or 0 for p in parts[:i]) for i in range(len(parts))]


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 8])
def test_every_piece_of_a_row_group_reads_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    dataset = write(tmp_path, 3, 7, 2)
    monkeypatch.setattr(parquet_reader, "batch_rows", lambda columns: batch)
    for skip in range(7):
        for rows in range(1, 8 - skip):
            assert rows_read(dataset, FileRange(0, 1, 2, rows, skip)) == [*range(3 + skip, 3 + skip + rows)]
    assert rows_read(dataset, FileRange(0, 0, 3, 12)) == [*range(12)]
    assert rows_read(dataset, FileRange(0, 0, 2, 10)) == [*range(10)]
    assert rows_read(dataset, FileRange(0, 2, 3, 2)) == [10, 11]


def test_a_file_with_fewer_rows_than_its_plan_is_rejected(tmp_path: Path) -> None:
    dataset = write(tmp_path, 3, 7)
    with pytest.raises(Invalid, match="has 1 rows fewer than its footer declares"):
        rows_read(dataset, FileRange(0, 1, 2, 8))
    with pytest.raises(Invalid, match="has 2 rows fewer"):
        rows_read(dataset, FileRange(0, 1, 2, 5, 4))


@pytest.fixture
def balance_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, rows in (("MAX_UNDIVIDED_ROWS", 100), ("LAST_ROWS_PER_LANE", 100), ("LAST_PART_ROWS", 25)):
        monkeypatch.setattr(parquet_reader, name, rows)


def balanced(parts: list[FileRange], lanes: int) -> list[int | None]:
    """Return the rows of each part."""
    return [part.rows for part in parquet_reader.balance(parts, lanes)]


@pytest.mark.usefixtures("balance_limits")
def test_the_last_rows_of_all_lanes_are_divided_including_the_bound() -> None:
    groups = [FileRange(0, number, number + 1, 100) for number in range(3)]
    assert balanced(groups, lanes=2) == [100, *[25] * 8]
    assert balanced([*groups[:2], FileRange(0, 2, 3, 101)], lanes=2) == [100, 100, 25, 25, 25, 26]


@pytest.mark.usefixtures("balance_limits")
def test_small_last_parts_are_not_divided() -> None:
    for rows, sizes in ((25, [25]), (37, [37]), (38, [19, 19])):
        assert balanced([FileRange(0, 0, 1, rows)], lanes=1) == sizes
    combined = FileRange(0, 0, 3, 25)
    assert parquet_reader.balance([combined], 1) == [combined]


@pytest.mark.usefixtures("balance_limits")
def test_equal_numbers_of_row_groups_in_two_files_are_two_groups() -> None:
    parts = [FileRange(0, 0, 1, 20), FileRange(1, 0, 1, 20)]
    assert parquet_reader.balance(parts, 1) == parts


def int96_texts(path: Path, times: list[str | None], group_rows: int | None = None) -> list[str | None]:
    """Write the times as INT96; return what the reader returns for the passthrough column, as text."""
    unit = "us" if any(len(t or "") == 26 for t in times) else "ns"
    column = pa.array(times, pa.string()).cast(pa.timestamp(unit))
    table = pa.table({"n": pa.array(range(len(times))), "at": column, "other": column})
    file = path / "times.parquet"
    pq.write_table(table, file, use_deprecated_int96_timestamps=True, row_group_size=group_rows or len(times))
    dataset = reading.open_dataset(str(file), PARQUET)
    schema = reading.extra_schema(dataset, ["at"])
    texts: list[str | None] = []
    for part in reading.split(dataset):
        for batch in reading.read_batches(dataset, part, [N], ["at"], None):
            assert batch.extra.schema.equals(schema)
            texts += batch.extra.column("at").cast(pa.string()).to_pylist()
    return texts


@pytest.mark.parametrize("group_rows", [None, 1])
def test_int96_dates_of_every_century_keep_their_value(tmp_path: Path, group_rows: int | None) -> None:
    times = ["2026-01-01 00:00:00.123456", "1600-01-01 00:00:00.000000", None, "9999-12-31 23:59:59.999999"]
    assert int96_texts(tmp_path, times, group_rows) == times


@pytest.mark.parametrize("group_rows", [None, 1])
def test_int96_nanoseconds_keep_all_digits(tmp_path: Path, group_rows: int | None) -> None:
    times = [
        "2026-01-01 00:00:00.123456789",
        "1969-12-31 23:59:59.999999999",
        "1970-01-01 00:00:00.000000000",
    ]
    assert int96_texts(tmp_path, times, group_rows) == times


def test_int96_nanoseconds_after_the_first_rows_are_refused_not_cut(tmp_path: Path) -> None:
    times = ["2026-01-01 00:00:00.000000000", "2026-01-01 00:00:00.000000001"]
    with pytest.raises(Invalid, match=r'column "at" of .* would lose data'):
        int96_texts(tmp_path, times, group_rows=1)


def test_int96_nanoseconds_beside_far_dates_are_refused(tmp_path: Path) -> None:
    """Arrow cannot write such a file: the two columns of one that it can write are combined."""
    file = InputFile("/x", "x.parquet", 1, "")
    fine = pa.array([1, -11676096000000000 * 1000 + 2**64 + 7], pa.timestamp("ns"))
    coarse = pa.array([0, -11676096000000000], pa.timestamp("us"))
    with pytest.raises(Invalid, match="INT96 timestamps with nanoseconds and dates outside 1677-2262"):
        parquet_reader._exact_int96(fine, coarse, "at", file)
