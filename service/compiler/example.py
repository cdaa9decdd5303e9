"""Read the published example: the user's rows as one table, whatever the format of the file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from registry.errors import Refused
from registry.media_types import CSV, EXAMPLE_TYPES, JSON, PARQUET
from registry.rows import Array
from registry.signature import MAX_SAFE_INTEGER, DType, Output
from registry.text_tables import other_separator
from service.runtime.codec import arrow_types
from service.runtime.codec.arrow_types import TypeNotSupported
from service.runtime.codec.columns import show
from service.runtime.codec.csv_cells import typed_cells, without_empty, without_missing_words
from service.runtime.codec.json import JsonRows, RepeatedKey, read_json

MAX_ROWS = 10_000
"""Rows of an example after this many are not read."""

_PANDAS_INDEX = re.compile(r"__index_level_\d+__")
"""Columns that pandas writes for an index without a name."""


@dataclass(frozen=True)
class ExampleTable:
    """Columns by name, in the file's order and types; null is missing, also for NaN in columns of floats."""

    columns: dict[str, pa.Array]
    target: pa.Array | None = None  # the true values, when the request names such a column
    texts: dict[str, pa.Array] = field(default_factory=dict)  # of a CSV: the cells as they are written
    target_text: pa.Array | None = None  # likewise
    fields: dict[str, pa.Field] = field(default_factory=dict)  # of a Parquet file

    def true_values(self, outputs: Sequence[Output]) -> pa.Array | None:
        """The target's values, if any. Labels that are text are compared with the text of a CSV."""
        is_text = outputs[0].name == "label" and outputs[0].dtype == "string"
        return self.target_text if is_text and self.target_text is not None else self.target

    @property
    def has_column_types(self) -> bool:
        return bool(self.fields)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def dtype(self, name: str) -> DType:
        """Raises `Refused`, naming the column and the remedy, for a type that a feature cannot have."""
        try:
            return arrow_types.feature_dtype(self.fields.get(name, self.columns[name].type))
        except TypeNotSupported as error:
            raise Refused(f"the example's column {show(name)} {error}") from error

    def column(self, name: str, dtype: DType | None = None) -> pa.Array:
        """The column as `dtype`, or in its own; text of a CSV is the file's own, and an empty cell is null.

        Raises `Refused`, naming the column, for a value that does not fit.
        """
        own = self.dtype(name)
        dtype = dtype or own
        if name not in self.texts:
            return cast_column(name, self.columns[name], dtype)
        if dtype == "string":
            return without_empty(self.texts[name])
        if own == "string":  # cells that were not all numbers, or looked like codes
            return cast_column(name, without_missing_words(self.texts[name]), dtype)
        return cast_column(name, self.columns[name], dtype)


def read(path: str | Path, media_type: str | None, target: str | None = None) -> ExampleTable:
    """Raises `Refused`, with the reason, when the file is not a table of at least one row."""
    try:
        table = _read_table(Path(path), media_type).slice(0, MAX_ROWS).combine_chunks()
    except (pa.ArrowException, msgspec.MsgspecError, UnicodeDecodeError) as error:
        hint = _reading_hint(Path(path), media_type)
        raise Refused(f"the example is not readable as {media_type}: {error}{hint}") from error
    if not table.num_rows or not table.num_columns:
        raise Refused("the example has no rows")
    names = table.column_names
    if repeated := sorted({n for n in names if names.count(n) > 1}):
        raise Refused(f"the example has the column {show(repeated[0])} more than once")
    if len(names) == 1 and media_type == CSV and other_separator(names[0]):
        raise Refused(f"the example's header {show(names[0])} has no commas; separate its columns by commas")
    if target is not None and target not in names:
        raise Refused(f"the target {show(target)} is not a column of the example; it has {', '.join(names)}")
    return _example_table(table, media_type, target)


def _reading_hint(path: Path, media_type: str | None) -> str:
    """The usual causes of a file of text that cannot be read."""
    if media_type not in (CSV, JSON):
        return ""
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        return "; it is not UTF-8, perhaps Latin-1 or Windows-1252: save it as UTF-8"
    header, _, _ = text.partition("\n")
    if media_type == CSV and "," not in header and (separator := other_separator(header)):
        return f"; its header has {separator}: separate columns by commas, write decimals with a point"
    if media_type == JSON and text.lstrip().startswith("{"):
        return "; write the rows as one list of objects: [{...}, {...}]"
    return ""


def _example_table(table: pa.Table, media_type: str | None, target: str | None) -> ExampleTable:
    names = [n for n in table.column_names if n == target or not _PANDAS_INDEX.fullmatch(n)]
    columns = {name: _plain_array(table.column(name)) for name in names}
    texts: dict[str, pa.Array] = {}
    if media_type == CSV:
        texts, columns = columns, {name: typed_cells(cells) for name, cells in columns.items()}
    truth = None if target is None else _true_values(target, columns.pop(target))
    target_text = None if target is None else texts.pop(target, None)
    fields = {name: table.schema.field(name) for name in columns} if media_type == PARQUET else {}
    return ExampleTable(columns, truth, texts, target_text, fields)


def count_rows(path: str | Path, media_type: str | None) -> int:
    """The rows of a readable example, also those after `MAX_ROWS`."""
    return int(_read_table(Path(path), media_type).num_rows)


def _read_table(path: Path, media_type: str | None) -> pa.Table:
    if media_type == CSV:
        return _read_csv(path)
    if media_type == PARQUET:
        return pq.read_table(path)
    if media_type == JSON:
        rows = _read_json_rows(path.read_bytes())
        names = list(dict.fromkeys(name for row in rows for name in row))
        return pa.table({name: _json_column(name, [row.get(name) for row in rows]) for name in names})
    raise Refused(
        f"an example of type {media_type!r} is not supported; supported are {', '.join(EXAMPLE_TYPES)}"
    )


def _read_json_rows(data: bytes) -> list[dict[str, Any]]:
    """Raises `Refused` for a row that repeats a key, of which one value would be lost."""
    rows = msgspec.json.decode(data, type=list[dict[str, Any]])
    if not JsonRows.has_keys(data, sum(map(len, rows))):
        for number, row in enumerate(read_json(data)):
            if isinstance(row, RepeatedKey):
                raise Refused(f"row {number} of the example repeats the key {show(row.key)}; write it once")
    return rows


def _read_csv(path: Path) -> pa.Table:
    """All cells as text, as they are in the file."""
    names = pacsv.open_csv(path).schema.names
    options = pacsv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    parse = pacsv.ParseOptions(newlines_in_values=True)
    return pacsv.read_csv(path, parse_options=parse, convert_options=options)


def _json_column(name: str, values: list[Any]) -> pa.Array:
    """JSON may write 1.0 as 1: a column of integers and floats is a column of floats."""
    types = {type(v) for v in values if v is not None}
    if types == {int, float}:
        values = [None if v is None else float(v) for v in values]
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError) as error:
        kinds = " and ".join(sorted(_JSON_NOUNS.get(t, t.__name__) for t in types))
        raise Refused(
            f"the example's column {show(name)} holds {kinds}, which no type holds: {error}"
        ) from error


_JSON_NOUNS: dict[type, str] = {
    str: "strings",
    int: "integers",
    float: "numbers",
    bool: "booleans",
    dict: "objects",
    list: "lists",
}


def _plain_array(column: pa.ChunkedArray) -> pa.Array:
    """`column` as one decoded array, with null for NaN."""
    array = column.combine_chunks()
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    array = arrow_types.decode(array)
    if pa.types.is_floating(array.type):
        return pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
    return array


def _true_values(name: str, column: pa.Array) -> pa.Array:
    """Dates and times as text: a model may have been fitted on such labels."""
    if pa.types.is_temporal(column.type) and not pa.types.is_duration(column.type):
        return column.cast(pa.string())
    try:
        return cast_column(name, column, arrow_types.feature_dtype(column.type))
    except TypeNotSupported as error:
        kind = arrow_types.describe_type(column.type)
        raise Refused(f"the target {show(name)} is of type {kind}, which no model answers") from error


def cast_column(name: str, column: pa.Array, dtype: DType) -> pa.Array:
    """`column` as `dtype`. Raises `Refused`, naming the column, when the cast would change a value."""
    try:
        if dtype != "bool" or pa.types.is_boolean(column.type):
            _require_exact_text(column.type, dtype)
            return arrow_types.to_dtype(column, dtype)
        if pa.types.is_string(column.type):
            return column.cast(pa.bool_())
        integers = column.cast(pa.int64())
        if not pc.all(pc.is_in(integers.drop_null(), pa.array([0, 1]))).as_py():
            raise pa.ArrowInvalid("it holds values other than 0 and 1")
        return integers.cast(pa.bool_())
    except pa.ArrowException as error:
        raise Refused(f"the example's column {show(name)} does not fit the dtype {dtype}: {error}") from error


def _require_exact_text(kind: pa.DataType, dtype: DType) -> None:
    """Refuse text that would have to be made of numbers: 1.50 and True could be written in several ways."""
    if dtype == "string" and not (arrow_types.is_text(kind) or pa.types.is_integer(kind)):
        raise pa.ArrowInvalid(f"it holds {kind}; write the text itself to the example's column")


def require_exact_in_float64(name: str, column: pa.Array) -> None:
    """Raise `Refused`, naming the column, for an integer that float64 cannot represent exactly."""
    beyond = column.filter(pc.or_(pc.greater(column, MAX_SAFE_INTEGER), pc.less(column, -MAX_SAFE_INTEGER)))
    if len(beyond):
        raise Refused(
            f"the example's column {show(name)} holds {beyond[0]}: the model receives float64, which "
            f"represents integers exactly only up to {MAX_SAFE_INTEGER}; fit the model on strings in this "
            "column"
        )


def to_numpy(column: pa.Array, dtype: DType) -> Array:
    """As in `registry.rows.Rows.columns`: missing numbers NaN, missing strings None."""
    if dtype != "string" and dtype != "float32" and column.null_count:
        column = (column.cast(pa.int64()) if dtype == "bool" else column).cast(pa.float64())
    array: Array = column.to_numpy(zero_copy_only=False)
    return array.astype(object) if dtype == "string" else array.copy()
