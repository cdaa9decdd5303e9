"""Example columns, and `read_all`, which reads all parts of an input as workers do."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from registry.signature import Input
from service.formats import reading
from service.formats.dataset import BATCH_ROWS, Batch, RowFault
from service.runtime.codec.columns import Column

A, B = Column(Input("a", "float64")), Column(Input("b", "float64", nullable=True))
N, FLAG = Column(Input("n", "int64")), Column(Input("flag", "bool"))
WORD_COLUMN = Column(Input("word", "string", nullable=True))
COLOUR = Column(Input("colour", "string", categories=("red", "blue"), closed=True))


class ReadResult(NamedTuple):
    columns: list[list[Any]]  # values of the valid rows, in the order of the features
    extra: dict[str, list[Any]]
    faults: list[RowFault]  # rows are numbered in the complete input
    length: int
    parts: int

    @property
    def fault_rows(self) -> list[int]:
        return [f.row for f in self.faults]


def read_all(
    location: Path | str,
    media_type: str,
    columns: list[Column],
    extra: list[str] | None = None,
    id_column: str | None = None,
) -> ReadResult:
    """Read all parts one after another, and check what must be true for every input."""
    dataset = reading.open_dataset(str(location), media_type)
    extra = extra or []
    result = ReadResult([[] for _ in columns], {name: [] for name in extra}, [], 0, 0)
    length = 0
    parts = reading.split(dataset)
    schema = reading.extra_schema(dataset, extra)
    for part in parts:
        first_row = length
        for batch in reading.read_batches(dataset, part, columns, extra, id_column):
            assert batch.length == len(batch.rows) + len(batch.faults) <= BATCH_ROWS
            assert batch.extra.schema.equals(schema)
            fault_rows = [f.row + first_row for f in batch.faults]
            assert fault_rows == sorted(set(fault_rows))
            assert all(length <= row < length + batch.length for row in fault_rows)
            result.faults.extend(RowFault(f.row + first_row, f.id, f.field, f.message) for f in batch.faults)
            for values, batch_values in zip(result.columns, column_values(batch, columns), strict=True):
                values.extend(batch_values)
            for name in extra:
                result.extra[name].extend(batch.extra.column(name).to_pylist())
            length += batch.length
        assert part.rows is None or part.rows == length - first_row
    return result._replace(length=length, parts=len(parts))


def column_values(batch: Batch, columns: list[Column]) -> list[list[Any]]:
    rows = batch.rows
    if rows.matrix is not None:
        assert rows.matrix.dtype == np.float64
        assert rows.matrix.flags.c_contiguous
        assert rows.matrix.shape == (len(rows), len(columns))
        return [rows.matrix[:, j].tolist() for j in range(len(columns))]
    assert rows.columns is not None
    assert [c.dtype for c in rows.columns] == [c.storage for c in columns]
    return [c.tolist() for c in rows.columns]
