"""Parts of Arrow files at their limits, and streams that end early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from registry.errors import Invalid
from registry.media_types import ARROW
from service.formats import arrow_reader, reading
from service.formats.dataset import Dataset
from tests.service.formats.read_all import N, read_all

TABLE = pa.table({"n": [*range(10)], "text": [f"text {n}" for n in range(10)]})


def write(path: Path, table: Any = TABLE) -> Dataset:
    """Write a file with record batches of two rows."""
    with pa.ipc.new_file(path / "input.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return reading.open_dataset(str(path / "input.arrow"), ARROW)


def test_a_file_is_divided_into_as_many_batches_as_fit_into_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write(tmp_path)
    size = dataset.files[0].bytes

    def spans(part_bytes: int) -> list[tuple[int, int]]:
        monkeypatch.setattr(arrow_reader, "PART_BYTES", part_bytes)
        parts = reading.split(dataset)
        rows = [
            n
            for part in parts
            for batch in reading.read_batches(dataset, part, [N], ["n"], None)
            for n in batch.extra.column(0).to_pylist()
        ]
        assert rows == [*range(10)]
        return [(part.start, part.stop) for part in parts]

    assert spans(size) == spans(2 * size) == [(0, 5)]
    assert spans(size - 1) == [(0, 4), (4, 5)]
    assert spans(-(-2 * size // 5)) == [(0, 2), (2, 4), (4, 5)]
    assert spans(2 * size // 5 - 1) == spans(1) == [(n, n + 1) for n in range(5)]


def test_a_file_without_batches_is_one_part_without_rows(tmp_path: Path) -> None:
    with pa.ipc.new_file(tmp_path / "input.arrow", TABLE.schema):
        pass
    dataset = reading.open_dataset(str(tmp_path / "input.arrow"), ARROW)
    (part,) = reading.split(dataset)
    assert (part.start, part.stop, part.rows) == (0, 0, 0)
    assert list(reading.read_batches(dataset, part, [N], [], None)) == []


def test_a_batch_is_divided_beyond_the_rows_that_are_decoded_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = []
    with pa.ipc.new_file(tmp_path / "input.arrow", TABLE.schema) as writer:
        writer.write_table(TABLE)
    dataset = reading.open_dataset(str(tmp_path / "input.arrow"), ARROW)
    (part,) = reading.split(dataset)
    for size, lengths in ((9, [9, 1]), (10, [10]), (11, [10]), (3, [3, 3, 3, 1])):

        def batch_rows(columns: int, size: int = size) -> int:
            widths.append(columns)
            return size

        monkeypatch.setattr(arrow_reader, "batch_rows", batch_rows)
        batches = [*reading.read_batches(dataset, part, [N], ["text"], None)]
        assert [b.length for b in batches] == lengths
        assert [t for b in batches for t in b.extra.column(0).to_pylist()] == TABLE["text"].to_pylist()
    assert set(widths) == {2}, "the columns in use, the features and the copied ones"


@pytest.mark.parametrize("lost", [1, 8, 9])
def test_a_stream_without_its_end_is_incomplete(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "input.arrows"
    with pa.ipc.new_stream(path, TABLE.schema) as writer:
        writer.write_table(TABLE)
    data = path.read_bytes()
    assert reading.open_dataset(str(path), ARROW).columns == ("n", "text")
    path.write_bytes(data[:-lost])
    with pytest.raises(Invalid, match=r"'input\.arrows' is (incomplete|not a complete Arrow)"):
        reading.open_dataset(str(path), ARROW)


def test_a_file_without_record_batches_has_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "none.arrow"
    with pa.ipc.new_file(path, pa.schema([("n", pa.int64())])):
        pass
    assert read_all(path, ARROW, [N]).length == 0
    assert reading.read_head(reading.open_dataset(str(path), ARROW), [N], [], None, 10).length == 0
