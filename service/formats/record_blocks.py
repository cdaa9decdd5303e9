"""A byte stream cut into blocks of whole records: CSV rows, or lines.

A line end inside a quoted cell ends no row. Whether a quote opens a cell or is just a character in one is
decided as pyarrow's parser decides it: it opens a cell where it is the first thing in it. Nearly always
counting quotes tells; where it does not (`5" pipe`), the block is read cell by cell.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from service.formats.dataset import PART_BYTES, refuse
from service.formats.sources import Opened

BLOCK_BYTES = 2 * 2**20
MAX_RECORD_BYTES = 64 * 2**20  # a quote that nobody closes would make one record of all that follows

_SCAN_BYTES = 1 << 20  # stays in the processor's cache
_SCANNERS = 4

_QUOTE = 0x22
_BEFORE = np.zeros(256, dtype=bool)  # what may stand before a quote that opens a cell
_BEFORE[list(b',\r\n"')] = True
_CELL = re.compile(rb'(?:"[^"]*+(?:""[^"]*+)*+"[^,\r\n]*+|[^",\r\n][^,\r\n]*+)?(,|\r\n|\r|\n)')


class Records(NamedTuple):
    """How records end. `eol` is a line feed, or a carriage return in files without any line feed."""

    eol: bytes = b"\n"
    quotes: bool = True  # whether a cell may be quoted

    def end(self, data: bytes) -> int:
        """The end of the last whole record in `data`, which starts with a record; 0 when there is none."""
        last = data.rfind(self.eol)
        if last < 0 or not self.quotes or b'"' not in data:
            return last + 1
        return self._end_outside_quotes(data, last)

    def _end_outside_quotes(self, data: bytes, last: int) -> int:
        octets = np.frombuffer(data, dtype=np.uint8)
        quotes = np.flatnonzero(octets == _QUOTE)
        opening, closing = quotes[0::2], quotes[1::2]
        if opening[0] == 0:
            opening = opening[1:]
        regular = _BEFORE[octets[opening - 1]].all()
        if closing.size and closing[-1] == len(data) - 1:
            closing = closing[:-1]
        if not (regular and _BEFORE[octets[closing + 1]].all()):
            return self._end_by_cells(data)
        while last >= 0:
            before = int(np.searchsorted(quotes, last))
            if before % 2 == 0:
                return last + 1
            last = data.rfind(self.eol, 0, int(quotes[before - 1]))
        return 0

    def _end_by_cells(self, data: bytes) -> int:
        end = position = 0
        while (cell := _CELL.match(data, position)) is not None:
            position = cell.end()
            if cell[1].endswith(self.eol):
                end = position
        return end

    def is_open(self, data: bytes) -> bool:
        """Whether `data`, which starts with a record and has no end of one outside quotes, ends inside
        a quoted cell."""
        return self.quotes and self.end(data + self.eol) == 0


def first(data: bytes) -> int:
    """The end of the first record in `data`, whatever ends it; 0 when it is not whole."""
    position = 0
    while (cell := _CELL.match(data, position)) is not None:
        position = cell.end()
        if cell[1] != b",":
            return position
    return 0


def blocks(stream: Any, size: int | None, records: Records, name: str) -> Iterator[bytes]:
    """`size` bytes of the stream (None: all) in blocks of whole records, about `BLOCK_BYTES` each.

    The last record needs no line end. Raises `Invalid` when it ends inside a quoted cell, or when a record
    is longer than `MAX_RECORD_BYTES`.
    """
    rest = b""
    while chunk := stream.read(BLOCK_BYTES if size is None else min(BLOCK_BYTES, size)):
        size = None if size is None else size - len(chunk)
        if records.quotes and (b'"' in chunk or b'"' in rest):
            data = rest + chunk
            end = records.end(data)
            block, rest = data[:end], data[end:]
        else:  # the same with one copy of the data less
            end = chunk.rfind(records.eol) + 1
            block, rest = (rest + memoryview(chunk)[:end], chunk[end:]) if end else (b"", rest + chunk)
        if block:
            yield block
        if len(rest) > MAX_RECORD_BYTES:
            message = f"a record of {name!r} is longer than {MAX_RECORD_BYTES >> 20} MB"
            raise refuse(f"{message}; is there a quote that is never closed?")
    if records.is_open(rest):
        raise refuse(f"{name!r} ends inside a quoted cell: the file is not whole, or a quote is too many")
    if rest:
        yield rest


def ranges(opened: Opened, start: int, eol: bytes) -> list[tuple[int, int]]:
    """The file from `start` on in ranges of about `PART_BYTES`, each ending after an `eol`; at least one.

    Only for files in which each `eol` ends a record.
    """
    stop = opened.file.bytes
    marks = [start]
    while marks[-1] + PART_BYTES < stop:
        marks.append(_after_eol(opened, marks[-1] + PART_BYTES, eol))
    if marks[-1] < stop or len(marks) == 1:
        marks.append(stop)
    return list(itertools.pairwise(marks))


def _after_eol(opened: Opened, position: int, eol: bytes) -> int:
    while chunk := opened.read_at(position, _SCAN_BYTES):
        found = chunk.find(eol)
        if found >= 0:
            return position + found + 1
        position += len(chunk)
    return position


def has_quotes(opened: Opened, start: int) -> bool:
    """Whether there is a double quote anywhere from `start` on."""

    def among(at: int) -> bool:
        until = min(at + PART_BYTES, opened.file.bytes)
        return any(
            b'"' in opened.read_at(p, min(_SCAN_BYTES, until - p)) for p in range(at, until, _SCAN_BYTES)
        )

    with ThreadPoolExecutor(_SCANNERS) as pool:
        return any(pool.map(among, range(start, opened.file.bytes, PART_BYTES)))
