"""Balanced Parquet parts: large ones first, small ones at the end, with the same rows in the same order."""

from __future__ import annotations

import pytest

from service.formats import parquet_reader
from service.formats.dataset import FileRange
from service.formats.parquet_reader import balance


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_reader, "MAX_UNDIVIDED_ROWS", 100)
    monkeypatch.setattr(parquet_reader, "LAST_ROWS_PER_LANE", 100)
    monkeypatch.setattr(parquet_reader, "LAST_PART_ROWS", 25)


def group(number: int, *pieces: int, file: int = 0) -> list[FileRange]:
    return [FileRange(file, number, number + 1, n, sum(pieces[:i])) for i, n in enumerate(pieces)]


def row_ranges(parts: list[FileRange]) -> list[tuple[int, int, int, int]]:
    """Return file, row group, first row and end row of each part."""
    return [(p.file, p.start, p.skip, p.skip + (p.rows or 0)) for p in parts]


def test_only_the_last_row_groups_are_divided_into_small_parts() -> None:
    parts = [p for number in range(5) for p in group(number, 50, 50)]
    quarters = [(0, 25), (25, 50), (50, 75), (75, 100)]
    undivided = [(0, number, 0, 100) for number in range(3)]
    last = [(0, number, *quarter) for number in (3, 4) for quarter in quarters]
    assert row_ranges(balance(parts, 2)) == undivided + last


def test_more_lanes_have_more_small_parts_at_the_end() -> None:
    parts = [p for number in range(8) for p in group(number, 50, 50)]
    assert [[p.rows for p in balance(parts, lanes)].count(25) for lanes in (1, 2, 6)] == [4, 8, 24]


def test_a_row_group_larger_than_a_part_remains_divided() -> None:
    parts = [*group(0, 100, 100, 100), *group(0, 100, 90, file=1)]
    assert row_ranges(balance(parts, 2))[:3] == [(0, 0, 0, 100), (0, 0, 100, 200), (0, 0, 200, 300)]
    assert [p.rows for p in balance(group(0, *[1000] * 8), 2)] == [1000] * 8  # at most MAX_PIECES


def test_combined_small_row_groups_remain_combined() -> None:
    parts = [FileRange(0, 3 * i, 3 * i + 3, 24) for i in range(20)]
    assert balance(parts, 2) == parts


def test_parts_without_row_counts_are_unchanged() -> None:
    parts = [FileRange(0, 0, 1000), FileRange(0, 1000, 2000), FileRange(1, 0, 10)]
    assert balance(parts, 2) == parts
    empty = [FileRange(0, 0, 0, 0)]
    assert balance(empty, 2) == empty
