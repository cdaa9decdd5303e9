"""Blocks and batches at their limits of rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from registry.errors import FieldError, Invalid
from registry.rows import Rows
from service.formats import dataset
from service.formats.dataset import BATCH_ROWS, Block, batch_rows, check_suffix


def block(length: int, malformed: dict[int, str] | None = None, invalid: tuple[int, ...] = ()) -> Block:
    """Return a block whose row `i` has the value and the id `i`."""
    numbers = np.array([i for i in range(length) if i not in (malformed or {})], dtype=np.int64)
    return Block(
        length=length,
        rows=Rows(matrix=numbers.astype(np.float64)[:, None]),
        extra=pa.record_batch({"id": numbers}),
        row_numbers=numbers if malformed else None,
        cell_faults={int(np.flatnonzero(numbers == row)[0]): [FieldError(f"{row}")] for row in invalid},
        malformed=malformed or {},
    )


def test_a_block_is_divided_only_beyond_the_rows_of_a_batch() -> None:
    assert BATCH_ROWS == 65_536
    whole = block(BATCH_ROWS)
    assert whole.split() == [whole]
    assert [b.length for b in block(BATCH_ROWS + 1).split()] == [BATCH_ROWS, 1]
    assert [b.length for b in block(0).split()] == [0]


@pytest.mark.parametrize("length", [1, 6, 7, 8, 13, 14, 15, 28])
@pytest.mark.parametrize("malformed", [{}, {0: "m0"}, {6: "m6"}, {7: "m7"}, {6: "m6", 7: "m7", 13: "m13"}])
def test_the_pieces_of_a_block_have_all_rows_and_faults_once(
    length: int, malformed: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "BATCH_ROWS", 7)
    malformed = {row: text for row, text in malformed.items() if row < length}
    invalid = tuple(row for row in (0, 5, 6, 7, 8, 14, 27) if row < length and row not in malformed)
    start = 0
    pieces = block(length, malformed, invalid).split()
    assert [p.length for p in pieces] == [7] * (length // 7) + ([length % 7] if length % 7 else [])
    for piece in pieces:
        rows = [row for row in range(start, start + piece.length) if row not in malformed]
        assert piece.rows.matrix is not None
        assert piece.rows.matrix[:, 0].tolist() == piece.extra.column(0).to_pylist() == rows
        numbers = range(piece.length) if piece.row_numbers is None else piece.row_numbers.tolist()
        assert [start + number for number in numbers] == rows
        faults = {rows[index]: errors[0].message for index, errors in piece.cell_faults.items()}
        assert faults == {row: str(row) for row in invalid if row in rows}
        assert {start + row: text for row, text in piece.malformed.items()} == {
            row: text for row, text in malformed.items() if start <= row < start + piece.length
        }
        start += piece.length
    assert start == length


@pytest.mark.parametrize(
    ("columns", "rows"),
    [
        (0, 65_536),
        (1, 65_536),
        (16, 65_536),
        (17, 61_680),
        (32, 32_768),
        (256, 4096),
        (257, 4096),
        (5000, 4096),
    ],
)
def test_wide_batches_have_fewer_rows_but_at_least_4096(columns: int, rows: int) -> None:
    assert batch_rows(columns) == rows


def test_the_suffix_of_a_file_in_a_directory_is_checked_without_case() -> None:
    check_suffix("A.CSV", "d", [".csv", ".csv.gz"])
    check_suffix("a.csv.gz", "d", [".csv", ".csv.gz"])
    for name in ("a.csvx", "csv", "a.gz"):
        with pytest.raises(Invalid, match=r"does not end with \.csv, \.csv\.gz"):
            check_suffix(name, "d", [".csv", ".csv.gz"])


def test_a_part_of_a_text_file_has_the_size_that_the_documentation_states() -> None:
    assert dataset.PART_BYTES == 64 * 2**20
