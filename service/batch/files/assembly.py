"""The files of all partitions as one, streamed into a sink."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from registry.artifacts import CHUNK
from service.batch.files.records import first
from service.batch.files.writing import ERRORS_HEADER, csv_line


class Sink(Protocol):
    def write(self, chunk: bytes, /) -> Any: ...


def assemble(parts: Sequence[Path], media_type: str, sink: Sink) -> None:
    """Join at least one part as `PartWriter` wrote them, in the order given."""
    if media_type == "application/vnd.apache.parquet":
        _join_parquet(parts, sink)
        return
    for index, part in enumerate(parts):
        with part.open("rb") as file:
            if index and media_type == "text/csv":
                _skip_header(file)
            while chunk := file.read(CHUNK):
                sink.write(chunk)


def _skip_header(file: Any) -> None:
    data = b""
    while (end := first(data)) == 0:
        chunk = file.read(CHUNK)
        if not chunk:
            return
        data += chunk
    file.seek(end)


def _join_parquet(parts: Sequence[Path], sink: Sink) -> None:
    schema = pq.read_schema(parts[0])
    with pq.ParquetWriter(pa.PythonFile(_Tell(sink), mode="w"), schema) as writer:
        for part in parts:
            with pq.ParquetFile(part) as file:
                for group in range(file.num_row_groups):
                    writer.write_table(file.read_row_group(group, use_threads=False))


class _Tell:
    """A sink as pyarrow writes to it."""

    closed = False

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._bytes = 0

    def write(self, data: Any) -> int:
        chunk = bytes(data)
        self._sink.write(chunk)
        self._bytes += len(chunk)
        return len(chunk)

    def tell(self) -> int:
        return self._bytes

    def flush(self) -> None:
        pass


def assemble_errors(parts: Iterable[tuple[Path, int]], sink: Sink) -> None:
    """Join errors files; each comes with the number of its partition's first row in the whole input."""
    sink.write(csv_line(ERRORS_HEADER))
    for path, offset in parts:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            next(rows)
            for row, *rest in rows:
                sink.write(csv_line((int(row) + offset, *rest)))
