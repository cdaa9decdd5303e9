"""Output and errors files of a partition. A file is complete at its final path, or absent.

Files are written to a temporary file in the same directory, hashed while they are written, synced to disk and
renamed; then the directory is synced. NaN and infinity become null. Floats are written with as many digits as
reading the same float requires.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from registry.artifacts import fsync_directory
from registry.media_types import CSV, NDJSON, PARQUET
from service.formats.dataset import RowFault, invalid_input

GROUP_ROWS = 1 << 18  # rows per Parquet row group
GROUP_BYTES = 64 * 2**20  # maximum size of a Parquet row group before compression
ERRORS_HEADER = ("row", "id", "field", "message")

_encode_lines = msgspec.json.Encoder().encode_lines  # writes NaN and infinity as null


class WrittenFile(msgspec.Struct, frozen=True):
    file: str  # name in its directory
    rows: int
    bytes: int
    sha256: str


class _AtomicFile:
    """A binary file that appears at `path` with `commit`. `abandon` deletes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.writing")
        self.file = self._temporary.open("wb")
        self._hash = hashlib.sha256()
        self.bytes = 0
        self.closed = False

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if self.closed:  # pyarrow's writers write the end of an abandoned file when they are collected
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

    def commit(self, rows: int) -> WrittenFile:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self._temporary.rename(self.path)
        fsync_directory(self.path.parent)
        self.closed = True
        return WrittenFile(self.path.name, rows, self.bytes, self._hash.hexdigest())

    def abandon(self) -> None:
        if not self.closed:
            self.closed = True
            try:
                with contextlib.suppress(OSError):  # on a full disk, buffered data cannot be written either
                    self.file.close()
            finally:
                self._temporary.unlink(missing_ok=True)


class _Encoder(Protocol):
    """Writes record batches to a file in one format."""

    def __init__(self, output: _AtomicFile, schema: Any) -> None: ...

    def write(self, batch: Any) -> None: ...

    def close(self) -> None: ...


class PartWriter:
    """The output of one partition: record batches of `schema` as CSV, Parquet or JSON lines.

    Leaving the context without `close` deletes the file.
    """

    def __init__(self, path: Path, media_type: str, schema: Any) -> None:
        if media_type not in _ENCODERS:
            message = f"the output's media type {media_type!r} is not supported"
            raise invalid_input(message, "output.media_type", "one of " + ", ".join(_ENCODERS))
        self._output = _AtomicFile(path)
        self._rows = 0
        try:
            self._encoder = _ENCODERS[media_type](self._output, schema)
        except BaseException:
            self._output.abandon()
            raise

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._output.abandon()

    def write(self, batch: Any) -> None:
        self._rows += batch.num_rows
        self._encoder.write(batch)

    def close(self) -> WrittenFile:
        """Move the file to its path. No more batches can be written."""
        self._encoder.close()
        return self._output.commit(self._rows)


class ErrorWriter:
    """The faults of one partition as CSV. The file exists only if the partition has faults."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._output: _AtomicFile | None = None
        self._rows = 0

    def __enter__(self) -> ErrorWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._output is not None:
            self._output.abandon()

    def write(self, fault: RowFault) -> None:
        if self._output is None:
            self._output = _AtomicFile(self._path)
            self._output.write(csv_line(ERRORS_HEADER))
        self._output.write(csv_line((fault.row, fault.id, fault.field, fault.message)))
        self._rows += 1

    def close(self) -> str | None:
        """Return the file's name, or None if the partition has no faults."""
        return None if self._output is None else self._output.commit(self._rows).file


def csv_line(cells: tuple[Any, ...]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().encode()


def _replace_non_finite(batch: Any) -> Any:
    """Replace NaN and infinity by null."""
    arrays = []
    for data in batch.columns:
        if pa.types.is_floating(data.type) and not pc.all(finite := pc.is_finite(data)).as_py():
            data = pc.if_else(finite, data, pa.scalar(None, data.type))
        arrays.append(data)
    return pa.RecordBatch.from_arrays(arrays, schema=batch.schema)


class _CsvEncoder:
    def __init__(self, output: _AtomicFile, schema: Any) -> None:
        self._output = output
        self._writer = pyarrow.csv.CSVWriter(pa.PythonFile(output, mode="w"), schema)

    def write(self, batch: Any) -> None:
        batch = _replace_non_finite(batch)
        if batch.num_columns == 1 and batch.column(0).null_count:
            self._write_single_column(batch.column(0))
        else:
            self._writer.write_batch(batch)

    def _write_single_column(self, data: Any) -> None:
        """Write null as `""`. pyarrow would write an empty line, which readers skip."""
        texts = data.cast(pa.string()).to_pylist()
        lines = ('""' if text is None else '"' + text.replace('"', '""') + '"' for text in texts)
        self._output.write("".join(f"{line}\n" for line in lines).encode())

    def close(self) -> None:
        self._writer.close()


class _NdjsonEncoder:
    def __init__(self, output: _AtomicFile, schema: Any) -> None:
        self._output = output

    def write(self, batch: Any) -> None:
        if batch.num_rows:
            columns = [_json_values(column) for column in batch.columns]
            names = batch.schema.names
            rows = zip(*columns, strict=True)
            self._output.write(_encode_lines([dict(zip(names, row, strict=True)) for row in rows]))

    def close(self) -> None:
        pass


def _json_values(column: Any) -> list[Any]:
    """Return the values of a column as Python objects for JSON.

    Python does not support times in nanoseconds or after the year 9999. They become text.
    """
    if pa.types.is_duration(column.type) and column.type.unit == "ns":
        column = column.cast(pa.duration("us"), safe=False)
    elif getattr(column.type, "unit", None) == "ns":
        column = column.cast(pa.string())
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):
        values = column.cast(pa.string()).to_pylist()
        if any(text and text.startswith("<value out of range") for text in values):
            raise invalid_input(
                f"a value of type {column.type} is outside the range of calendar dates"
            ) from None
    return values


class _ParquetEncoder:
    """Row groups of `GROUP_ROWS`, or of fewer rows if they reach `GROUP_BYTES`."""

    def __init__(self, output: _AtomicFile, schema: Any) -> None:
        self._schema = schema
        dictionary_columns = [f.name for f in schema if not pa.types.is_floating(f.type)]
        file = pa.PythonFile(output, mode="w")
        self._writer = pq.ParquetWriter(file, schema, use_dictionary=dictionary_columns)
        self._buffered: list[Any] = []
        self._rows = self._bytes = 0

    def write(self, batch: Any) -> None:
        self._buffered.append(_replace_non_finite(batch))
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._write_group()

    def _write_group(self) -> None:
        if self._rows:
            table = pa.Table.from_batches(self._buffered, self._schema)
            self._writer.write_table(table, row_group_size=self._rows)
        self._buffered = []
        self._rows = self._bytes = 0

    def close(self) -> None:
        self._write_group()
        self._writer.close()


_ENCODERS: dict[str, type[_Encoder]] = {
    CSV: _CsvEncoder,
    PARQUET: _ParquetEncoder,
    NDJSON: _NdjsonEncoder,
}
