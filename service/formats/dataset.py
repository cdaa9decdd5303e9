"""What planning freezes about a job's input, and what reading makes of it. Plain data, no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from registry.errors import FieldError, Invalid, invalid_field
from registry.rows import Array, Rows

BATCH_ROWS = 65_536  # at most so many rows at a time
BATCH_CELLS = 1 << 20  # 8 MB; Arrow decodes half as many at a time a fifth slower
PART_BYTES = 64 * 2**20  # a partition of text, and of small row groups together


class File(msgspec.Struct, frozen=True):
    location: str  # a path or an object's URI
    name: str  # for people: the last part of the location
    bytes: int
    fingerprint: str  # differs when the file was written to since


class Dataset(msgspec.Struct, frozen=True):
    """In CSV and JSON lines a column has the type that the first rows of each file look like."""

    media_type: str
    files: tuple[File, ...]
    columns: tuple[str, ...]
    schema: str  # see `types.unpack`: for each column the type that holds it in every file


class FileRange(msgspec.Struct, frozen=True):
    """One partition: `[start, stop)` in bytes (CSV, JSON lines), row groups (Parquet) or record batches
    (Arrow) of a file; of a compressed text and an Arrow stream, the whole file.

    Of a Parquet partition `rows` rows after the first `skip` are meant. `rows` is None where only reading
    tells.
    """

    file: int  # index into `Dataset.files`
    start: int
    stop: int
    rows: int | None = None
    skip: int = 0


class Fault(msgspec.Struct, frozen=True):
    """A row that was not scored, and why. One fault for each bad row, whatever the number of bad cells."""

    row: int  # within the partition
    id: str | None
    field: str | None  # the first bad one
    message: str


def batch_rows(columns: int) -> int:
    """How many rows of so many columns to read at a time."""
    return max(4096, min(BATCH_ROWS, BATCH_CELLS // max(1, columns)))


@dataclass(slots=True)
class Batch:
    """`length` consecutive input rows: the good ones in `rows` and `extra`, in order, the others in
    `faults`, so that `length == len(rows) + len(faults)`."""

    rows: Rows
    extra: Any  # pyarrow.RecordBatch: id and passthrough columns of the good rows
    faults: list[Fault]
    length: int


@dataclass(slots=True)
class Block:
    """What a format reads at a time. Row `i` of `rows` and `extra` is row `at[i]` of the block; rows with
    an entry in `wrong` hold placeholders; the rows of `broken` had no cells to read."""

    length: int
    rows: Rows
    extra: Any
    at: Array | None = None  # None: every row of the block
    wrong: dict[int, list[FieldError]] = field(default_factory=dict)  # keyed by index into `rows`
    broken: dict[int, str] = field(default_factory=dict)  # keyed by the row of the block

    def pieces(self) -> list[Block]:
        """The same rows in blocks of at most `BATCH_ROWS`."""
        if self.length <= BATCH_ROWS:
            return [self]
        return [self.piece(a, min(a + BATCH_ROWS, self.length)) for a in range(0, self.length, BATCH_ROWS)]

    def piece(self, a: int, b: int) -> Block:
        """The rows `[a, b)` of the block."""
        if self.at is None:
            i, j, at = a, b, None
        else:
            i, j = (int(x) for x in np.searchsorted(self.at, [a, b]))
            at = self.at[i:j] - a
        return Block(
            length=b - a,
            rows=self.rows.take(slice(i, j)),
            extra=self.extra.slice(i, j - i),
            at=at,
            wrong={k - i: faults for k, faults in self.wrong.items() if i <= k < j},
            broken={k - a: message for k, message in self.broken.items() if a <= k < b},
        )


def refuse(message: str, field: str = "input", expected: str | None = None) -> Invalid:
    """An `Invalid` about the input, ready to be raised."""
    return invalid_field(field, message, expected)


def check_kind(name: str, place: str, suffixes: Sequence[str]) -> None:
    """Raises `Invalid` when a file in a directory is not one of those that are read there."""
    if not name.lower().endswith(tuple(suffixes)):
        endings = ", ".join(suffixes)
        raise refuse(
            f"{name!r} in {place!r} does not end with {endings}; move it out: one format a directory"
        )
