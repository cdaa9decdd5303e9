"""Parquet: a part is some row groups of a file, or a piece of a large one; read a batch at a time.

Column chunks are read through small buffers: a row group of a million rows is never in memory whole,
not even compressed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from service.batch.files.cells import block_of
from service.batch.files.dataset import BATCH_ROWS, PART_BYTES, Block, Dataset, File, Part, refuse
from service.batch.files.places import Opened
from service.runtime.codec.columns import Column

SUFFIXES = (".parquet", ".pq")
PART_ROWS = 1 << 20
BUFFER_BYTES = 1 << 18  # of a column chunk


def schema(file: File) -> Any:
    """Raises `Invalid` when the file is no whole Parquet file."""
    with Opened(file) as opened:
        return _open(opened).schema_arrow


def cut(dataset: Dataset, index: int) -> list[Part]:
    """Row groups in a row, up to `PART_ROWS` or `PART_BYTES` of them together; a larger one is alone."""
    parts: list[Part] = []
    with Opened(dataset.files[index]) as opened:
        footer = _open(opened).metadata
    start = rows = size = 0
    for group in range(footer.num_row_groups):
        found = footer.row_group(group)
        if rows and (rows + found.num_rows > PART_ROWS or size + found.total_byte_size > PART_BYTES):
            parts.append(Part(index, start, group, rows))
            start, rows, size = group, 0, 0
        rows += found.num_rows
        size += found.total_byte_size
    parts.append(Part(index, start, footer.num_row_groups, rows))
    return parts


def batches(opened: Opened, part: Part, names: Sequence[str]) -> Iterator[Any]:
    """The part's record batches with the columns of `names`, in that order."""
    source = _open(opened)
    fields = [source.schema_arrow.field(n) for n in names]
    last = min(part.stop, source.metadata.num_row_groups)
    groups = [g for g in range(part.start, last) if source.metadata.row_group(g).num_rows]
    if not groups:
        yield pa.RecordBatch.from_pylist([], schema=pa.schema(fields))
        return
    try:
        for group in groups:
            for batch in source.iter_batches(BATCH_ROWS, [group], columns=list(names), use_threads=False):
                yield batch.select(list(names))
    except (pa.ArrowException, OSError) as error:
        opened.check()
        raise refuse(f"{opened.file.name!r} cannot be read: {str(error)[:300]}") from error


def _open(opened: Opened) -> Any:
    try:
        return pq.ParquetFile(opened.arrow(), buffer_size=BUFFER_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise refuse(f"{opened.file.name!r} is no Parquet file, or not whole: {str(error)[:300]}") from error


def read(opened: Opened, part: Part, columns: Sequence[Column], extra: Sequence[str]) -> Iterator[Block]:
    features = [c.name for c in columns]
    names = list(dict.fromkeys([*features, *extra]))
    for batch in batches(opened, part, names):
        yield block_of(batch, columns, extra)
