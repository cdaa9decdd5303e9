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

import msgspec
import numpy as np
import pyarrow as pa

from registry.errors import FieldError, Invalid
from registry.media_types import ARROW, CSV, NDJSON, PARQUET, TEXT_TYPES, input_suffixes
from registry.text_tables import other_separator
from service.formats import (
    arrow_reader,
    column_types,
    csv_reader,
    file_kinds,
    key_columns,
    ndjson_reader,
    parquet_reader,
)
from service.formats.column_types import cast_batch, schema_of
from service.formats.dataset import Batch, Block, Dataset, FileRange, InputFile, RowFault, invalid_input
from service.formats.sources import OpenedFile, list_files
from service.formats.text_records import open_text
from service.runtime.codec.arrow import check_type
from service.runtime.codec.columns import MAX_HINTS, Column, Faults, rows_of, show
from service.runtime.codec.json import read_json

MAX_MESSAGES = 5  # messages per row in the errors file
MAX_BLANK_BYTES = 4096  # larger files are not searched for a first character
MAX_EMPTY_PARQUET_BYTES = 1 << 16  # the rows of larger files are not counted before planning
MAX_NESTED_BYTES = 1 << 16  # of the first row, in which a missing column is searched for
UTF8_BOM = b"\xef\xbb\xbf"
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
    location: str,
    media_type: str,
    uniform: bool = False,
    dtypes: Mapping[str, str] | None = None,
    *,
    name: str | None = None,
    features: Sequence[Column] = (),
) -> Dataset:
    """Describe the file at `location`, or all files of the directory at `location`, sorted by path.

    With `uniform`, a column must be text in all files or in none, and JSON lines files must have the same
    keys. `dtypes` sets types of columns instead of inferring them. `name` is the user's name of a single
    file. A file that holds nothing, not even a header, is left out if another file holds something.

    Raises `Invalid` if all files are empty, and if a file is damaged, has another format, has other columns
    than the first, or a column whose type one of the `features` cannot have.
    """
    reader = _reader_of(media_type)
    files, schemas = _read_schemas(list_files(location, input_suffixes(media_type), name), reader, media_type)
    keys = key_columns.require_same_keys(files)
    first = files[0].name
    for file_name, schema in schemas.items():
        _reject_repeated_columns(file_name, schema.names)
        if uniform or media_type != NDJSON:
            _require_same_columns(file_name, schema.names, first, schemas[first].names)
    _check_types(schemas, media_type, features)
    key_types = list(key_columns.key_types(files, keys))
    columns = list(dict.fromkeys([*(n for schema in schemas.values() for n in schema.names), *keys]))
    repeated = tuple(key for key in keys if any(key in schema.names for schema in schemas.values()))
    schemas = {
        file_name: pa.schema([*schema, *(f for f in key_types if f.name not in repeated)])
        for file_name, schema in schemas.items()
    }
    schema = column_types.unify_schemas(schemas, columns, uniform, dtypes or {})
    if media_type in TEXT_TYPES:
        schema = column_types.replace_null_types(schema)
    packed = column_types.pack_schema(schema)
    return Dataset(media_type, tuple(files), tuple(columns), packed, keys, repeated)


def _reader_of(media_type: str) -> FormatReader:
    if media_type not in READERS:
        message = f"the input's media type {media_type!r} is not supported"
        raise invalid_input(message, "input.media_type", "one of " + ", ".join(READERS))
    return READERS[media_type]


def _read_schemas(
    listed: Sequence[InputFile], reader: FormatReader, media_type: str
) -> tuple[list[InputFile], dict[str, Any]]:
    """Return the files that hold something, and their schemas by name. Raises `Invalid` without any."""
    files = [file for file in listed if not _is_empty(file, media_type)]
    if not files:
        raise invalid_input(_describe_empty(listed))
    schemas = {file.name: _read_schema(reader, media_type, file) for file in files}
    if len(files) > 1 and media_type == PARQUET:
        # pandas writes a table without rows with other types, or without columns
        files = [file for file in files if _may_have_rows(file)] or files[:1]
    return files, {file.name: schemas[file.name] for file in files}


def _read_schema(reader: FormatReader, media_type: str, file: InputFile) -> Any:
    """Return the schema of a file. Raises `Invalid` that names what another file is instead."""
    try:
        schema = reader.read_schema(file)
        schema.names  # noqa: B018 - pyarrow decodes names here
    except UnicodeDecodeError as error:
        name = error.object.decode(errors="backslashreplace")
        message = f"{file.name!r} has a column whose name is not valid UTF-8, {show(name)}; rename it"
        raise invalid_input(message, expected="UTF-8") from error
    except Invalid as error:
        _reject_other_kind(file, media_type, error)
        raise
    return schema


def _reject_other_kind(file: InputFile, media_type: str, error: Invalid | None = None) -> None:
    """Raise `Invalid` if the file is recognized as one of another kind."""
    with OpenedFile(file) as opened:
        kind = file_kinds.recognize(opened.read_at(0, file_kinds.HEAD_BYTES), media_type)
    if kind is not None:
        raise invalid_input(f"{file.name!r} is {kind}", expected=media_type) from error


def _is_empty(file: InputFile, media_type: str) -> bool:
    """Whether a file holds nothing: no bytes, or compressed or blank text without a header."""
    if file.bytes == 0:
        return True
    if media_type not in TEXT_TYPES or file.bytes > MAX_BLANK_BYTES:
        return False
    with OpenedFile(file) as opened:
        return not open_text(opened).read(MAX_BLANK_BYTES).removeprefix(UTF8_BOM).strip()


def _may_have_rows(file: InputFile) -> bool:
    return file.bytes > MAX_EMPTY_PARQUET_BYTES or parquet_reader.count_rows(file) > 0


def _describe_empty(files: Sequence[InputFile]) -> str:
    if len(files) == 1:
        return f"the file {files[0].name!r} is empty"
    names = ", ".join(repr(file.name) for file in files[:3])
    return f"all {len(files)} files of the input are empty: {names}" + ", ..." * (len(files) > 3)


def _check_types(schemas: Mapping[str, Any], media_type: str, features: Sequence[Column]) -> None:
    """Raises `Invalid` naming each column of a format with types whose type a feature cannot have."""
    if media_type in TEXT_TYPES:
        return
    for file, schema in schemas.items():
        faults = Faults()
        for column in features:
            if column.name in schema.names:
                check_type(column, schema.field(column.name), faults)
        if faults and len(schemas) > 1:
            faults[0] = msgspec.structs.replace(faults[0], message=f"{file!r}: {faults[0].message}")
        faults.raise_any()


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
    schema = pa.schema([f.with_type(pa.string()) if f.name in dataset.keys else f for f in schema])
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
    _require_columns(dataset, columns, extra)
    schema = extra_schema(dataset, extra)
    for index, file in enumerate(dataset.files):
        part = FileRange(index, 0, file.bytes if dataset.media_type in TEXT_TYPES else 1)
        with OpenedFile(file) as opened:
            for block in _read_blocks(opened, dataset, part, columns, extra, schema):
                if block.length:
                    return _to_batch(block.slice(0, min(rows, block.length)), 0, extra, id_column)
    no_rows = rows_of(columns, [c.array([]) for c in columns], 0)
    return Batch(no_rows, pa.RecordBatch.from_pylist([], schema=schema), [], 0)


def _read_blocks(
    opened: OpenedFile,
    dataset: Dataset,
    part: FileRange,
    columns: Sequence[Column],
    extra: Sequence[str],
    schema: Any,
) -> Iterator[Block]:
    """Yield the rows of a part. `schema`: the types of the `extra` columns."""
    reader, file = _reader_of(dataset.media_type), dataset.files[part.file]
    own = set(key_columns.own_columns(dataset, dataset.columns))
    own_features = [column for column in columns if column.name in own]
    for block in reader.read_blocks(opened, part, own_features, [name for name in extra if name in own]):
        if dataset.keys:
            block = key_columns.add_keys(block, dataset, file, columns, extra)
        block.extra = cast_batch(block.extra, schema, file)
        yield block


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
        for block in _read_blocks(opened, dataset, part, columns, extra, schema):
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
    own_names = (
        key_columns.own_columns(dataset, columns) or key_columns.own_columns(dataset, dataset.columns)[:1]
    )
    own = schema_of(dataset, own_names)
    with OpenedFile(dataset.files[part.file]) as opened:
        for batch in _reader_of(dataset.media_type).read_record_batches(opened, part, own):
            if dataset.keys:
                batch = key_columns.add_training_keys(batch, dataset, opened.file, columns)
            yield cast_batch(batch, schema, opened.file)
        opened.check_unchanged()


def _require_columns(dataset: Dataset, columns: Sequence[Column], extra: Sequence[str]) -> None:
    """Raise `Invalid` naming each feature, id or passthrough column that the input lacks."""
    faults = Faults()
    unused = set(dataset.columns) - {c.name for c in columns}
    for column in columns:
        if column.name not in dataset.columns:
            hint = _missing_hint(dataset, column, unused) if len(faults) < MAX_HINTS else column.advice
            faults.add(f"column {show(column.name)} is missing; {hint}", None, column.name, column.expected)
    for name in extra:
        if name not in dataset.columns:
            faults.add_unknown("is not a column of the input", name, dataset.columns)
    if faults:
        check_separator(dataset)
        _reject_other_kind(dataset.files[0], dataset.media_type)
    faults.raise_any()


def _missing_hint(dataset: Dataset, column: Column, unused: Collection[str]) -> str:
    if (close := _close_name(column.name, unused)) is not None:
        return f"did you mean {show(close)}?"
    if (parent := _nested_in(dataset, column.name)) is not None:
        return f"it is inside of the column {show(parent)}: write nested values to columns of their own"
    return column.advice


def _nested_in(dataset: Dataset, name: str) -> str | None:
    """Return the column with objects that have the key `name`, or None."""
    if dataset.media_type == NDJSON:
        with OpenedFile(dataset.files[0]) as opened:
            line = open_text(opened).read(MAX_NESTED_BYTES).strip().partition(b"\n")[0]
        try:
            first = read_json(line)
        except Invalid:
            return None
        items = first.items() if isinstance(first, dict) else ()
        return next((key for key, value in items if isinstance(value, dict) and name in value), None)
    fields = column_types.unpack_schema(dataset.schema)
    return next(
        (f.name for f in fields if pa.types.is_struct(f.type) and f.type.get_field_index(name) >= 0), None
    )


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


def add_faults(
    batch: Batch, first_row: int, errors: Mapping[int, FieldError], id_column: str | None
) -> Batch:
    """Turn rows of `batch.rows` into faults with these errors, by index of the row.

    The batch's first row is row `first_row` of the part.
    """
    if not errors:
        return batch
    known = [fault.row - first_row for fault in batch.faults]
    row_numbers = np.delete(np.arange(batch.length), known)
    ids = None if id_column is None else batch.extra.column(id_column)
    faults = [
        RowFault(
            first_row + int(row_numbers[index]),
            None if ids is None else _id_text(ids[index]),
            error.field,
            error.message,
        )
        for index, error in errors.items()
    ]
    valid = np.ones(len(batch.rows), dtype=bool)
    valid[list(errors)] = False
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
