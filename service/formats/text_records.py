"""Text files as blocks of complete records: CSV rows, or lines of JSON.

Compressed files (gzip, Zstandard, bzip2, recognized by their first bytes) are decompressed while they are
read.

A line end inside a quoted cell does not end a row. Quotes are interpreted as pyarrow's parser does it: a
quote opens a cell only as its first character. In most files, counting quotes is sufficient; where a quote
is inside an unquoted cell (`5" pipe`), the block is parsed cell by cell.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from registry.errors import Invalid
from service.formats.dataset import PART_BYTES, invalid_input
from service.formats.sources import FileStream, OpenedFile

BLOCK_BYTES = 2 * 2**20
MAX_RECORD_BYTES = 64 * 2**20  # bounds memory when a quote is never closed

_SCAN_BYTES = 1 << 20  # fits into the processor's cache
_SCAN_THREADS = 4

_QUOTE = 0x22
_OUTSIDE = np.zeros(256, dtype=bool)  # characters next to a quote that opens or closes a cell
_OUTSIDE[list(b',\r\n"')] = True
_CELL = re.compile(rb'(?:"[^"]*+(?:""[^"]*+)*+"[^,\r\n]*+|[^",\r\n][^,\r\n]*+)?(,|\r\n|\r|\n)')
_MAGIC = re.compile(
    rb"(?P<gzip>\x1f\x8b)|(?P<zstd>\x28\xb5\x2f\xfd)|(?P<bz2>BZh[1-9](?:1AY&SY|\x17rE8P\x90))"
)
"""The magic of bzip2 is readable text, so the header of its first block, or of its end, must follow."""


def is_utf8(data: bytes) -> bool:
    try:
        return data.isascii() or bool(data.decode())
    except UnicodeDecodeError:
        return False


def not_utf8(name: str) -> Invalid:
    message = f"{name!r} is not UTF-8, perhaps Latin-1 or Windows-1252; save the file as UTF-8"
    return invalid_input(message, expected="UTF-8")


class ByteStream(Protocol):
    def read(self, size: int, /) -> bytes: ...


def compression_of(opened: OpenedFile) -> str | None:
    """Return the compression's name, or None for plain text."""
    match = _MAGIC.match(opened.read_at(0, 10))
    return match and match.lastgroup


def open_text(opened: OpenedFile) -> ByteStream:
    """Return the file's plain bytes from the start.

    Reading a compressed file raises `Invalid` if the data is damaged or truncated.
    """
    compression = compression_of(opened)
    return FileStream(opened) if compression is None else _DecompressedStream(opened, compression)


class _DecompressedStream:
    def __init__(self, opened: OpenedFile, compression: str) -> None:
        self._opened = opened
        source = pa.PythonFile(FileStream(opened), mode="r")
        self._stream: Any = pa.CompressedInputStream(source, compression)

    def read(self, size: int) -> bytes:
        try:
            return bytes(self._stream.read(size))
        except (OSError, pa.ArrowException) as error:
            self._opened.check_unchanged()
            name = self._opened.file.name
            raise invalid_input(
                f"{name!r} cannot be decompressed; it is damaged or incomplete: {error}"
            ) from error


class RecordFormat(NamedTuple):
    """How records end. `eol` is a line feed, or a carriage return in files without line feeds."""

    eol: bytes = b"\n"
    quotes: bool = True  # whether cells can be quoted

    def last_end(self, data: bytes) -> int:
        """Return the end of the last complete record in `data`, or 0. `data` must start with a record."""
        last = data.rfind(self.eol)
        if last < 0 or not self.quotes or b'"' not in data:
            return last + 1
        return self._last_end_outside_quotes(data, last)

    def _last_end_outside_quotes(self, data: bytes, last: int) -> int:
        octets = np.frombuffer(data, dtype=np.uint8)
        quotes = np.flatnonzero(octets == _QUOTE)
        opening, closing = quotes[0::2], quotes[1::2]
        if opening[0] == 0:
            opening = opening[1:]
        regular = _OUTSIDE[octets[opening - 1]].all()
        if closing.size and closing[-1] == len(data) - 1:
            closing = closing[:-1]
        if not (regular and _OUTSIDE[octets[closing + 1]].all()):
            return self._last_end_by_cells(data)
        while last >= 0:
            quotes_before = int(np.searchsorted(quotes, last))
            if quotes_before % 2 == 0:
                return last + 1
            last = data.rfind(self.eol, 0, int(quotes[quotes_before - 1]))
        return 0

    def _last_end_by_cells(self, data: bytes) -> int:
        end = position = 0
        while (cell := _CELL.match(data, position)) is not None:
            position = cell.end()
            if cell[1].endswith(self.eol):
                end = position
        return end

    def complete_records(self, sample: bytes, size: int) -> bytes:
        """Return the complete records of a sample of `size` bytes. A shorter sample is the whole file."""
        return sample if len(sample) < size else sample[: self.last_end(sample)] or sample

    def is_open(self, data: bytes) -> bool:
        """Whether `data`, an incomplete record, ends inside a quoted cell."""
        return self.quotes and self.last_end(data + self.eol) == 0


def first_end(data: bytes) -> int:
    """Return the end of the first CSV record in `data`, with any line end; 0 if it is incomplete."""
    position = 0
    while (cell := _CELL.match(data, position)) is not None:
        position = cell.end()
        if cell[1] != b",":
            return position
    return 0


def read_records(stream: Any, size: int | None, form: RecordFormat, name: str) -> Iterator[bytes]:
    """Yield `size` bytes of the stream (None: all) as blocks of complete records of about `BLOCK_BYTES`.

    The last record needs no line end. Raises `Invalid` if it ends inside a quoted cell, or if a record is
    longer than `MAX_RECORD_BYTES`.
    """
    rest = b""
    while chunk := stream.read(BLOCK_BYTES if size is None else min(BLOCK_BYTES, size)):
        size = None if size is None else size - len(chunk)
        if form.quotes and (b'"' in chunk or b'"' in rest):
            data = rest + chunk
            end = form.last_end(data)
            block, rest = data[:end], data[end:]
        else:  # the same result with one copy less
            end = chunk.rfind(form.eol) + 1
            block, rest = (rest + memoryview(chunk)[:end], chunk[end:]) if end else (b"", rest + chunk)
        if block:
            yield block
        if len(rest) > MAX_RECORD_BYTES:
            message = f"a record of {name!r} is longer than {MAX_RECORD_BYTES >> 20} MB"
            hint = "check for a quote that is never closed" if form.quotes else "write one object per line"
            raise invalid_input(f"{message}; {hint}")
    if form.is_open(rest):
        raise invalid_input(
            f"{name!r} ends inside a quoted cell: the file is incomplete, or has an unpaired quote"
        )
    if rest:
        yield rest


def byte_ranges(opened: OpenedFile, start: int, eol: bytes) -> list[tuple[int, int]]:
    """Divide the file from `start` on into ranges of about `PART_BYTES`, each ending after an `eol`.

    Returns at least one range. Only for files in which each `eol` ends a record.
    """
    stop = opened.file.bytes
    bounds = [start]
    while bounds[-1] + PART_BYTES < stop:
        bounds.append(_after_eol(opened, bounds[-1] + PART_BYTES, eol))
    if bounds[-1] < stop or len(bounds) == 1:
        bounds.append(stop)
    return list(itertools.pairwise(bounds))


def _after_eol(opened: OpenedFile, position: int, eol: bytes) -> int:
    while chunk := opened.read_at(position, _SCAN_BYTES):
        index = chunk.find(eol)
        if index >= 0:
            return position + index + 1
        position += len(chunk)
    return position


def has_quotes(opened: OpenedFile, start: int) -> bool:
    """Whether the file contains a double quote from `start` on."""

    def scan(first: int) -> bool:
        stop = min(first + PART_BYTES, opened.file.bytes)
        return any(
            b'"' in opened.read_at(position, min(_SCAN_BYTES, stop - position))
            for position in range(first, stop, _SCAN_BYTES)
        )

    with ThreadPoolExecutor(_SCAN_THREADS) as pool:
        return any(pool.map(scan, range(start, opened.file.bytes, PART_BYTES)))
