"""The formats by media type, and the Arrow types that every part of a dataset is brought to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from service.batch.files import csvs, ipc, lines, parquet
from service.batch.files.dataset import Block, Dataset, File, Part, refuse
from service.batch.files.places import Opened
from service.batch.media import ARROW, CSV, LINES, PARQUET
from service.runtime.codec.columns import Column, Faults, show


class Format(NamedTuple):
    suffixes: tuple[str, ...]
    schema: Callable[[File], Any]
    cut: Callable[[Dataset, int], list[Part]]
    read: Callable[[Opened, Part, Sequence[Column], Sequence[str]], Iterator[Block]]
    tables: Callable[[Opened, Part, Any], Iterator[Any]]
    typed: bool  # a file says its columns' types itself


def _typed(form: Any) -> Format:
    def tables(opened: Opened, part: Part, schema: Any) -> Iterator[Any]:
        return (cast(b, schema, opened.file) for b in form.batches(opened, part, schema.names))

    return Format(form.SUFFIXES, form.schema, form.cut, form.read, tables, typed=True)


def _text(form: Any) -> Format:
    return Format(form.SUFFIXES, form.schema, form.cut, form.read, form.tables, typed=False)


FORMATS = {
    CSV: _text(csvs),
    PARQUET: _typed(parquet),
    LINES: _text(lines),
    ARROW: _typed(ipc),
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
        if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            message = f"column {show(field.name)} is of type {str(kind)[:100]}, which cannot be handed on"
            faults.add(message, None, field.name, "numbers, text, dates or times")
    faults.raise_any()
    return schema


def schema_of(dataset: Dataset, names: Sequence[str]) -> Any:
    """The Arrow types of `names` in every part: those of the first file, or in text what its first rows
    look like."""
    form = format_of(dataset.media_type)
    if not form.typed:
        types = dict(zip(dataset.columns, dataset.types, strict=True))
        return pa.schema([(name, pa.type_for_alias(types[name])) for name in names])
    schema = form.schema(dataset.files[0])
    return pa.schema([(name, _plain(schema.field(name).type)) for name in names])


def _plain(kind: Any) -> Any:
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    return pa.string() if pa.types.is_string_view(kind) else kind


def cast(batch: Any, schema: Any, file: File) -> Any:
    """The batch with the types of `schema`. Raises `Invalid` when a value would be lost."""
    if batch.schema.equals(schema):
        return batch
    try:
        return batch.cast(schema)
    except pa.ArrowException as error:
        raise refuse(f"{file.name!r} has other types than the first file: {str(error)[:300]}") from error
