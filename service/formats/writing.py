"""Output and errors files of a partition, and streams of rows. A file is complete at its path, or absent.

Files are written to a temporary file in the same directory, hashed while they are written, synced to disk and
renamed; then the directory is synced. NaN and infinity of the model's answers become null; copied columns
keep theirs, except in JSON, which cannot express them. Floats are written with as many digits as reading the
same float requires.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from registry.artifacts import fsync_directory
from registry.errors import FieldError
from registry.media_types import CSV, NDJSON, PARQUET
from service.formats.dataset import RowFault, invalid_input
from service.runtime.codec.columns import show

GROUP_ROWS = 1 << 18  # rows per Parquet row group
GROUP_BYTES = 64 * 2**20  # maximum size of a Parquet row group before compression
ERRORS_HEADER = ("row", "id", "field", "message")

_UNIT_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}  # decimal places of a second
_CALENDAR_DAYS = (-12_687_428, 11_248_738)  # since 1970: from the year -32767 until before 32768

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


class _Output(Protocol):
    """What an encoder writes to; it never seeks. `closed`: it ignores what is written."""

    closed: bool

    def write(self, data: Any) -> int: ...

    def tell(self) -> int: ...

    def flush(self) -> None: ...


class _Chunks:
    """The bytes that an encoder wrote since they were taken."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._size += len(part)
        return len(part)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        pass

    def take(self) -> bytes:
        chunk = b"".join(self._parts)
        self._parts = []
        return chunk


class _Encoder(Protocol):
    """Writes record batches to a file in one format."""

    def __init__(self, output: _Output, schema: Any) -> None: ...

    def write(self, batch: Any) -> None: ...

    def close(self) -> None: ...


class PartWriter:
    """The output of one partition: record batches of `schema` as CSV, Parquet or JSON lines.

    The first `copied` columns are those of the input. Leaving the context without `close` deletes the file.
    """

    def __init__(self, path: Path, media_type: str, schema: Any, copied: int = 0) -> None:
        if media_type not in _ENCODERS:
            message = f"the output's media type {media_type!r} is not supported"
            raise invalid_input(message, "output.media_type", "one of " + ", ".join(_ENCODERS))
        if media_type != PARQUET:
            _require_time_zones(schema)
        self._output = _AtomicFile(path)
        self._rows, self._copied = 0, 0 if media_type == NDJSON else copied
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
        self._encoder.write(_replace_non_finite(batch, self._copied))

    def close(self) -> WrittenFile:
        """Move the file to its path. No more batches can be written."""
        self._encoder.close()
        return self._output.commit(self._rows)


def encode_stream(batches: Iterable[Any], schema: Any, media_type: str) -> Iterator[bytes]:
    """Yield record batches of `schema` as CSV, Parquet or JSON lines, in chunks that are not empty."""
    output = _Chunks()
    encoder = _ENCODERS[media_type](output, schema)
    for batch in batches:
        encoder.write(batch)
        if chunk := output.take():
            yield chunk
    encoder.close()
    if chunk := output.take():
        yield chunk


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


def _require_time_zones(schema: Any) -> None:
    """Raise `Invalid` for a time zone that is not in the machine's database: times cannot become text."""
    for field in schema:
        if pa.types.is_timestamp(field.type) and field.type.tz is not None:
            try:
                pa.array([0], field.type).cast(pa.string())
            except pa.ArrowInvalid as error:
                message = (
                    f"column {show(field.name)} has the time zone {field.type.tz!r}, which is not known here"
                )
                raise invalid_input(f"{message}; write the output as Parquet") from error


def csv_line(cells: tuple[Any, ...]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().encode()


def _replace_non_finite(batch: Any, copied: int) -> Any:
    """Replace NaN and infinity by null in all but the first `copied` columns."""
    arrays = batch.columns[:copied]
    for data in batch.columns[copied:]:
        if pa.types.is_floating(data.type) and not pc.all(finite := pc.is_finite(data)).as_py():
            data = pc.if_else(finite, data, pa.scalar(None, data.type))
        arrays.append(data)
    return pa.RecordBatch.from_arrays(arrays, schema=batch.schema)


class _CsvEncoder:
    def __init__(self, output: _Output, schema: Any) -> None:
        self._output = output
        self._writer = pyarrow.csv.CSVWriter(pa.PythonFile(output, mode="w"), schema)

    def write(self, batch: Any) -> None:
        for name, data in zip(batch.schema.names, batch.columns, strict=True):
            _require_calendar_dates(name, data)
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
    def __init__(self, output: _Output, schema: Any) -> None:
        self._output = output

    def write(self, batch: Any) -> None:
        if batch.num_rows:
            names = batch.schema.names
            columns = [_json_values(n, data) for n, data in zip(names, batch.columns, strict=True)]
            rows = zip(*columns, strict=True)
            self._output.write(_encode_lines([dict(zip(names, row, strict=True)) for row in rows]))

    def close(self) -> None:
        pass


def _json_values(name: str, column: Any) -> list[Any]:
    """Return the values of a column as Python objects for JSON.

    Python does not support times in nanoseconds or after the year 9999. They become text.
    """
    _require_calendar_dates(name, column)
    is_duration = pa.types.is_duration(column.type)
    if getattr(column.type, "unit", None) != "ns":
        try:
            values: list[Any] = column.to_pylist()
            return values
        except (ValueError, OverflowError):
            pass
    if is_duration:
        return [None if n is None else _iso_duration(n, column.type.unit) for n in _integers(column)]
    texts: list[Any] = column.cast(pa.string()).to_pylist()
    return texts


def _integers(column: Any) -> list[int | None]:
    values: list[int | None] = column.cast(pa.int64()).to_pylist()
    return values


def _iso_duration(count: int, unit: str) -> str:
    """Write a duration with all of its digits, as ISO 8601 does."""
    digits = _UNIT_DIGITS[unit]
    seconds, fraction = divmod(abs(count), 10**digits)
    decimals = f".{fraction:0{digits}d}".rstrip("0") if fraction else ""
    return f"{'-' if count < 0 else ''}PT{seconds}{decimals}S"


def find_unwritable_rows(batch: Any, media_type: str) -> dict[int, FieldError]:
    """Return the rows with a date that the output format cannot express, by index, with the first fault."""
    faults: dict[int, FieldError] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        for row in _beyond_calendar(column) if media_type != PARQUET else ():
            faults.setdefault(row, FieldError(_beyond_calendar_message(name, column), field=name))
    return faults


def _require_calendar_dates(name: str, column: Any) -> None:
    """Raise `Invalid` for a date outside the years that text can express: Arrow would write no date."""
    if _beyond_calendar(column):
        raise invalid_input(_beyond_calendar_message(name, column))


def _beyond_calendar_message(name: str, column: Any) -> str:
    return (
        f"column {show(name)} holds a {column.type} outside the range of calendar dates; write the "
        "output as Parquet, or leave the column out"
    )


def _beyond_calendar(column: Any) -> list[int]:
    """Return the rows with a date outside the years that text can express."""
    is_date = pa.types.is_date32(column.type)
    if not (is_date or pa.types.is_timestamp(column.type)) or column.null_count == len(column):
        return []
    numbers = column.cast(pa.int32() if is_date else pa.int64())
    ends = pc.min_max(numbers).as_py()
    day = 1 if is_date else 86_400 * 10 ** _UNIT_DIGITS[column.type.unit]
    first, last = _CALENDAR_DAYS[0] * day, _CALENDAR_DAYS[1] * day
    if first <= ends["min"] and ends["max"] < last:
        return []
    return [row for row, n in enumerate(numbers.to_pylist()) if n is not None and not first <= n < last]


class _ParquetEncoder:
    """Row groups of `GROUP_ROWS`, or of fewer rows if they reach `GROUP_BYTES`."""

    def __init__(self, output: _Output, schema: Any) -> None:
        self._schema = schema
        dictionary_columns = [f.name for f in schema if not pa.types.is_floating(f.type)]
        file = pa.PythonFile(output, mode="w")
        self._writer = pq.ParquetWriter(file, schema, use_dictionary=dictionary_columns)
        self._buffered: list[Any] = []
        self._rows = self._bytes = 0

    def write(self, batch: Any) -> None:
        self._buffered.append(batch)
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
