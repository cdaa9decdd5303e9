"""Read the published example: the user's rows as one table, whatever the format of the file."""

from __future__ import annotations

from dataclasses import dataclass
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
from registry.signature import MAX_SAFE_INTEGER, DType
from registry.text_tables import CODE_PATTERN, other_separator

MAX_ROWS = 10_000
"""Rows of an example after this many are not read."""

_ARROW_TYPES: dict[str, pa.DataType] = {
    "float64": pa.float64(),
    "float32": pa.float32(),
    "int64": pa.int64(),
    "bool": pa.bool_(),
    "string": pa.string(),
}


@dataclass(frozen=True)
class ExampleTable:
    """Columns by name, in the file's order, each of one of a signature's five dtypes; null is missing."""

    columns: dict[str, pa.Array]
    target: pa.Array | None = None  # the true values, when the request names such a column

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def dtype(self, name: str) -> DType:
        return dtype_of(self.columns[name].type)

    def missing(self, name: str) -> bool:
        return bool(self.columns[name].null_count)


def read(path: str | Path, media_type: str | None, target: str | None = None) -> ExampleTable:
    """Raises `Refused`, with the reason, when the file is not a table of at least one row."""
    try:
        table = _read_table(Path(path), media_type).slice(0, MAX_ROWS).combine_chunks()
    except (pa.ArrowException, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Refused(f"the example is not readable as {media_type}: {error}") from error
    if not table.num_rows or not table.num_columns:
        raise Refused("the example has no rows")
    names = table.column_names
    if repeated := sorted({n for n in names if names.count(n) > 1}):
        raise Refused(f"the example has the column {repeated[0]!r} more than once")
    columns = {name: _signature_array(name, table.column(name)) for name in names}
    if len(names) == 1 and media_type == CSV and other_separator(names[0]):
        raise Refused(f"the example's header {names[0]!r} has no commas; separate its columns by commas")
    if target is not None and target not in columns:
        raise Refused(f"the target {target!r} is not a column of the example; it has {', '.join(names)}")
    truth = columns.pop(target) if target is not None else None
    return ExampleTable(columns, truth)


def count_rows(path: str | Path, media_type: str | None) -> int:
    """The rows of a readable example, also those after `MAX_ROWS`."""
    return int(_read_table(Path(path), media_type).num_rows)


def _read_table(path: Path, media_type: str | None) -> pa.Table:
    if media_type == CSV:
        return _read_csv(path)
    if media_type == PARQUET:
        return pq.read_table(path)
    if media_type == JSON:
        rows = msgspec.json.decode(path.read_bytes(), type=list[dict[str, Any]])
        names = list(dict.fromkeys(name for row in rows for name in row))
        return pa.table({name: _json_column([row.get(name) for row in rows]) for name in names})
    raise Refused(
        f"an example of type {media_type!r} is not supported; supported are {', '.join(EXAMPLE_TYPES)}"
    )


def _read_csv(path: Path) -> pa.Table:
    """Dates, times and codes such as 01067 stay strings, as they are in the file; empty cells are missing."""
    table = pacsv.read_csv(path, convert_options=pacsv.ConvertOptions(strings_can_be_null=True))
    types = {f.name: f.type for f in table.schema}
    if len(types) < table.num_columns:
        return table  # `read` rejects a repeated name
    temporal = {name for name, kind in types.items() if pa.types.is_temporal(kind)}
    numbers = {n for n, kind in types.items() if pa.types.is_integer(kind) or pa.types.is_floating(kind)}
    reread = [name for name in types if name in temporal | numbers]
    if not reread:
        return table
    options = pacsv.ConvertOptions(strings_can_be_null=True, column_types=dict.fromkeys(reread, pa.string()))
    texts = pacsv.read_csv(path, convert_options=options)
    for name in reread:
        position = table.schema.get_field_index(name)
        text = texts.column(name)
        if name in temporal or pc.any(pc.match_substring_regex(text, CODE_PATTERN)).as_py():
            table = table.set_column(position, name, text)
    return table


def _json_column(values: list[Any]) -> pa.Array:
    """JSON may write 1.0 as 1: a column of integers and floats is a column of floats."""
    types = {type(v) for v in values if v is not None}
    if types == {int, float}:
        values = [None if v is None else float(v) for v in values]
    return pa.array(values)


def _signature_array(name: str, column: pa.ChunkedArray) -> pa.Array:
    """`column` as one array of one of the five dtypes of a signature."""
    array = column.combine_chunks()
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _signature_array(name, pa.chunked_array([array.dictionary_decode()]))
    if pa.types.is_float32(kind) or pa.types.is_float64(kind):
        return pc.if_else(pc.is_nan(array), pa.scalar(None, kind), array)
    try:
        return array.cast(_ARROW_TYPES[dtype_of(kind)])
    except KeyError as error:
        raise Refused(f"the example's column {name!r} holds {kind}, which a feature cannot have") from error
    except pa.ArrowException as error:
        raise Refused(f"the example's column {name!r} does not fit into int64 ({error})") from error


def dtype_of(kind: pa.DataType) -> DType:
    """The signature's dtype for an Arrow type. Raises KeyError for nested and binary types."""
    is_ = pa.types
    if is_.is_boolean(kind):
        return "bool"
    if is_.is_integer(kind):
        return "int64"
    if is_.is_float32(kind) or is_.is_float16(kind):
        return "float32"
    if is_.is_float64(kind) or is_.is_decimal(kind) or is_.is_null(kind):
        return "float64"
    if is_.is_string(kind) or is_.is_large_string(kind) or is_.is_string_view(kind) or is_.is_temporal(kind):
        return "string"
    raise KeyError(str(kind))


def cast_column(name: str, column: pa.Array, dtype: DType) -> pa.Array:
    """`column` as `dtype`. Raises `Refused`, naming the column, when the cast would change a value."""
    safe = dtype != "float32"  # a feature of float32 is expected to be rounded
    try:
        if dtype != "bool" or pa.types.is_boolean(column.type):
            return column.cast(_ARROW_TYPES[dtype], safe=safe)
        integers = column.cast(pa.int64())
        if not pc.all(pc.is_in(integers.drop_null(), pa.array([0, 1]))).as_py():
            raise pa.ArrowInvalid("it holds values other than 0 and 1")
        return integers.cast(pa.bool_())
    except pa.ArrowException as error:
        raise Refused(f"the example's column {name!r} does not fit the dtype {dtype}: {error}") from error


def require_exact_in_float64(name: str, column: pa.Array) -> None:
    """Raise `Refused`, naming the column, for an integer that float64 cannot represent exactly."""
    beyond = column.filter(pc.or_(pc.greater(column, MAX_SAFE_INTEGER), pc.less(column, -MAX_SAFE_INTEGER)))
    if len(beyond):
        raise Refused(
            f"the example's column {name!r} holds {beyond[0]}: the model receives float64, which represents "
            f"integers exactly only up to {MAX_SAFE_INTEGER}; fit the model on strings in this column"
        )


def to_numpy(column: pa.Array, dtype: DType) -> Array:
    """As in `registry.rows.Rows.columns`: missing numbers NaN, missing strings None."""
    if dtype != "string" and dtype != "float32" and column.null_count:
        column = (column.cast(pa.int64()) if dtype == "bool" else column).cast(pa.float64())
    array: Array = column.to_numpy(zero_copy_only=False)
    return array.astype(object) if dtype == "string" else array.copy()
