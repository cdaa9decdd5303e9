"""Parts that are large while there are many to do, and small at the end; the same rows in the same order."""

from __future__ import annotations

import pytest

from service.formats import parquet_reader
from service.formats.dataset import FileRange
from service.formats.parquet_reader import balance


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_reader, "MAX_UNDIVIDED_ROWS", 100)
    monkeypatch.setattr(parquet_reader, "LAST_ROWS_PER_LANE", 100)
    monkeypatch.setattr(parquet_reader, "LAST_PART_ROWS", 25)


def group(number: int, *pieces: int, file: int = 0) -> list[FileRange]:
    return [FileRange(file, number, number + 1, n, sum(pieces[:i])) for i, n in enumerate(pieces)]


def places(parts: list[FileRange]) -> list[tuple[int, int, int, int]]:
    """File, row group, first row and the row after the last of each part."""
    return [(p.file, p.start, p.skip, p.skip + (p.rows or 0)) for p in parts]


def test_row_groups_are_whole_but_the_last_rows_in_small_pieces() -> None:
    parts = [p for number in range(5) for p in group(number, 50, 50)]
    quarters = [(0, 25), (25, 50), (50, 75), (75, 100)]
    whole = [(0, number, 0, 100) for number in range(3)]
    end = [(0, number, *quarter) for number in (3, 4) for quarter in quarters]
    assert places(balance(parts, 2)) == whole + end


def test_the_more_lanes_the_more_rows_at_the_end_are_in_small_pieces() -> None:
    parts = [p for number in range(8) for p in group(number, 50, 50)]
    assert [[p.rows for p in balance(parts, lanes)].count(25) for lanes in (1, 2, 6)] == [4, 8, 24]


def test_a_row_group_larger_than_a_part_stays_in_pieces() -> None:
    parts = [*group(0, 100, 100, 100), *group(0, 100, 90, file=1)]
    assert places(balance(parts, 2))[:3] == [(0, 0, 0, 100), (0, 0, 100, 200), (0, 0, 200, 300)]
    assert [p.rows for p in balance(group(0, *[1000] * 8), 2)] == [1000] * 8  # not into eighty


def test_small_row_groups_that_go_together_stay_together() -> None:
    parts = [FileRange(0, 3 * i, 3 * i + 3, 24) for i in range(20)]
    assert balance(parts, 2) == parts


def test_parts_of_formats_that_do_not_count_rows_stay_as_they_are() -> None:
    parts = [FileRange(0, 0, 1000), FileRange(0, 1000, 2000), FileRange(1, 0, 10)]
    assert balance(parts, 2) == parts
    empty = [FileRange(0, 0, 0, 0)]
    assert balance(empty, 2) == empty
