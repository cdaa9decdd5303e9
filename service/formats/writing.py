"""Output files of a partition: there whole or not at all.

Written to a temporary file beside the final one, hashed on the way, fsynced, renamed, the directory
fsynced. NaN and infinity are null; floats are written so that reading gives the same float.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from registry.artifacts import fsync_directory
from service.formats.dataset import Fault, refuse
from service.formats.media_types import CSV, LINES, PARQUET

GROUP_ROWS = 1 << 18
GROUP_BYTES = 64 * 2**20  # of a Parquet row group, before compression
ERRORS_HEADER = ("row", "id", "field", "message")

_to_lines = msgspec.json.Encoder().encode_lines  # NaN and infinity become null


class Written(msgspec.Struct, frozen=True):
    file: str  # its name in the directory
    rows: int
    bytes: int
    sha256: str


class _Durable:
    """A binary file on its way to `path`; leaving without `commit` leaves nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.writing")
        self.file = self._temporary.open("wb")
        self._hash = hashlib.sha256()
        self.bytes = 0
        self.closed = False

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if self.closed:  # pyarrow's writers end a file that is given up when they are collected
            return size
        self._hash.update(data)
        self.file.write(data)
        self.bytes += size
        return size

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        if not self.closed:
            self.file.flush()

    def commit(self, rows: int) -> Written:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self._temporary.rename(self.path)
        fsync_directory(self.path.parent)
        self.closed = True
        return Written(self.path.name, rows, self.bytes, self._hash.hexdigest())

    def abandon(self) -> None:
        if not self.closed:
            self.closed = True
            try:
                with contextlib.suppress(OSError):  # on a full disk the rest does not fit either
                    self.file.close()
            finally:
                self._temporary.unlink(missing_ok=True)


class PartWriter:
    """The output of one partition: record batches of `schema`, in CSV, Parquet or JSON lines."""

    def __init__(self, path: Path, media_type: str, schema: Any) -> None:
        if media_type not in _ENCODERS:
            message = f"the output's media type {media_type!r} is not known"
            raise refuse(message, "output.media_type", "one of " + ", ".join(_ENCODERS))
        self._out = _Durable(path)
        self._rows = 0
        try:
            self._encoder = _ENCODERS[media_type](self._out, schema)
        except BaseException:
            self._out.abandon()
            raise

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._out.abandon()

    def write(self, batch: Any) -> None:
        self._rows += batch.num_rows
        self._encoder.write(batch)

    def close(self) -> Written:
        """Put the file at its place. After it nothing can be written."""
        self._encoder.close()
        return self._out.commit(self._rows)


class ErrorWriter:
    """The faults of one partition as CSV; no file when there are none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._out: _Durable | None = None
        self._rows = 0

    def __enter__(self) -> ErrorWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._out is not None:
            self._out.abandon()

    def write(self, fault: Fault) -> None:
        if self._out is None:
            self._out = _Durable(self._path)
            self._out.write(csv_line(ERRORS_HEADER))
        self._out.write(csv_line((fault.row, fault.id, fault.field, fault.message)))
        self._rows += 1

    def close(self) -> str | None:
        """The file's name, or None when there was no fault."""
        return None if self._out is None else self._out.commit(self._rows).file


def csv_line(cells: tuple[Any, ...]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().encode()


def _without_nan(batch: Any) -> Any:
    arrays = []
    for data in batch.columns:
        if pa.types.is_floating(data.type) and not pc.all(finite := pc.is_finite(data)).as_py():
            data = pc.if_else(finite, data, pa.scalar(None, data.type))
        arrays.append(data)
    return pa.RecordBatch.from_arrays(arrays, schema=batch.schema)


class _Csv:
    def __init__(self, out: _Durable, schema: Any) -> None:
        self._out = out
        self._writer = pyarrow.csv.CSVWriter(pa.PythonFile(out, mode="w"), schema)

    def write(self, batch: Any) -> None:
        batch = _without_nan(batch)
        if batch.num_columns == 1 and batch.column(0).null_count:
            self._write_alone(batch.column(0))
        else:
            self._writer.write_batch(batch)

    def _write_alone(self, data: Any) -> None:
        """A column of its own: null is `""`, since readers skip the empty line that pyarrow writes."""
        texts = data.cast(pa.string()).to_pylist()
        lines = ('""' if t is None else '"' + t.replace('"', '""') + '"' for t in texts)
        self._out.write("".join(f"{line}\n" for line in lines).encode())

    def close(self) -> None:
        self._writer.close()


class _Lines:
    def __init__(self, out: _Durable, schema: Any) -> None:
        self._out = out

    def write(self, batch: Any) -> None:
        if batch.num_rows:
            columns = [_values(column) for column in batch.columns]
            names = batch.schema.names
            rows = zip(*columns, strict=True)
            self._out.write(_to_lines([dict(zip(names, row, strict=True)) for row in rows]))

    def close(self) -> None:
        pass


def _values(column: Any) -> list[Any]:
    """A column for JSON. Python has no times of nanoseconds, and none after the year 9999: these are text."""
    if pa.types.is_duration(column.type) and column.type.unit == "ns":
        column = column.cast(pa.duration("us"), safe=False)
    elif getattr(column.type, "unit", None) == "ns":
        column = column.cast(pa.string())
    try:
        found: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):
        found = column.cast(pa.string()).to_pylist()
        if any(text and text.startswith("<value out of range") for text in found):
            raise refuse(f"a {column.type} is so far away that no calendar has it") from None
    return found


class _Parquet:
    """Row groups of `GROUP_ROWS`, or fewer when they would be large."""

    def __init__(self, out: _Durable, schema: Any) -> None:
        self._schema = schema
        texts = [f.name for f in schema if not pa.types.is_floating(f.type)]
        self._writer = pq.ParquetWriter(pa.PythonFile(out, mode="w"), schema, use_dictionary=texts)
        self._waiting: list[Any] = []
        self._rows = self._bytes = 0

    def write(self, batch: Any) -> None:
        self._waiting.append(_without_nan(batch))
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            table = pa.Table.from_batches(self._waiting, self._schema)
            self._writer.write_table(table, row_group_size=self._rows)
        self._waiting = []
        self._rows = self._bytes = 0

    def close(self) -> None:
        self._flush()
        self._writer.close()


_ENCODERS: dict[str, type[_Csv] | type[_Lines] | type[_Parquet]] = {
    CSV: _Csv,
    PARQUET: _Parquet,
    LINES: _Lines,
}
