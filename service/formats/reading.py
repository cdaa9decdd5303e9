"""One way to read every format: open and freeze a dataset, cut it into parts, read a part in batches.

The values follow the online codecs. A row that the model cannot take is a `Fault`, never an exception; a
file that is damaged, or no longer the one that was planned, is.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from registry.errors import FieldError, Invalid
from registry.text_codes import separator
from service.formats import column_types
from service.formats.dataset import Batch, Block, Dataset, Fault, File, FileRange, refuse
from service.formats.format_table import cast, extra_schema, format_of, schema_of
from service.formats.media_types import CSV, LINES
from service.formats.sources import Opened, listed
from service.runtime.codec.columns import MAX_HINTS, Column, Faults, rows_of, show

MAX_MESSAGES = 5  # of one row in the errors file
MAX_ID = 10_000  # characters of a row's id there: readers of CSV take no cell without end


def open_dataset(
    location: str, media_type: str, alike: bool = False, dtypes: Mapping[str, str] | None = None
) -> Dataset:
    """The file at `location`, or all files of that format in the directory there, in the order of their
    names. `alike`: a column is text in all of them or in none, and each key of JSON lines is in all of them.
    `dtypes` says what columns hold, whatever they look like.

    Raises `Invalid` when a file is empty, damaged, of another format, or has other columns.
    """
    form = format_of(media_type)
    files = listed(location, form.suffixes)
    schemas = {f.name: form.schema(_not_empty(f)) for f in files}
    names = list(dict.fromkeys(n for s in schemas.values() for n in s.names))
    first = schemas[files[0].name]
    for file, schema in schemas.items():
        _check_twice(file, schema.names)
        if set(schema.names) != set(first.names) and (alike or media_type != LINES):
            odd = sorted(set(schema.names) ^ set(first.names))
            raise Invalid(
                f"{file!r} and {files[0].name!r} differ in the columns {', '.join(map(show, odd[:5]))}",
                [FieldError("in one file and not in another", field=n) for n in odd],
            )
    schema = column_types.merged(schemas, names, alike, dtypes or {})
    return Dataset(
        media_type,
        tuple(files),
        tuple(names),
        column_types.pack(schema if form.typed else column_types.not_null(schema)),
    )


def split(dataset: Dataset) -> list[FileRange]:
    """The partitions in the order of the input; at least one, which may be empty."""
    cut = format_of(dataset.media_type).cut
    parts = [part for index in range(len(dataset.files)) for part in cut(dataset, index)]
    return [p for p in parts if p.rows != 0] or parts[:1]


def check_head(
    dataset: Dataset, columns: Sequence[Column], extra: Sequence[str], id_column: str | None, rows: int
) -> Batch:
    """The first rows, at most `rows`, as `read` will see them. Raises what `read` raises; `Invalid` names
    each column that the input does not have, or has in another type."""
    form, file = format_of(dataset.media_type), dataset.files[0]
    _check_names(dataset, columns, extra)
    schema = extra_schema(dataset, extra)
    with Opened(file) as opened:
        for block in form.read(opened, FileRange(0, 0, 1 if form.typed else file.bytes), columns, extra):
            block.extra = cast(block.extra, schema, file)
            return _batch(block.piece(0, min(rows, block.length)), 0, extra, id_column)
    empty = rows_of(columns, [c.array([]) for c in columns], 0)
    return Batch(empty, pa.RecordBatch.from_pylist([], schema=schema), [], 0)


def read(
    dataset: Dataset, part: FileRange, columns: Sequence[Column], extra: Sequence[str], id_column: str | None
) -> Iterator[Batch]:
    """The part in batches of at most `BATCH_ROWS` input rows; `extra` names the id and passthrough columns
    to hand on. Raises `Changed` when the file is not the one that was planned, `Invalid` when it cannot be
    read or lacks a column."""
    _check_names(dataset, columns, extra)
    schema = extra_schema(dataset, extra)
    with Opened(dataset.files[part.file]) as opened:
        base = 0
        for block in format_of(dataset.media_type).read(opened, part, columns, extra):
            block.extra = cast(block.extra, schema, opened.file)
            for piece in block.pieces():
                yield _batch(piece, base, extra, id_column)
                base += piece.length
        opened.check()


def tables(dataset: Dataset, part: FileRange, columns: Sequence[str]) -> Iterator[Any]:
    """The part as record batches of `columns`, of the same types in every part. For training: a cell that is
    not of its column's type raises `Invalid`."""
    _check_names(dataset, (), columns)
    schema = schema_of(dataset, columns)
    with Opened(dataset.files[part.file]) as opened:
        yield from format_of(dataset.media_type).tables(opened, part, schema)
        opened.check()


def _check_names(dataset: Dataset, columns: Sequence[Column], extra: Sequence[str]) -> None:
    """Raises `Invalid` naming each feature, id or passthrough column that the input does not have."""
    faults = Faults()
    spare = set(dataset.columns) - {c.name for c in columns}
    for column in columns:
        if column.name not in dataset.columns:
            close = _close(column.name, spare) if len(faults) < MAX_HINTS else None
            hint = f"did you mean {show(close)}?" if close else column.advice
            faults.add(f"column {show(column.name)} is missing; {hint}", None, column.name, column.expected)
    for name in extra:
        if name not in dataset.columns:
            faults.add_unknown("is no column of the input", name, dataset.columns)
    if faults:
        check_commas(dataset)
    faults.raise_any()


def _close(name: str, among: Collection[str]) -> str | None:
    """Which of them differs from `name` in case or spaces, or else in little."""
    found = sorted(among)[:1000]
    alike = [n for n in found if n.strip().casefold() == name.strip().casefold()]
    return next(iter(alike or difflib.get_close_matches(name[:200], found, n=1)), None)


def check_commas(dataset: Dataset) -> None:
    """Raises `Invalid` when all of a CSV's header looks like several columns between other separators."""
    if dataset.media_type == CSV and len(dataset.columns) == 1 and (mark := separator(dataset.columns[0])):
        header = show(dataset.columns[0])
        raise refuse(f"the header {header} seems to be separated by {mark}; write commas between columns")


def _batch(block: Block, base: int, extra: Sequence[str], id_column: str | None) -> Batch:
    faults = [Fault(base + row, None, None, message) for row, message in block.broken.items()]
    if not block.wrong:
        return Batch(block.rows, block.extra, faults, block.length)
    ids = block.extra.column(extra.index(id_column)) if id_column in extra else None
    for index, wrong in block.wrong.items():
        row = index if block.at is None else int(block.at[index])
        name = None if ids is None or not ids[index].is_valid else str(ids[index].as_py())[:MAX_ID]
        messages = "; ".join(w.message for w in wrong[:MAX_MESSAGES])
        faults.append(Fault(base + row, name, wrong[0].field, messages))
    faults.sort(key=lambda f: f.row)
    good = np.ones(len(block.rows), dtype=bool)
    good[list(block.wrong)] = False
    kept = block.extra.filter(pa.array(good)) if extra else block.extra
    return Batch(block.rows.take(good), kept, faults, block.length)


def _not_empty(file: File) -> File:
    if file.bytes == 0:
        raise refuse(f"the file {file.name!r} is empty")
    return file


def _check_twice(file: str, names: Sequence[str]) -> None:
    twice = sorted(n for n, count in Counter(names).items() if count > 1)
    if twice:
        message = f"{file!r} has the column {show(twice[0])} more than once"
        raise Invalid(message, [FieldError("there more than once", field=n) for n in twice])
