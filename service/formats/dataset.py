"""Description of a job's input, as its plan stores it, and the rows that reading yields.

Plain data: nothing here opens a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from registry.errors import FieldError, Invalid, invalid_field
from registry.rows import Array, Rows

BATCH_ROWS = 65_536  # maximum rows per batch
BATCH_CELLS = 1 << 20  # cells that Arrow decodes at once, 8 MB; with half as many, decoding takes 20 % longer
PART_BYTES = 64 * 2**20  # size of a partition of text, and of several small row groups together


Keys = tuple[tuple[str, str | None], ...]
"""Names and values of key columns, outermost directory first. None: missing."""


class InputFile(msgspec.Struct, frozen=True):
    """A file of the input, with what is needed to notice that it changed."""

    location: str  # absolute path or object URI
    name: str  # for messages: the path within the input's directory, or the name that its user gave
    bytes: int
    fingerprint: str  # differs after every write to the file
    keys: Keys = ()  # the columns in its path, see `key_columns`


class Dataset(msgspec.Struct, frozen=True):
    """The files of an input and their columns.

    Types of CSV and JSON lines columns are inferred from the first rows of each file.
    """

    media_type: str
    files: tuple[InputFile, ...]
    columns: tuple[str, ...]
    schema: str  # the type of each column in every file, see `column_types.unpack_schema`
    keys: tuple[str, ...] = ()  # the columns that are in the paths of the files
    repeated_keys: tuple[str, ...] = ()  # those of them that the files hold as well


class FileRange(msgspec.Struct, frozen=True):
    """One partition: the range `[start, stop)` of a file.

    Units are bytes (CSV, JSON lines), row groups (Parquet) or record batches (Arrow files). Compressed text
    and Arrow streams cannot be entered in the middle: their range is the complete file.

    A Parquet partition consists of `rows` rows after the first `skip` rows of its row groups. In other
    formats `rows` is None, because only reading shows the number.
    """

    file: int  # index into `Dataset.files`
    start: int
    stop: int
    rows: int | None = None
    skip: int = 0


class RowFault(msgspec.Struct, frozen=True):
    """Why a row was not scored. A row has one fault, however many of its cells are invalid."""

    row: int  # within the partition
    id: str | None
    field: str | None  # the first invalid one
    message: str


@dataclass(slots=True)
class Batch:
    """`length` consecutive input rows.

    Valid rows are in `rows` and `extra`, in input order, all others in `faults`, so that
    `length == len(rows) + len(faults)`.
    """

    rows: Rows
    extra: Any  # pyarrow.RecordBatch: id and passthrough columns of the valid rows
    faults: list[RowFault]
    length: int


@dataclass(slots=True)
class Block:
    """Rows that a reader decodes at once.

    Row `i` of `rows` and `extra` is row `row_numbers[i]` of the block. Rows with an entry in `cell_faults`
    hold placeholders. Rows in `malformed` could not be separated into cells: they are in neither `rows` nor
    `extra`.
    """

    length: int
    rows: Rows
    extra: Any
    row_numbers: Array | None = None  # None: row `i` is row `i` of the block
    cell_faults: dict[int, list[FieldError]] = field(default_factory=dict)  # by index into `rows`
    malformed: dict[int, str] = field(default_factory=dict)  # message by row of the block

    def split(self) -> list[Block]:
        """Return the same rows in blocks of at most `BATCH_ROWS`."""
        if self.length <= BATCH_ROWS:
            return [self]
        starts = range(0, self.length, BATCH_ROWS)
        return [self.slice(start, min(start + BATCH_ROWS, self.length)) for start in starts]

    def slice(self, start: int, stop: int) -> Block:
        """Return the rows `[start, stop)` of the block."""
        if self.row_numbers is None:
            first, last, row_numbers = start, stop, None
        else:
            first, last = (int(index) for index in np.searchsorted(self.row_numbers, [start, stop]))
            row_numbers = self.row_numbers[first:last] - start
        return Block(
            length=stop - start,
            rows=self.rows.take(slice(first, last)),
            extra=self.extra.slice(first, last - first),
            row_numbers=row_numbers,
            cell_faults={
                index - first: faults for index, faults in self.cell_faults.items() if first <= index < last
            },
            malformed={row - start: text for row, text in self.malformed.items() if start <= row < stop},
        )


def batch_rows(columns: int) -> int:
    """Return how many rows of `columns` columns to decode at once."""
    return max(4096, min(BATCH_ROWS, BATCH_CELLS // max(1, columns)))


def invalid_input(message: str, field: str = "input", expected: str | None = None) -> Invalid:
    """Build an `Invalid` about the input."""
    return invalid_field(field, message, expected)


def check_suffix(name: str, directory: str, suffixes: Sequence[str]) -> None:
    """Raise `Invalid` if a file in a directory does not have a suffix of the input's format."""
    if not name.lower().endswith(tuple(suffixes)):
        raise invalid_input(
            f"{name!r} in {directory!r} does not end with {', '.join(suffixes)}; move it out: all files of a "
            "directory must have the same format"
        )
