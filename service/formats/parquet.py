"""Parquet: a part is some row groups of a file, or a piece of a large one; read a batch at a time.

Column chunks are read through small buffers: a row group of a million rows is never in memory whole,
not even compressed.

A row group of a million rows, what pyarrow writes by default, is two parts: ten of them over four lanes
would leave two lanes idle for a third of the time, and a killed worker would do twice as much again. The
second piece has to decode the first, which costs a tenth of what scoring by a forest does. So a row group
is never more than `MAX_PIECES`, however large.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from service.formats import media_types
from service.formats.cells import block_of
from service.formats.dataset import PART_BYTES, Block, Dataset, File, FileRange, batch_rows, refuse
from service.formats.sources import Opened
from service.runtime.codec.columns import Column

SUFFIXES = media_types.SUFFIXES[media_types.PARQUET]
PART_ROWS = 1 << 19
MAX_PIECES = 8
BUFFER_BYTES = 1 << 18  # of a column chunk
REMOTE_BUFFER_BYTES = 1 << 21  # each fill is a request, which takes as long as many bytes


def schema(file: File) -> Any:
    """Raises `Invalid` when the file is no whole Parquet file."""
    with Opened(file) as opened:
        return _open(opened).schema_arrow


def cut(dataset: Dataset, index: int) -> list[FileRange]:
    """Row groups in a row, up to `PART_ROWS` or `PART_BYTES` of them together; pieces of larger ones."""
    with Opened(dataset.files[index]) as opened:
        footer = _open(opened).metadata
    parts: list[FileRange] = []
    rows = size = 0
    for group in range(footer.num_row_groups):
        found = footer.row_group(group)
        if rows and (rows + found.num_rows > PART_ROWS or size + found.total_byte_size > PART_BYTES):
            rows = size = 0
        if rows:
            last = parts.pop()
            parts.append(FileRange(index, last.start, group + 1, rows + found.num_rows))
        else:
            parts += pieces(FileRange(index, group, group + 1), found.num_rows, PART_ROWS)
        rows += found.num_rows
        size += found.total_byte_size
    return parts or [FileRange(index, 0, 0, 0)]


def pieces(groups: FileRange, rows: int, size: int) -> list[FileRange]:
    """The `rows` rows of these row groups in parts of about `size`, at most `MAX_PIECES` of them."""
    count = min(MAX_PIECES, max(1, round(rows / size)))
    bounds = [rows * i // count for i in range(count + 1)]
    return [
        FileRange(groups.file, groups.start, groups.stop, b - a, a) for a, b in itertools.pairwise(bounds)
    ]


def read(opened: Opened, part: FileRange, columns: Sequence[Column], extra: Sequence[str]) -> Iterator[Block]:
    names = list(dict.fromkeys([*(c.name for c in columns), *extra]))
    for batch in batches(opened, part, names):
        yield block_of(batch, columns, extra)


def batches(opened: Opened, part: FileRange, names: Sequence[str]) -> Iterator[Any]:
    """The part's record batches with the columns of `names`, in that order; at least one."""
    source = _open(opened)
    last = min(part.stop, source.metadata.num_row_groups)
    groups = [g for g in range(part.start, last) if source.metadata.row_group(g).num_rows]
    if not groups:
        fields = [source.schema_arrow.field(n) for n in names]
        yield pa.RecordBatch.from_pylist([], schema=pa.schema(fields))
    skip, left = part.skip, part.rows
    try:
        # one at a time: to iterate over many opens them all
        for group in groups:
            size = batch_rows(len(names))
            for batch in source.iter_batches(size, [group], columns=list(names), use_threads=False):
                piece = batch.select(list(names)).slice(min(skip, batch.num_rows), left)
                skip = max(0, skip - batch.num_rows)
                if piece.num_rows:
                    left = None if left is None else left - piece.num_rows
                    yield piece
                if left == 0:
                    return
    except (pa.ArrowException, OSError) as error:
        opened.check()
        raise refuse(f"{opened.file.name!r} cannot be read: {str(error)[:300]}") from error
    if left:
        raise refuse(f"{opened.file.name!r} has {left} rows fewer than its footer says")


def _open(opened: Opened) -> Any:
    try:
        size = REMOTE_BUFFER_BYTES if opened.remote else BUFFER_BYTES
        return pq.ParquetFile(
            opened.for_arrow(), buffer_size=size, pre_buffer=False, page_checksum_verification=True
        )
    except (pa.ArrowException, OSError) as error:
        raise refuse(f"{opened.file.name!r} is no Parquet file, or not whole: {str(error)[:300]}") from error
