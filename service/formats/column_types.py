"""One Arrow type per column for all files of a dataset, and conversion to it."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from registry.errors import FieldError, Invalid
from registry.media_types import TEXT_TYPES
from registry.signature import MAX_SAFE_INTEGER, DType, Input
from registry.text_tables import CODE_PATTERN
from service.formats.dataset import Dataset, InputFile
from service.runtime.codec.arrow import check_type
from service.runtime.codec.arrow_types import (
    EXTENSION_NAME,
    TypeNotSupported,
    decimals_to_float64,
    decode,
    family_of,
    feature_dtype,
    plain_type,
)
from service.runtime.codec.columns import Column, Faults, show

_EXPLICIT = {"given": "1"}
"""Metadata of a field whose type the user set: its values are not checked for codes."""
MAYBE_CODE = re.compile(rb'(?:^|[,\n"])[ \t]*[+-]?(?:0[0-9xX]|[0-9]{19})')
"""Matches every block with a `CODE` in a cell, and searches much faster than `CODE` itself."""
DTYPES = {"float64": pa.float64(), "int64": pa.int64(), "bool": pa.bool_(), "string": pa.string()}
SET_DTYPE_HINT = "set the column's type (dtypes, --dtype NAME=TYPE)"
_CELL_ERROR = re.compile(
    r"In CSV column #(\d+): (?:Row #\d+: )?(?:CSV conversion error to \S+: )?(.*)", re.DOTALL
)


def pack_schema(schema: Any) -> str:
    """Serialize a schema as text, for the job's plan."""
    return base64.b64encode(schema.remove_metadata().serialize().to_pybytes()).decode()


def unpack_schema(packed: str) -> Any:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(packed)))


def schema_of(dataset: Dataset, names: Sequence[str]) -> Any:
    """Return the Arrow types that the columns `names` have in every partition."""
    schema = unpack_schema(dataset.schema)
    return pa.schema([schema.field(name) for name in names])


def feature_dtypes(dataset: Dataset, names: Sequence[str]) -> dict[str, DType]:
    """Return the dtype that each of the columns has as a feature, or as a target.

    Raises `Invalid` naming each column whose type is not a feature, with the remedy.
    """
    faults = Faults()
    dtypes: dict[str, DType] = {}
    for field in schema_of(dataset, names):
        try:
            dtypes[field.name] = feature_dtype(field)
        except TypeNotSupported as error:
            message = f"column {show(field.name)} {error}, or exclude it"
            faults.add(message, None, field.name, "numbers, booleans or text")
    faults.raise_any()
    return dtypes


def require_types(dataset: Dataset, dtypes: Mapping[str, DType]) -> None:
    """Raise `Invalid` naming each column of a typed file that cannot be a feature of its dtype."""
    if dataset.media_type in TEXT_TYPES:
        return
    faults = Faults()
    names = [name for name in dtypes if name in dataset.columns]
    for field in schema_of(dataset, names):
        check_type(Column(Input(field.name, dtypes[field.name])), field, faults)
    faults.raise_any()


def unify_schemas(
    schemas: Mapping[str, Any], names: Sequence[str], uniform: bool, dtypes: Mapping[str, str]
) -> Any:
    """Return one schema of the columns `names`, in that order, for all files (`schemas` by file name).

    - Files without values in a column (type null, or no such column) do not influence its type.
    - Numbers get a type that holds all of them. A column that no other type holds becomes text, so that 7 is
      "7" next to "007"; with `uniform` it is rejected instead.
    - Columns in `dtypes` get that type.

    Raises `Invalid`, naming column and files, if no type holds a column.
    """
    faults = Faults()
    file_by_type: dict[str, dict[Any, str]] = {name: {} for name in names}  # the first file with each type
    for file, schema in schemas.items():
        for field in schema:
            file_by_type[field.name].setdefault(_value_type(field, uniform), file)
    fields = [
        pa.field(name, DTYPES[dtypes[name]], metadata=_EXPLICIT)
        if name in dtypes
        else _unify(name, files, uniform, faults)
        for name, files in file_by_type.items()
    ]
    faults.raise_any()
    return pa.schema(fields)


def _value_type(field: Any, uniform: bool) -> Any:
    """Return the type of a field's values. In a training (`uniform`), decimals are float64.

    An extension type that this process does not know, such as a pandas period, is kept as `arrow.opaque`.
    """
    name = (field.metadata or {}).get(EXTENSION_NAME)
    if name is not None:
        return pa.opaque(field.type, name.decode(errors="replace"), "")
    arrow_type = plain_type(field.type)
    return pa.float64() if uniform and pa.types.is_decimal(arrow_type) else arrow_type


def _unify(name: str, file_by_type: Mapping[Any, str], uniform: bool, faults: Faults) -> Any:
    types = [t for t in file_by_type if not pa.types.is_null(t)] or [pa.null()]
    if len(types) > 1:
        opaque = [t for t in types if is_opaque(t)]
        if opaque and not uniform:  # rejected only if the job uses the column
            return pa.field(name, opaque[0])
    try:
        if len(types) > 1 and _would_lose_values(types, uniform):
            raise pa.ArrowTypeError
        schemas = [pa.schema([(name, t)]) for t in types]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).with_nullable(True)
    except pa.ArrowException:
        if not uniform:
            return pa.field(name, pa.large_string() if pa.large_string() in types else pa.string())
        other = next((t for t in file_by_type if _is_text(t) != _is_text(types[0])), types[-1])
        described = " and ".join(f"{str(t)[:100]} in {show(file_by_type[t])}" for t in (types[0], other))
        faults.add(f"column {show(name)} is {described}; {SET_DTYPE_HINT}", None, name)
        return pa.field(name, pa.null())


def _would_lose_values(types: Sequence[Any], uniform: bool) -> bool:
    """Whether Arrow's common type cannot hold the values of all `types`.

    This concerns text next to numbers. Without `uniform`, where values are copied to the output, it also
    concerns decimals and uint64 next to other numbers.
    """
    if uniform:
        return len({_is_text(t) for t in types}) > 1
    return pa.uint64() in types or any(pa.types.is_decimal(t) for t in types)


def is_opaque(arrow_type: Any) -> bool:
    """Whether values of the type cannot be copied to an output, such as nested, binary or extension types."""
    return not family_of(arrow_type).copied


def _is_text(arrow_type: Any) -> bool:
    return bool(pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type))


def replace_null_types(schema: Any) -> Any:
    """Give the type float64 to columns without any value."""
    return pa.schema([f.with_type(pa.float64()) if pa.types.is_null(f.type) else f for f in schema])


def find_code(texts: Any) -> str | None:
    """Return a text that looks like a number but is a code, such as 01067, or None."""
    codes = pc.filter(texts, pc.fill_null(pc.match_substring_regex(texts, CODE_PATTERN), False))
    return str(codes[0]) if len(codes) else None


def is_explicit(field: Any) -> bool:
    """Whether the user set the type of the field."""
    return bool(field.metadata and b"given" in field.metadata)


def cast_batch(batch: Any, schema: Any, file: InputFile) -> Any:
    """Return the batch with the types of `schema`. Raises `Invalid` if a value would be lost."""
    if batch.schema.equals(schema):
        return batch
    columns = []
    for field in schema:
        column = batch.column(field.name)
        try:
            columns.append(column if column.type == field.type else _cast_column(column, field.type))
        except pa.ArrowException as error:
            reason = str(error)[:300]
            message = (
                f"column {show(field.name)} of {file.name!r} cannot be converted to {field.type}: {reason}"
            )
            if pa.types.is_timestamp(field.type):
                message += "; write all timestamps of the column in one unit that holds them, or leave it out"
            raise Invalid(message, [FieldError(message, field=field.name)]) from error
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _cast_column(column: Any, arrow_type: Any) -> Any:
    column = decode(column)
    if pa.types.is_decimal(column.type) and pa.types.is_floating(arrow_type):
        return decimals_to_float64(column)
    if _is_text(arrow_type):
        return to_text(column).cast(arrow_type)
    is_number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    if pa.types.is_boolean(arrow_type) and is_number:
        others = pc.filter(column, pc.and_(pc.not_equal(column, 0), pc.not_equal(column, 1)))
        if len(others):
            raise pa.ArrowInvalid(f"{others[0]} is neither 0 nor 1")
    return column.cast(arrow_type)


def to_text(column: Any) -> Any:
    """Convert a column to text. Integral floats are written as integers.

    Such columns are often integers that were stored as floats because some values are missing.
    """
    if not pa.types.is_floating(column.type):
        return column.cast(pa.string())
    integral = pc.and_(
        pc.equal(pc.floor(column), column), pc.less_equal(pc.abs(column), float(MAX_SAFE_INTEGER))
    )
    integers = pc.if_else(integral, column, None).cast(pa.int64())
    return pc.if_else(integral, integers.cast(pa.string()), column.cast(pa.string()))


def describe_mismatch(error: Exception, names: Sequence[str], schema: Any, file: str) -> str:
    """Return a message about a CSV cell that does not have its column's type in `schema`, with the remedy.

    `names`: the columns of the file.
    """
    reason = describe_cell_error(error, names)
    match = _CELL_ERROR.match(str(error))
    name = names[int(match[1])] if match is not None and int(match[1]) < len(names) else None
    if name in schema.names and is_explicit(schema.field(name)):
        return f"{file!r}: {reason}; the request sets the type of the column: correct the cell or the type"
    return f"{file!r} does not match its first rows: {reason}; {SET_DTYPE_HINT}"


def describe_cell_error(error: Exception, names: Sequence[str]) -> str:
    """Return pyarrow's message about a CSV cell with the column's name instead of its number.

    The row number is left out, because pyarrow counts rows within a block.
    """
    match = _CELL_ERROR.match(str(error))
    if match is None or int(match[1]) >= len(names):
        return str(error)[:300]
    return f"column {show(names[int(match[1])])}: {match[2][:200]}"
