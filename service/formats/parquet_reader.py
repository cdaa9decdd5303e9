"""Parquet input. A part is some row groups of a file, or a piece of a large one; it is read in batches.

Column chunks are read through small buffers: a row group of a million rows is never completely in memory, not
even compressed.

A row group of a million rows, pyarrow's default, is divided into two parts: with ten such groups on four
lanes, two lanes would otherwise be idle for a third of the time, and a retry after a worker crash would
repeat twice as much. Reading the second piece decodes the first one as well, which costs a tenth of the
time that a forest needs to score it. A row group is therefore never divided into more than `MAX_PIECES`.

INT96 timestamps, which Spark, Hive and Impala write, count nanoseconds over thousands of years. Arrow has no
such type, and reading them as nanoseconds wraps every date outside 1677-2262 into that range. They are read
in both units, which shows exactly what each loses.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from registry.errors import FieldError, Invalid
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
from service.runtime.codec.columns import Column, show

PART_ROWS = 1 << 19
MAX_PIECES = 8
BUFFER_BYTES = 1 << 18  # per column chunk
REMOTE_BUFFER_BYTES = 1 << 21  # each fill is a request, which takes as long as the transfer of these bytes

MAX_NANOSECONDS = 2**63 - 1

MAX_UNDIVIDED_ROWS = 1 << 20  # largest row group that is one part, see `balance`
LAST_ROWS_PER_LANE = 1 << 19  # the last rows of the input, per lane, are divided into small parts
LAST_PART_ROWS = 1 << 18


def read_schema(file: InputFile) -> Any:
    """Return the file's schema. Raises `Invalid` if it is not a complete Parquet file.

    INT96 timestamps have the unit that holds those of the first rows.
    """
    with OpenedFile(file) as opened:
        schema = _open(opened).schema_arrow
        if names := _int96_columns(_open(opened)):
            first = next(_read_batches(opened, FileRange(0, 0, 1), names), None)
            for field in () if first is None else first.schema:  # None: the file is damaged
                schema = schema.set(schema.get_field_index(field.name), field)
    return schema


def count_rows(file: InputFile) -> int:
    """Return the number of rows. Raises `Invalid` if it is not a complete Parquet file."""
    with OpenedFile(file) as opened:
        return int(_open(opened).metadata.num_rows)


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
    int96 = [name for name in _int96_columns(file) if name in names]
    try:
        # one group at a time: an iteration over several groups opens all of them
        for group in groups:
            size = batch_rows(len(names))
            batches = file.iter_batches(size, [group], columns=list(names), use_threads=False)
            for batch in _with_exact_int96(opened, batches, group, int96) if int96 else batches:
                piece = batch.select(list(names)).slice(min(skip, batch.num_rows), remaining)
                skip = max(0, skip - batch.num_rows)
                if piece.num_rows:
                    remaining = None if remaining is None else remaining - piece.num_rows
                    yield piece
                if remaining == 0:
                    return
    except (pa.ArrowException, OSError) as error:
        opened.check_unchanged()
        raise invalid_input(f"{opened.file.name!r} {_describe(error, 'cannot be read')}") from error
    if remaining:
        raise invalid_input(f"{opened.file.name!r} has {remaining} rows fewer than its footer declares")


def _int96_columns(file: Any) -> list[str]:
    """Return the columns of INT96 timestamps, those inside nested columns aside."""
    leaves = (file.schema.column(index) for index in range(len(file.schema)))
    return [leaf.path for leaf in leaves if leaf.physical_type == "INT96" and leaf.max_repetition_level == 0]


def _with_exact_int96(
    opened: OpenedFile, batches: Iterator[Any], group: int, names: Sequence[str]
) -> Iterator[Any]:
    """Yield the batches of a row group with exact INT96 timestamps, in microseconds or nanoseconds.

    Raises `Invalid` naming a column that neither unit holds.
    """
    file = _open(opened, int96_unit="us")
    coarse = file.iter_batches(batch_rows(len(names)), [group], columns=list(names), use_threads=False)
    pending: list[Any] = []
    for batch in batches:
        while sum(piece.num_rows for piece in pending) < batch.num_rows:
            pending.append(next(coarse))
        table = pa.Table.from_batches(pending)
        pending = table.slice(batch.num_rows).to_batches()
        for name in names:
            microseconds = table.column(name).slice(0, batch.num_rows).combine_chunks()
            exact = _exact_int96(batch.column(name), microseconds, name, opened.file)
            batch = batch.set_column(batch.schema.get_field_index(name), name, exact)
        yield batch


def _exact_int96(nanoseconds: Any, microseconds: Any, name: str, file: InputFile) -> Any:
    """Return the one of both columns that holds every timestamp exactly, microseconds if both do."""
    fine, coarse = (np.asarray(t.cast(pa.int64()).fill_null(0)) for t in (nanoseconds, microseconds))
    lost = fine.view(np.uint64) - coarse.view(np.uint64) * np.uint64(1000)  # also where `fine` has wrapped
    if not lost.any():
        return microseconds
    if (np.abs(coarse) <= MAX_NANOSECONDS // 1000 - 1).all():
        return nanoseconds
    message = (
        f"column {show(name)} of {file.name!r} holds INT96 timestamps with nanoseconds and dates outside "
        "1677-2262, which no type holds together; write the column with microseconds, or leave it out"
    )
    raise Invalid(message, [FieldError(message, field=name)])


def _open(opened: OpenedFile, int96_unit: str | None = None) -> Any:
    try:
        size = REMOTE_BUFFER_BYTES if opened.remote else BUFFER_BYTES
        return pq.ParquetFile(
            opened.arrow_file(),
            buffer_size=size,
            pre_buffer=False,
            page_checksum_verification=True,
            coerce_int96_timestamp_unit=int96_unit,
        )
    except UnicodeDecodeError:  # a column's name: the caller names it
        raise
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: of an extension type's own reader
        message = f"{opened.file.name!r} {_describe(error, 'is not a complete Parquet file')}"
        raise invalid_input(message) from error


def _describe(error: Exception, predicate: str) -> str:
    if "decrypt" in str(error):
        return "is encrypted; write it without encryption"
    return f"{predicate}: {str(error)[:300]}"
