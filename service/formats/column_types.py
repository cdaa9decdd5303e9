"""Columns of many files as one: which Arrow type holds what each of them holds."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from registry.signature import SAFE
from registry.text_codes import CODE
from service.runtime.codec.columns import Faults, show

GIVEN = {"given": "1"}
"""Marks a field whose type somebody gave: it is not looked at whether it fits what it looks like."""
_OPAQUE = (
    pa.types.is_nested,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_fixed_size_binary,
    pa.types.is_binary_view,
)
MAYBE_CODE = re.compile(rb'(?:^|[,\n"])[ \t]*[+-]?(?:0[0-9xX]|[0-9]{19})')
"""What a block has in it if there is a `CODE` in a cell; looked for in no time."""
DTYPES = {"float64": pa.float64(), "int64": pa.int64(), "bool": pa.bool_(), "string": pa.string()}
_CELL = re.compile(r"In CSV column #(\d+): (?:Row #\d+: )?(?:CSV conversion error to \S+: )?(.*)", re.DOTALL)


def pack(schema: Any) -> str:
    """As text, for the job's plan."""
    return base64.b64encode(schema.remove_metadata().serialize().to_pybytes()).decode()


def unpack(packed: str) -> Any:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(packed)))


def plain(kind: Any) -> Any:
    """The type without its encoding."""
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain(kind.value_type)
    return pa.string() if pa.types.is_string_view(kind) else kind


def merged(schemas: Mapping[str, Any], names: Sequence[str], alike: bool, dtypes: Mapping[str, str]) -> Any:
    """One schema of the columns `names`, in that order, for the files by name.

    A file without values in a column (type null, or no such column) says nothing of it. Numbers get the type
    that holds them all, and what no type holds becomes text: 7 is "7" then, and "007" stays what it is; with
    `alike` that is refused. A column that is in `dtypes` is what it says there.

    Raises `Invalid`, naming column and files, when no type holds a column.
    """
    faults = Faults()
    kinds: dict[str, dict[Any, str]] = {name: {} for name in names}  # with the first file that has it
    for file, schema in schemas.items():
        for field in schema:
            kinds[field.name].setdefault(plain(field.type), file)
    fields = [
        pa.field(n, DTYPES[dtypes[n]], metadata=GIVEN) if n in dtypes else _merged(n, found, alike, faults)
        for n, found in kinds.items()
    ]
    faults.raise_any()
    return pa.schema(fields)


def _merged(name: str, kinds: Mapping[Any, str], alike: bool, faults: Faults) -> Any:
    said = [k for k in kinds if not pa.types.is_null(k)] or [pa.null()]
    if len(said) > 1:
        if alike:  # decimals are trained on as float64 anyway
            said = list(dict.fromkeys(pa.float64() if pa.types.is_decimal(k) else k for k in said))
        elif opaque := [k for k in said if is_opaque(k)]:  # refused where it is asked for
            return pa.field(name, opaque[0])
    try:
        if len(said) > 1 and _loses(said, alike):
            raise pa.ArrowTypeError
        parts = [pa.schema([(name, k)]) for k in said]
        return pa.unify_schemas(parts, promote_options="permissive").field(0).with_nullable(True)
    except pa.ArrowException:
        if not alike:
            return pa.field(name, pa.large_string() if pa.large_string() in said else pa.string())
        odd = next((k for k in kinds if _is_text(k) != _is_text(said[0])), said[-1])
        told = " and ".join(f"{str(k)[:100]} in {show(kinds[k])}" for k in (said[0], odd))
        faults.add(f"column {show(name)} is {told}; say what it is (dtypes, --dtype NAME=TYPE)", None, name)
        return pa.field(name, pa.null())


def _loses(kinds: Sequence[Any], alike: bool) -> bool:
    """Whether Arrow's common type cannot hold all of them: text beside numbers, and, where values are handed
    on as they are, decimals and the largest integers beside other numbers."""
    if alike:
        return len({_is_text(k) for k in kinds}) > 1
    return pa.uint64() in kinds or any(pa.types.is_decimal(k) for k in kinds)


def is_opaque(kind: Any) -> bool:
    """Whether it is no plain value: nested, bytes, or of an extension."""
    return isinstance(kind, pa.BaseExtensionType) or any(is_one(kind) for is_one in _OPAQUE)


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def not_null(schema: Any) -> Any:
    """With float64 for what is nowhere said."""
    return pa.schema([f.with_type(pa.float64()) if pa.types.is_null(f.type) else f for f in schema])


def code(texts: Any) -> str | None:
    """A text that looks like a number and is none, if there is one."""
    found = pc.filter(texts, pc.fill_null(pc.match_substring_regex(texts, CODE), False))
    return str(found[0]) if len(found) else None


def is_given(field: Any) -> bool:
    return bool(field.metadata and b"given" in field.metadata)


def as_texts(column: Any) -> Any:
    """A column as text. Whole floats are written as integers are, for they often were some: an id beside
    missing ones."""
    if not pa.types.is_floating(column.type):
        return column.cast(pa.string())
    whole = pc.and_(pc.equal(pc.floor(column), column), pc.less_equal(pc.abs(column), float(SAFE)))
    integers = pc.if_else(whole, column, None).cast(pa.int64())
    return pc.if_else(whole, integers.cast(pa.string()), column.cast(pa.string()))


def why(error: Exception, names: Sequence[str]) -> str:
    """What pyarrow says of a cell, with the column's name. It counts columns, and rows within a block."""
    found = _CELL.match(str(error))
    if found is None or int(found[1]) >= len(names):
        return str(error)[:300]
    return f"column {show(names[int(found[1])])}: {found[2][:200]}"
