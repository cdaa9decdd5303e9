"""The formats by media type, and the Arrow types that every part of a dataset is brought to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from registry.errors import invalid_field
from service.formats import arrow_ipc, column_types, csv, ndjson, parquet
from service.formats.dataset import Block, Dataset, File, FileRange, refuse
from service.formats.media_types import ARROW, CSV, LINES, PARQUET
from service.formats.sources import Opened
from service.runtime.codec.columns import Column, Faults, show


class Format(NamedTuple):
    suffixes: tuple[str, ...]
    schema: Callable[[File], Any]
    cut: Callable[[Dataset, int], list[FileRange]]
    read: Callable[[Opened, FileRange, Sequence[Column], Sequence[str]], Iterator[Block]]
    tables: Callable[[Opened, FileRange, Any], Iterator[Any]]
    typed: bool  # a file says its columns' types itself


def _typed(form: Any) -> Format:
    def tables(opened: Opened, part: FileRange, schema: Any) -> Iterator[Any]:
        return (cast(b, schema, opened.file) for b in form.batches(opened, part, schema.names))

    return Format(form.SUFFIXES, form.schema, form.cut, form.read, tables, typed=True)


def _text(form: Any) -> Format:
    return Format(form.SUFFIXES, form.schema, form.cut, form.read, form.tables, typed=False)


FORMATS = {
    CSV: _text(csv),
    PARQUET: _typed(parquet),
    LINES: _text(ndjson),
    ARROW: _typed(arrow_ipc),
}


def format_of(media_type: str) -> Format:
    if media_type not in FORMATS:
        message = f"the input's media type {media_type!r} is not known"
        raise refuse(message, "input.media_type", "one of " + ", ".join(FORMATS))
    return FORMATS[media_type]


def suffix(media_type: str) -> str:
    """What the names of such files end with. Raises `Invalid` for a type that is not known."""
    return format_of(media_type).suffixes[0]


def extra_schema(dataset: Dataset, extra: Sequence[str]) -> Any:
    """The Arrow schema of `Batch.extra`: text where the format has no types. Raises `Invalid` for a column
    that does not fit into a table of plain values."""
    if not format_of(dataset.media_type).typed:
        return pa.schema([(name, pa.string()) for name in extra])
    schema = schema_of(dataset, extra)
    faults = Faults()
    for field in schema:
        kind = field.type
        if column_types.is_opaque(kind):
            message = f"column {show(field.name)} is of type {str(kind)[:100]}, which cannot be handed on"
            faults.add(message, None, field.name, "numbers, text, dates or times")
    faults.raise_any()
    return schema


def schema_of(dataset: Dataset, names: Sequence[str]) -> Any:
    """The Arrow types of `names` in every part."""
    schema = column_types.unpack(dataset.schema)
    return pa.schema([schema.field(name) for name in names])


def cast(batch: Any, schema: Any, file: File) -> Any:
    """The batch with the types of `schema`. Raises `Invalid` when a value would be lost."""
    if batch.schema.equals(schema):
        return batch
    columns = []
    for field in schema:
        column = batch.column(field.name)
        try:
            columns.append(column if column.type == field.type else _cast(column, field.type))
        except pa.ArrowException as error:
            message = f"column {show(field.name)} of {file.name!r} is no {field.type}: {str(error)[:300]}"
            raise invalid_field(field.name, message) from error
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _cast(column: Any, kind: Any) -> Any:
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column_types.as_texts(column).cast(kind)
    numbers = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    if pa.types.is_boolean(kind) and numbers:
        odd = pc.filter(column, pc.and_(pc.not_equal(column, 0), pc.not_equal(column, 1)))
        if len(odd):
            raise pa.ArrowInvalid(f"{odd[0]} is neither 0 nor 1")
    return column.cast(kind)
