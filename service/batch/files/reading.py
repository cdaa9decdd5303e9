"""One way to read every format: open and freeze a dataset, cut it into parts, read a part in batches.

The values follow the online codecs. A row that the model cannot take is a `Fault`, never an exception; a
file that is damaged, or no longer the one that was planned, is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from registry.errors import FieldError, Invalid
from service.batch.files import csvs, lines, parquet
from service.batch.files.dataset import Batch, Block, Dataset, Fault, File, Part, refuse
from service.batch.files.places import Opened, listed
from service.runtime.codec.columns import Column, Faults, rows_of, show

MAX_MESSAGES = 5  # of one row in the errors file

Reader = Callable[[Opened, Part, Sequence[Column], Sequence[str]], Iterator[Block]]


class _Format(NamedTuple):
    suffixes: tuple[str, ...]
    schema: Callable[[File], Any]
    cut: Callable[[Dataset, int], list[Part]]
    read: Reader
    typed: bool  # a file says its columns' types itself


FORMATS = {
    "text/csv": _Format(csvs.SUFFIXES, csvs.schema, csvs.cut, csvs.read, typed=False),
    "application/x-ndjson": _Format(lines.SUFFIXES, lines.schema, lines.cut, lines.read, typed=False),
    "application/vnd.apache.parquet": _Format(
        parquet.SUFFIXES, parquet.schema, parquet.cut, parquet.read, typed=True
    ),
}


def open_dataset(location: str, media_type: str) -> Dataset:
    """The file at `location`, or all files of that format in the directory there, in the order of their
    names. Raises `Invalid` when one is empty, damaged, of another format, or has other columns."""
    form = _format(media_type)
    files = listed(location, form.suffixes)
    schemas = [form.schema(_not_empty(f)) for f in files]
    first = schemas[0]
    for file, schema in zip(files, schemas, strict=True):
        _check_twice(file, schema.names)
        if set(schema.names) != set(first.names):
            odd = sorted(set(schema.names) ^ set(first.names))
            raise Invalid(
                f"{file.name!r} and {files[0].name!r} differ in the columns {', '.join(map(show, odd[:5]))}",
                [FieldError("in one file and not in another", field=n) for n in odd],
            )
    return Dataset(media_type, tuple(files), tuple(first.names), tuple(str(f.type) for f in first))


def split(dataset: Dataset) -> list[Part]:
    """The partitions in the order of the input; at least one, which may be empty."""
    form = _format(dataset.media_type)
    parts = [part for index in range(len(dataset.files)) for part in form.cut(dataset, index)]
    return [p for p in parts if p.rows != 0] or parts[:1]


def read(
    dataset: Dataset, part: Part, columns: Sequence[Column], extra: Sequence[str], id_column: str | None
) -> Iterator[Batch]:
    """The part in batches of at most `BATCH_ROWS` input rows; `extra` names the id and passthrough columns
    to hand on. Raises `Changed` when the file is not the one that was planned, `Invalid` when it cannot be
    read or lacks a column."""
    _check_names(dataset, columns, extra)
    with Opened(dataset.files[part.file]) as opened:
        base = 0
        for block in _format(dataset.media_type).read(opened, part, columns, extra):
            for piece in block.pieces():
                yield _batch(piece, base, extra, id_column)
                base += piece.length
        opened.check()


def check_head(
    dataset: Dataset, columns: Sequence[Column], extra: Sequence[str], id_column: str | None, rows: int
) -> Batch:
    """The first rows, at most `rows`, as `read` will see them. Raises what `read` raises; `Invalid` names
    each column that the input does not have, or has in another type."""
    _check_names(dataset, columns, extra)
    part = Part(0, 0, 1 if _format(dataset.media_type).typed else dataset.files[0].bytes)
    with Opened(dataset.files[0]) as opened:
        for block in _format(dataset.media_type).read(opened, part, columns, extra):
            return _batch(block.piece(0, min(rows, block.length)), 0, extra, id_column)
    empty = rows_of(columns, [c.array([]) for c in columns], 0)
    return Batch(empty, extra_schema(dataset, extra).empty_table().to_batches(), [], 0)


def extra_schema(dataset: Dataset, extra: Sequence[str]) -> Any:
    """The Arrow schema of `Batch.extra`: text where the format has no types."""
    form = _format(dataset.media_type)
    if not form.typed:
        return pa.schema([(name, pa.string()) for name in extra])
    schema = form.schema(dataset.files[0])
    return pa.schema([schema.field(name) for name in extra])


def suffix(media_type: str) -> str:
    """What the names of such files end with. Raises `Invalid` for a type that is not known."""
    return _format(media_type).suffixes[0]


def _check_names(dataset: Dataset, columns: Sequence[Column], extra: Sequence[str]) -> None:
    faults = Faults()
    for column in columns:
        if column.name not in dataset.columns:
            message = f"column {show(column.name)} is missing; {column.advice}"
            faults.add(message, None, column.name, column.expected)
    for name in extra:
        if name not in dataset.columns:
            faults.add_unknown("is no column of the input", name, dataset.columns)
    faults.raise_any()


def _batch(block: Block, base: int, extra: Sequence[str], id_column: str | None) -> Batch:
    faults = [Fault(base + row, None, None, message) for row, message in block.broken.items()]
    if not block.wrong:
        return Batch(block.rows, block.extra, faults, block.length)
    ids = block.extra.column(extra.index(id_column)) if id_column in extra else None
    for index, wrong in block.wrong.items():
        row = index if block.at is None else int(block.at[index])
        name = None if ids is None or not ids[index].is_valid else str(ids[index].as_py())
        messages = "; ".join(w.message for w in wrong[:MAX_MESSAGES])
        faults.append(Fault(base + row, name, wrong[0].field, messages))
    faults.sort(key=lambda f: f.row)
    good = np.ones(len(block.rows), dtype=bool)
    good[list(block.wrong)] = False
    kept = block.extra.filter(pa.array(good)) if extra else block.extra
    return Batch(block.rows.take(good), kept, faults, block.length)


def _format(media_type: str) -> _Format:
    if media_type not in FORMATS:
        message = f"the input's media type {media_type!r} is not known"
        raise refuse(message, "input.media_type", "one of " + ", ".join(FORMATS))
    return FORMATS[media_type]


def _not_empty(file: File) -> File:
    if file.bytes == 0:
        raise refuse(f"the file {file.name!r} is empty")
    return file


def _check_twice(file: File, names: Sequence[str]) -> None:
    twice = sorted({n for n in names if list(names).count(n) > 1})
    if twice:
        message = f"{file.name!r} has the column {show(twice[0])} more than once"
        raise Invalid(message, [FieldError("there more than once", field=n) for n in twice])
