"""The output and errors files of all partitions, joined into one file each and streamed to a sink."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from registry.artifacts import CHUNK_BYTES
from registry.media_types import CSV, NDJSON, PARQUET
from service.formats.parquet_joining import MAGIC, FooterJoiner
from service.formats.text_records import first_end
from service.formats.writing import ERRORS_HEADER, csv_line


class Sink(Protocol):
    def write(self, chunk: bytes, /) -> Any: ...


def assemble(parts: Sequence[Path], media_type: str, sink: Sink) -> None:
    """Join one or more files that `PartWriter` wrote, in the order of `parts`.

    Raises `KeyError` for a media type without an entry in `_JOINERS`.
    """
    _JOINERS[media_type](parts, sink)


def _join_csv(parts: Sequence[Path], sink: Sink) -> None:
    _concatenate(parts, sink, skip_headers=True)


def _concatenate(parts: Sequence[Path], sink: Sink, skip_headers: bool = False) -> None:
    """`skip_headers`: leave out the first line of each part but the first."""
    for index, part in enumerate(parts):
        with part.open("rb") as file:
            if index and skip_headers:
                _skip_header(file)
            while chunk := file.read(CHUNK_BYTES):
                sink.write(chunk)
            _drop_page_cache(file)


def _skip_header(file: Any) -> None:
    data = b""
    while (end := first_end(data)) == 0:
        chunk = file.read(CHUNK_BYTES)
        if not chunk:
            return
        data += chunk
    file.seek(end)


def _join_parquet(parts: Sequence[Path], sink: Sink) -> None:
    joiner = FooterJoiner()
    sink.write(MAGIC)
    for part in parts:
        with part.open("rb") as file:
            for chunk in joiner.add(file, part.name):
                sink.write(chunk)
            _drop_page_cache(file)
    sink.write(joiner.ending())


_JOINERS: dict[str, Callable[[Sequence[Path], Sink], None]] = {
    CSV: _join_csv,
    NDJSON: _concatenate,
    PARQUET: _join_parquet,
}
"""By output media type."""


def _drop_page_cache(file: Any) -> None:
    """Release the cached pages of a part that was copied, so that the next writes reuse them.

    On a virtual machine, a write to a page that was never used takes twelve times as long.
    """
    if sys.platform == "linux":
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class PartErrors(NamedTuple):
    """The errors file of a partition, and the position of the partition's rows."""

    path: Path
    first: int  # number of the partition's first row in the input
    file: str  # name of the input file
    first_in_file: int  # number of the partition's first row in that file


def assemble_errors(parts: Iterable[PartErrors], sink: Sink) -> None:
    """Join errors files. Rows are numbered in the complete input, and in their input file."""
    sink.write(csv_line((*ERRORS_HEADER, "file", "file_row")))
    for part in parts:
        with part.path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            next(rows)
            for number, *cells in rows:
                row = int(number)
                sink.write(csv_line((row + part.first, *cells, part.file, row + part.first_in_file)))
