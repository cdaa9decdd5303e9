"""Reading of a job's input in every format: open a dataset, split it into parts, read a part in batches.

Each format has a reader module with the functions of `FormatReader`. Values are checked as in online
predictions. A row that the model does not accept is a `RowFault`, never an exception. A file that is
damaged, or that is not the planned file any more, raises an exception.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from registry.errors import FieldError, Invalid
from registry.media_types import ARROW, CSV, NDJSON, PARQUET, TEXT_TYPES, input_suffixes
from registry.text_tables import other_separator
from service.formats import arrow_reader, column_types, csv_reader, ndjson_reader, parquet_reader
from service.formats.column_types import cast_batch, schema_of
from service.formats.dataset import Batch, Block, Dataset, FileRange, InputFile, RowFault, invalid_input
from service.formats.sources import OpenedFile, list_files
from service.runtime.codec.columns import MAX_HINTS, Column, Faults, rows_of, show

MAX_MESSAGES = 5  # messages per row in the errors file
MAX_ID = 10_000  # characters of a row's id in the errors file: CSV readers limit the length of a cell


class FormatReader(Protocol):
    """The functions of a reader module. `extra` names the id and passthrough columns."""

    def read_schema(self, file: InputFile) -> Any:
        """Return the Arrow schema of a file. Raises `Invalid` if it does not have the format."""

    def split_file(self, dataset: Dataset, index: int) -> list[FileRange]:
        """Divide a file into parts; returns at least one."""

    def read_blocks(
        self, opened: OpenedFile, part: FileRange, columns: Sequence[Column], extra: Sequence[str]
    ) -> Iterator[Block]:
        """Yield checked rows, for scoring."""

    def read_record_batches(self, opened: OpenedFile, part: FileRange, schema: Any) -> Iterator[Any]:
        """Yield Arrow record batches with the columns of `schema`, for training."""


READERS: dict[str, FormatReader] = {
    CSV: csv_reader,
    PARQUET: parquet_reader,
    NDJSON: ndjson_reader,
    ARROW: arrow_reader,
}


def open_dataset(
    location: str, media_type: str, uniform: bool = False, dtypes: Mapping[str, str] | None = None
) -> Dataset:
    """Describe the file at `location`, or all files of the directory at `location`, sorted by name.

    With `uniform`, a column must be text in all files or in none, and JSON lines files must have the same
    keys. `dtypes` sets types of columns instead of inferring them.

    Raises `Invalid` if a file is empty or damaged, has another format, or has other columns than the first.
    """
    reader = _reader_of(media_type)
    files = list_files(location, input_suffixes(media_type))
    schemas = {file.name: reader.read_schema(_require_bytes(file)) for file in files}
    first = files[0].name
    for name, schema in schemas.items():
        _reject_repeated_columns(name, schema.names)
        if uniform or media_type != NDJSON:
            _require_same_columns(name, schema.names, first, schemas[first].names)
    columns = list(dict.fromkeys(name for schema in schemas.values() for name in schema.names))
    schema = column_types.unify_schemas(schemas, columns, uniform, dtypes or {})
    if media_type in TEXT_TYPES:
        schema = column_types.replace_null_types(schema)
    return Dataset(media_type, tuple(files), tuple(columns), column_types.pack_schema(schema))


def _reader_of(media_type: str) -> FormatReader:
    if media_type not in READERS:
        message = f"the input's media type {media_type!r} is not supported"
        raise invalid_input(message, "input.media_type", "one of " + ", ".join(READERS))
    return READERS[media_type]


def _require_bytes(file: InputFile) -> InputFile:
    if file.bytes == 0:
        raise invalid_input(f"the file {file.name!r} is empty")
    return file


def _reject_repeated_columns(file: str, names: Sequence[str]) -> None:
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        message = f"{file!r} has the column {show(repeated[0])} more than once"
        raise Invalid(message, [FieldError("the column is repeated", field=name) for name in repeated])


def _require_same_columns(
    file: str, names: Sequence[str], first_file: str, first_names: Sequence[str]
) -> None:
    if differing := sorted(set(names) ^ set(first_names)):
        raise Invalid(
            f"{file!r} and {first_file!r} differ in the columns {', '.join(map(show, differing[:5]))}",
            [FieldError("the column is not in all files", field=name) for name in differing],
        )


def split(dataset: Dataset, lanes: int | None = None) -> list[FileRange]:
    """Divide the dataset into partitions, in the order of the input. The only one may be empty.

    With `lanes`, the sizes are chosen so that as many lanes are busy until the end.
    """
    reader = _reader_of(dataset.media_type)
    parts = [part for index in range(len(dataset.files)) for part in reader.split_file(dataset, index)]
    parts = [part for part in parts if part.rows != 0] or parts[:1]
    if lanes is not None and dataset.media_type == PARQUET:
        return parquet_reader.balance(parts, lanes)
    return parts


def extra_schema(dataset: Dataset, extra: Sequence[str]) -> Any:
    """Return the Arrow schema of `Batch.extra`. Columns of text formats remain text.

    Raises `Invalid` for a column whose values cannot be copied to an output.
    """
    if dataset.media_type in TEXT_TYPES:
        return pa.schema([(name, pa.string()) for name in extra])
    schema = schema_of(dataset, extra)
    faults = Faults()
    for field in schema:
        if column_types.is_opaque(field.type):
            type_name = str(field.type)[:100]
            message = (
                f"column {show(field.name)} has the type {type_name}, which cannot be copied to the output; "
                "convert it to text"
            )
            faults.add(message, None, field.name, "numbers, text, dates or times")
    faults.raise_any()
    return schema


def read_head(
    dataset: Dataset, columns: Sequence[Column], extra: Sequence[str], id_column: str | None, rows: int
) -> Batch:
    """Return the first rows, at most `rows`, as `read_batches` yields them.

    Raises the same errors as `read_batches`, and `Invalid` naming each column that the input lacks or that
    has a wrong type.
    """
    reader, file = _reader_of(dataset.media_type), dataset.files[0]
    _require_columns(dataset, columns, extra)
    schema = extra_schema(dataset, extra)
    part = FileRange(0, 0, file.bytes if dataset.media_type in TEXT_TYPES else 1)
    with OpenedFile(file) as opened:
        for block in reader.read_blocks(opened, part, columns, extra):
            block.extra = cast_batch(block.extra, schema, file)
            return _to_batch(block.slice(0, min(rows, block.length)), 0, extra, id_column)
    no_rows = rows_of(columns, [c.array([]) for c in columns], 0)
    return Batch(no_rows, pa.RecordBatch.from_pylist([], schema=schema), [], 0)


def read_batches(
    dataset: Dataset, part: FileRange, columns: Sequence[Column], extra: Sequence[str], id_column: str | None
) -> Iterator[Batch]:
    """Yield the part in batches of at most `BATCH_ROWS` input rows, for scoring.

    `extra` names the id and passthrough columns. Raises `Changed` if the file is not the planned one, and
    `Invalid` if it cannot be read or lacks a column.
    """
    _require_columns(dataset, columns, extra)
    schema = extra_schema(dataset, extra)
    with OpenedFile(dataset.files[part.file]) as opened:
        first_row = 0
        for block in _reader_of(dataset.media_type).read_blocks(opened, part, columns, extra):
            block.extra = cast_batch(block.extra, schema, opened.file)
            for piece in block.split():
                yield _to_batch(piece, first_row, extra, id_column)
                first_row += piece.length
        opened.check_unchanged()


def read_record_batches(dataset: Dataset, part: FileRange, columns: Sequence[str]) -> Iterator[Any]:
    """Yield Arrow record batches of `columns` with the same types in every part, for training.

    Raises `Invalid` if a cell cannot be converted to its column's type.
    """
    _require_columns(dataset, (), columns)
    schema = schema_of(dataset, columns)
    with OpenedFile(dataset.files[part.file]) as opened:
        for batch in _reader_of(dataset.media_type).read_record_batches(opened, part, schema):
            yield cast_batch(batch, schema, opened.file)
        opened.check_unchanged()


def _require_columns(dataset: Dataset, columns: Sequence[Column], extra: Sequence[str]) -> None:
    """Raise `Invalid` naming each feature, id or passthrough column that the input lacks."""
    faults = Faults()
    unused = set(dataset.columns) - {c.name for c in columns}
    for column in columns:
        if column.name not in dataset.columns:
            close = _close_name(column.name, unused) if len(faults) < MAX_HINTS else None
            hint = f"did you mean {show(close)}?" if close else column.advice
            faults.add(f"column {show(column.name)} is missing; {hint}", None, column.name, column.expected)
    for name in extra:
        if name not in dataset.columns:
            faults.add_unknown("is not a column of the input", name, dataset.columns)
    if faults:
        check_separator(dataset)
    faults.raise_any()


def _close_name(name: str, candidates: Collection[str]) -> str | None:
    """Return a candidate that differs from `name` in case or spaces only, else the most similar one."""
    names = sorted(candidates)[:1000]
    same = [n for n in names if n.strip().casefold() == name.strip().casefold()]
    return next(iter(same or difflib.get_close_matches(name[:200], names, n=1)), None)


def check_separator(dataset: Dataset) -> None:
    """Raise `Invalid` if the only column of a CSV looks like a header with another separator."""
    if (
        dataset.media_type == CSV
        and len(dataset.columns) == 1
        and (mark := other_separator(dataset.columns[0]))
    ):
        header = show(dataset.columns[0])
        raise invalid_input(
            f"the header {header} seems to be separated by {mark}; write commas between columns"
        )


def _to_batch(block: Block, first_row: int, extra: Sequence[str], id_column: str | None) -> Batch:
    """Separate valid rows and faults. The block's first row is row `first_row` of the part."""
    faults = [RowFault(first_row + row, None, None, message) for row, message in block.malformed.items()]
    if not block.cell_faults:
        return Batch(block.rows, block.extra, faults, block.length)
    ids = block.extra.column(extra.index(id_column)) if id_column in extra else None
    for index, errors in block.cell_faults.items():
        row = index if block.row_numbers is None else int(block.row_numbers[index])
        row_id = None if ids is None else _id_text(ids[index])
        messages = "; ".join(error.message for error in errors[:MAX_MESSAGES])
        faults.append(RowFault(first_row + row, row_id, errors[0].field, messages))
    faults.sort(key=lambda fault: fault.row)
    valid = np.ones(len(block.rows), dtype=bool)
    valid[list(block.cell_faults)] = False
    valid_extra = block.extra.filter(pa.array(valid)) if extra else block.extra
    return Batch(block.rows.take(valid), valid_extra, faults, block.length)


def add_faults(batch: Batch, first_row: int, messages: Mapping[int, str], id_column: str | None) -> Batch:
    """Turn rows of `batch.rows` into faults with these messages, by index of the row.

    The batch's first row is row `first_row` of the part.
    """
    if not messages:
        return batch
    known = [fault.row - first_row for fault in batch.faults]
    row_numbers = np.delete(np.arange(batch.length), known)
    ids = None if id_column is None else batch.extra.column(id_column)
    faults = [
        RowFault(
            first_row + int(row_numbers[index]), None if ids is None else _id_text(ids[index]), None, text
        )
        for index, text in messages.items()
    ]
    valid = np.ones(len(batch.rows), dtype=bool)
    valid[list(messages)] = False
    return Batch(
        batch.rows.take(valid),
        batch.extra.filter(pa.array(valid)) if batch.extra.num_columns else batch.extra,
        sorted([*batch.faults, *faults], key=lambda fault: fault.row),
        batch.length,
    )


def _id_text(cell: Any) -> str | None:
    """Return an id as text, for the errors file; None if it is missing."""
    if not cell.is_valid:
        return None
    if pa.types.is_temporal(cell.type):  # Python's datetime lacks nanoseconds, and years beyond 9999
        try:
            cell = cell.cast(pa.string())
        except pa.ArrowException:  # durations, and time zones that are not installed
            return f"{cell.value} {cell.type}"
    return str(cell.as_py())[:MAX_ID]
