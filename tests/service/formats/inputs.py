"""Columns, and everything that a location gives, read through parts as workers do."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from registry.signature import Input
from service.formats import reading
from service.formats.dataset import BATCH_ROWS, Batch, RowFault
from service.runtime.codec.columns import Column

CSV = "text/csv"
PARQUET = "application/vnd.apache.parquet"
LINES = "application/x-ndjson"
ARROW = "application/vnd.apache.arrow.stream"

A, B = Column(Input("a", "float64")), Column(Input("b", "float64", nullable=True))
N, FLAG = Column(Input("n", "int64")), Column(Input("flag", "bool"))
WORD = Column(Input("word", "string", nullable=True))
COLOUR = Column(Input("colour", "string", categories=("red", "blue"), closed=True))


class Everything(NamedTuple):
    columns: list[list[Any]]  # of the good rows, in the order of the features
    extra: dict[str, list[Any]]
    faults: list[RowFault]  # rows counted over the whole input
    length: int
    parts: int

    @property
    def bad(self) -> list[int]:
        return [f.row for f in self.faults]


def everything(
    location: Path | str,
    media_type: str,
    columns: list[Column],
    extra: list[str] | None = None,
    id_column: str | None = None,
) -> Everything:
    """All parts one after another. Checks what holds for any input on the way."""
    dataset = reading.open_dataset(str(location), media_type)
    extra = extra or []
    found = Everything([[] for _ in columns], {name: [] for name in extra}, [], 0, 0)
    length = 0
    parts = reading.split(dataset)
    schema = reading.extra_schema(dataset, extra)
    for part in parts:
        before = length
        for batch in reading.read_batches(dataset, part, columns, extra, id_column):
            assert batch.length == len(batch.rows) + len(batch.faults) <= BATCH_ROWS
            assert batch.extra.schema.equals(schema)
            bad = [f.row + before for f in batch.faults]
            assert bad == sorted(set(bad))
            assert all(length <= row < length + batch.length for row in bad)
            found.faults.extend(RowFault(f.row + before, f.id, f.field, f.message) for f in batch.faults)
            for into, array in zip(found.columns, arrays(batch, columns), strict=True):
                into.extend(array)
            for name in extra:
                found.extra[name].extend(batch.extra.column(name).to_pylist())
            length += batch.length
        assert part.rows is None or part.rows == length - before
    return found._replace(length=length, parts=len(parts))


def arrays(batch: Batch, columns: list[Column]) -> list[list[Any]]:
    rows = batch.rows
    if rows.matrix is not None:
        assert rows.matrix.dtype == np.float64
        assert rows.matrix.flags.c_contiguous
        assert rows.matrix.shape == (len(rows), len(columns))
        return [rows.matrix[:, j].tolist() for j in range(len(columns))]
    assert rows.columns is not None
    assert [c.dtype for c in rows.columns] == [c.storage for c in columns]
    return [c.tolist() for c in rows.columns]
