"""Parquet input. A part is some row groups of a file, or a piece of a large one; it is read in batches.

Column chunks are read through small buffers: a row group of a million rows is never completely in memory, not
even compressed.

A row group of a million rows, pyarrow's default, is divided into two parts: with ten such groups on four
lanes, two lanes would otherwise be idle for a third of the time, and a retry after a worker crash would
repeat twice as much. Reading the second piece decodes the first one as well, which costs a tenth of the
time that a forest needs to score it. A row group is therefore never divided into more than `MAX_PIECES`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from service.formats.cells import typed_block
from service.formats.dataset import (
    PART_BYTES,
    Block,
    Dataset,
    FileRange,
    InputFile,
    batch_rows,
    invalid_input,
)
from service.formats.sources import OpenedFile
from service.runtime.codec.columns import Column

PART_ROWS = 1 << 19
MAX_PIECES = 8
BUFFER_BYTES = 1 << 18  # per column chunk
REMOTE_BUFFER_BYTES = 1 << 21  # each fill is a request, which takes as long as the transfer of these bytes

MAX_UNDIVIDED_ROWS = 1 << 20  # largest row group that is one part, see `balance`
LAST_ROWS_PER_LANE = 1 << 19  # the last rows of the input, per lane, are divided into small parts
LAST_PART_ROWS = 1 << 18


def read_schema(file: InputFile) -> Any:
    """Return the file's schema. Raises `Invalid` if it is not a complete Parquet file."""
    with OpenedFile(file) as opened:
        return _open(opened).schema_arrow


def split_file(dataset: Dataset, index: int) -> list[FileRange]:
    """Combine small row groups up to `PART_ROWS` and `PART_BYTES`, and divide larger ones."""
    with OpenedFile(dataset.files[index]) as opened:
        footer = _open(opened).metadata
    parts: list[FileRange] = []
    rows = size = 0
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        if rows and (rows + group.num_rows > PART_ROWS or size + group.total_byte_size > PART_BYTES):
            rows = size = 0
        if rows:
            last = parts.pop()
            parts.append(FileRange(index, last.start, number + 1, rows + group.num_rows))
        else:
            parts += _divide(FileRange(index, number, number + 1), group.num_rows, PART_ROWS)
        rows += group.num_rows
        size += group.total_byte_size
    return parts or [FileRange(index, 0, 0, 0)]


def _divide(groups: FileRange, rows: int, part_rows: int) -> list[FileRange]:
    """Divide the `rows` rows of some row groups into at most `MAX_PIECES` parts of about `part_rows`."""
    count = min(MAX_PIECES, max(1, round(rows / part_rows)))
    bounds = [rows * i // count for i in range(count + 1)]
    return [
        FileRange(groups.file, groups.start, groups.stop, stop - start, start)
        for start, stop in itertools.pairwise(bounds)
    ]


def balance(parts: Sequence[FileRange], lanes: int) -> list[FileRange]:
    """Return the same rows in the same order, in parts that keep `lanes` lanes busy until the end.

    A piece of a row group must decode the rows before it in its group, so fewer pieces cost less. But if the
    last parts were large, most lanes would wait for one of them. All row groups are therefore single parts,
    except for the last ones, which are divided into small parts.
    """
    balanced: list[FileRange] = []
    remaining = sum(part.rows or 0 for part in parts)
    for _, pieces in itertools.groupby(parts, key=lambda part: (part.file, part.start)):
        group = list(pieces)
        rows = sum(part.rows or 0 for part in group)
        if len(group) > 1 or rows > LAST_PART_ROWS:
            is_last = remaining <= LAST_ROWS_PER_LANE * lanes
            group = _divide(group[0], rows, LAST_PART_ROWS if is_last else MAX_UNDIVIDED_ROWS)
        balanced += group
        remaining -= rows
    return balanced


def read_blocks(
    opened: OpenedFile, part: FileRange, columns: Sequence[Column], extra: Sequence[str]
) -> Iterator[Block]:
    """Yield the part's rows; `extra` names the id and passthrough columns."""
    names = list(dict.fromkeys([*(c.name for c in columns), *extra]))
    for batch in _read_batches(opened, part, names):
        yield typed_block(batch, columns, extra)


def read_record_batches(opened: OpenedFile, part: FileRange, schema: Any) -> Iterator[Any]:
    """Yield Arrow record batches with the columns of `schema`, in the types of the file."""
    return _read_batches(opened, part, schema.names)


def _read_batches(opened: OpenedFile, part: FileRange, names: Sequence[str]) -> Iterator[Any]:
    """Yield at least one record batch with the columns `names`, in that order."""
    file = _open(opened)
    last = min(part.stop, file.metadata.num_row_groups)
    groups = [number for number in range(part.start, last) if file.metadata.row_group(number).num_rows]
    if not groups:
        fields = [file.schema_arrow.field(name) for name in names]
        yield pa.RecordBatch.from_pylist([], schema=pa.schema(fields))
    skip, remaining = part.skip, part.rows
    try:
        # one group at a time: an iteration over several groups opens all of them
        for group in groups:
            size = batch_rows(len(names))
            for batch in file.iter_batches(size, [group], columns=list(names), use_threads=False):
                piece = batch.select(list(names)).slice(min(skip, batch.num_rows), remaining)
                skip = max(0, skip - batch.num_rows)
                if piece.num_rows:
                    remaining = None if remaining is None else remaining - piece.num_rows
                    yield piece
                if remaining == 0:
                    return
    except (pa.ArrowException, OSError) as error:
        opened.check_unchanged()
        raise invalid_input(f"{opened.file.name!r} cannot be read: {str(error)[:300]}") from error
    if remaining:
        raise invalid_input(f"{opened.file.name!r} has {remaining} rows fewer than its footer declares")


def _open(opened: OpenedFile) -> Any:
    try:
        size = REMOTE_BUFFER_BYTES if opened.remote else BUFFER_BYTES
        return pq.ParquetFile(
            opened.arrow_file(), buffer_size=size, pre_buffer=False, page_checksum_verification=True
        )
    except (pa.ArrowException, OSError) as error:
        message = f"{opened.file.name!r} is not a complete Parquet file: {str(error)[:300]}"
        raise invalid_input(message) from error
