"""The published example: rows as the user has them, read into one table whatever their file format."""

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
from registry.rows import Array
from registry.signature import SAFE, DType
from registry.text_codes import CODE, separator

MAX_ROWS = 10_000
"""More rows of an example than this are not looked at."""


@dataclass(frozen=True)
class ExampleTable:
    """Columns by name, in the file's order, each of a signature's five types; null is missing."""

    columns: dict[str, pa.Array]
    target: pa.Array | None = None  # the true values, when the job names such a column

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def dtype(self, name: str) -> DType:
        return dtype_of(self.columns[name].type)

    def missing(self, name: str) -> bool:
        return bool(self.columns[name].null_count)


def read(path: str | Path, media_type: str | None, target: str | None = None) -> ExampleTable:
    """Raises `Refused`, saying what is wrong, when the file is not such a table of at least one row."""
    try:
        table = _table(Path(path), media_type).slice(0, MAX_ROWS).combine_chunks()
    except (pa.ArrowException, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Refused(f"the example is not readable as {media_type}: {error}") from error
    if not table.num_rows or not table.num_columns:
        raise Refused("the example holds no rows")
    names = table.column_names
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise Refused(f"the example has the column {twice[0]!r} more than once")
    columns = {name: _plain(name, table.column(name)) for name in names}
    if len(names) == 1 and media_type == "text/csv" and separator(names[0]):
        raise Refused(f"the example's header {names[0]!r} has no commas; write them between its columns")
    if target is not None and target not in columns:
        raise Refused(f"the target {target!r} is no column of the example; it has {', '.join(names)}")
    truth = columns.pop(target) if target is not None else None
    return ExampleTable(columns, truth)


def _table(path: Path, media_type: str | None) -> pa.Table:
    if media_type == "text/csv":
        return _csv(path)
    if media_type == "application/vnd.apache.parquet":
        return pq.read_table(path)
    if media_type == "application/json":
        rows = msgspec.json.decode(path.read_bytes(), type=list[dict[str, Any]])
        names = list(dict.fromkeys(name for row in rows for name in row))
        return pa.table({name: _unmixed([row.get(name) for row in rows]) for name in names})
    raise Refused(
        f"an example of type {media_type!r} is not known; it is text/csv, "
        "application/vnd.apache.parquet or application/json"
    )


def _csv(path: Path) -> pa.Table:
    """Dates and times stay the strings that they are in the file, and so do codes such as 01067; empty cells
    are missing."""
    table = pacsv.read_csv(path, convert_options=pacsv.ConvertOptions(strings_can_be_null=True))
    kinds = {f.name: f.type for f in table.schema}
    temporal = {name for name, kind in kinds.items() if pa.types.is_temporal(kind)}
    numbers = {n for n, kind in kinds.items() if pa.types.is_integer(kind) or pa.types.is_floating(kind)}
    doubtful = [name for name in kinds if name in temporal | numbers]
    if not doubtful:
        return table
    options = pacsv.ConvertOptions(
        strings_can_be_null=True, column_types=dict.fromkeys(doubtful, pa.string())
    )
    texts = pacsv.read_csv(path, convert_options=options)
    for name in doubtful:
        at = table.schema.get_field_index(name)
        text = texts.column(name)
        if name in temporal or pc.any(pc.match_substring_regex(text, CODE)).as_py():
            table = table.set_column(at, name, text)
    return table


def _unmixed(values: list[Any]) -> pa.Array:
    """JSON writes 1.0 as 1 at will: a column of integers and floats is a column of floats."""
    kinds = {type(v) for v in values if v is not None}
    return pa.array([None if v is None else float(v) for v in values] if kinds == {int, float} else values)


def _plain(name: str, column: pa.ChunkedArray) -> pa.Array:
    """`column` as one array of the five types of a signature."""
    array = column.combine_chunks()
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _plain(name, pa.chunked_array([array.dictionary_decode()]))
    if pa.types.is_float32(kind) or pa.types.is_float64(kind):
        return pc.if_else(pc.is_nan(array), pa.scalar(None, kind), array)
    try:
        return array.cast(_ARROW[dtype_of(kind)])
    except KeyError as error:
        raise Refused(f"the example's column {name!r} holds {kind}, which no feature can be") from error
    except pa.ArrowException as error:
        raise Refused(f"the example's column {name!r} does not fit into int64 ({error})") from error


def dtype_of(kind: pa.DataType) -> DType:
    """The signature's dtype for an Arrow type. Raises `KeyError` for nested and binary ones."""
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


_ARROW: dict[str, pa.DataType] = {
    "float64": pa.float64(),
    "float32": pa.float32(),
    "int64": pa.int64(),
    "bool": pa.bool_(),
    "string": pa.string(),
}


def cast(name: str, column: pa.Array, dtype: DType) -> pa.Array:
    """`column` as `dtype`. Raises `Refused`, naming the column, when a value would change by it."""
    safe = dtype != "float32"  # rounding to float32 is what choosing it means
    try:
        if dtype != "bool" or pa.types.is_boolean(column.type):
            return column.cast(_ARROW[dtype], safe=safe)
        whole = column.cast(pa.int64())
        if not pc.all(pc.is_in(whole.drop_null(), pa.array([0, 1]))).as_py():
            raise pa.ArrowInvalid("it holds more than 0 and 1")
        return whole.cast(pa.bool_())
    except pa.ArrowException as error:
        raise Refused(f"the example's column {name!r} does not fit the dtype {dtype}: {error}") from error


def require_exact_in_float64(name: str, column: pa.Array) -> None:
    """Raises `Refused` when one of the integers is another once it is float64."""
    beyond = column.filter(pc.or_(pc.greater(column, SAFE), pc.less(column, -SAFE)))
    if len(beyond):
        raise Refused(
            f"the example's column {name!r} holds {beyond[0]}: the model gets it as float64, which tells no "
            f"integers apart beyond {SAFE}; fit the model to strings there"
        )


def to_numpy(column: pa.Array, dtype: DType) -> Array:
    """As in `registry.rows.Rows.columns`: missing numbers NaN, missing strings None."""
    if dtype != "string" and dtype != "float32" and column.null_count:
        column = (column.cast(pa.int64()) if dtype == "bool" else column).cast(pa.float64())
    array: Array = column.to_numpy(zero_copy_only=False)
    return array.astype(object) if dtype == "string" else array.copy()
