"""Parquet files of a prediction log: written in the order of time, and merged while they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from service.prediction_log import log_files
from service.prediction_log.log_files import LogFile

BATCH_ROWS, BATCH_CELLS = 8192, 1 << 19
"""Rows of a file in memory while it is read: 4 MB of numbers."""
GROUP_ROWS, GROUP_BYTES = 1 << 16, 16 * 2**20
"""A row group of a merged file ends with the first table that reaches one of them."""


def times_of(table: Any) -> Any:
    """Return the times of a table or record batch as microseconds since 1970."""
    times = table.column("time").cast(pa.int64())
    return times.to_numpy()


def to_datetime(microseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(microseconds))


def from_datetime(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def in_time_order(table: Any) -> Any:
    """Return the table in the order of time. Rows of the same time keep their order."""
    times = times_of(table)
    if (np.diff(times) < 0).any():  # the clock was set back
        table = table.take(pa.array(np.argsort(times, kind="stable")))
    return table


def write_table(directory: Path, table: Any, level: int, writer: str) -> Path:
    """Write a table whose rows are in the order of time as one file, and return its path."""
    times = times_of(table)
    first, last = to_datetime(times[0]), to_datetime(times[-1])
    path = log_files.file_path(directory, first, last, level, writer)
    with log_files.new_file(path) as file, _writer(file, table.schema, "lz4") as output:
        output.write_table(table)
    return path


def merge_files(files: Sequence[LogFile], writer: str) -> Path:
    """Replace files of a version by one file with the same rows, and return its path."""
    first, last = min(f.first for f in files), max(f.last for f in files)
    level = max(f.level for f in files) + 1
    path = log_files.file_path(files[0].path.parent, first, last, level, writer)
    schema = pq.read_schema(files[0].path)
    with (
        log_files.replacing(path, [f.path for f in files]) as file,
        _writer(file, schema, "zstd") as output,
    ):
        for group in _row_groups(MergedRows(files, schema)):
            output.write_table(group)
    return path


def _writer(file: Any, schema: Any, compression: str) -> Any:
    with_dictionary = [f.name for f in schema if f.name != "id" and not pa.types.is_floating(f.type)]
    return pq.ParquetWriter(
        file, schema, compression=compression, use_dictionary=with_dictionary, write_statistics=False
    )


def _row_groups(tables: Iterator[Any]) -> Iterator[Any]:
    group: list[Any] = []
    for table in tables:
        group.append(table)
        if sum(t.num_rows for t in group) >= GROUP_ROWS or sum(t.nbytes for t in group) >= GROUP_BYTES:
            yield pa.concat_tables(group)
            group = []
    if group:
        yield pa.concat_tables(group)


class MergedRows:
    """Iterates over tables with the rows of all files in the order of time, each converted to `schema`.

    Each file is opened when its first row is due, so that only files of the same time are open. `position` is
    the time of the last row that was returned, in microseconds; no later row has it. Raises
    `FileNotFoundError` if a file was deleted before it is due.
    """

    def __init__(self, files: Sequence[LogFile], schema: Any, after: int | None = None) -> None:
        """`after`: leave out the rows of this time and of earlier ones."""
        self._files = sorted(files, key=lambda f: f.first, reverse=True)
        self._schema = schema
        self._open: list[_OpenFile] = []
        self.position = after

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        while self._files or self._open:
            if not self._open:
                self._open_next()
            until = min((file.last for file in self._open), default=None)
            while self._files and until is not None and from_datetime(self._files[-1].first) <= until:
                self._open_next()
                until = min(file.last for file in self._open)
            if until is None:
                continue
            parts = [part for file in self._open for part in file.take_until(until)]
            self._open = [file for file in self._open if file.batch is not None]
            self.position = until
            if table := _joined(parts):
                return table
        raise StopIteration

    def _open_next(self) -> None:
        file = _OpenFile(self._files[-1].path, self._schema, self.position)
        self._files.pop()
        if file.batch is not None:
            self._open.append(file)


def _joined(parts: list[Any]) -> Any:
    """Return the rows of all parts in the order of time as a table, None without rows."""
    table = pa.concat_tables(parts) if parts else None
    if table is None or not table.num_rows:
        return None
    if len(parts) > 1:
        table = table.take(pa.array(np.argsort(times_of(table), kind="stable")))
    return table


class _OpenFile:
    """A file with one batch of its rows in memory."""

    def __init__(self, path: Path, schema: Any, after: int | None) -> None:
        self._file = pq.ParquetFile(path)
        self._schema = schema
        self._after = after
        rows = max(1, min(BATCH_ROWS, BATCH_CELLS // max(1, self._file.metadata.num_columns)))
        self._batches = self._file.iter_batches(rows)
        self._read()

    def _read(self) -> None:
        """Read the next batch that has rows. At the end of the file, `batch` is None."""
        self.batch: Any = None
        for batch in self._batches:
            times = times_of(batch)
            start = 0 if self._after is None else int(np.searchsorted(times, self._after, side="right"))
            if start < len(times):
                self.batch, self._times = batch.slice(start), times[start:]
                self.last = int(self._times[-1])
                return
        self._file.close()

    def take_until(self, until: int) -> Iterator[Any]:
        """Yield tables with the rows up to the time `until`, and remove them from the batch."""
        while self.batch is not None:
            stop = int(np.searchsorted(self._times, until, side="right"))
            if stop:
                yield convert(self.batch.slice(0, stop), self._schema)
            if stop < len(self._times):
                self.batch, self._times = self.batch.slice(stop), self._times[stop:]
                return
            self._read()


def convert(batch: Any, schema: Any) -> Any:
    """Return a record batch as a table of `schema`; columns that it lacks are null."""
    columns = []
    for field in schema:
        index = batch.schema.get_field_index(field.name)
        if index < 0:
            columns.append(pa.nulls(batch.num_rows, field.type))
        else:
            columns.append(batch.column(index).cast(field.type))
    return pa.Table.from_arrays(columns, schema=schema)
