"""Columns of many files as one: which Arrow type holds what each of them holds."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from registry.build.example import CODE
from service.runtime.codec.columns import Faults, show

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
    fields = [
        pa.field(n, DTYPES[dtypes[n]]) if n in dtypes else _merged(n, schemas, alike, faults) for n in names
    ]
    faults.raise_any()
    return pa.schema(fields)


def _merged(name: str, schemas: Mapping[str, Any], alike: bool, faults: Faults) -> Any:
    kinds: dict[Any, str] = {}  # and the first file that has it
    for file, schema in schemas.items():
        if (at := schema.get_field_index(name)) >= 0:
            kinds.setdefault(plain(schema.field(at).type), file)
    said = [k for k in kinds if not pa.types.is_null(k)] or [pa.null()]
    try:
        if alike and len({_is_text(k) for k in said}) > 1:
            raise pa.ArrowTypeError
        parts = [pa.schema([(name, k)]) for k in said]
        return pa.unify_schemas(parts, promote_options="permissive").field(0).with_nullable(True)
    except pa.ArrowException:
        if not alike and not any(map(pa.types.is_nested, said)):
            return pa.field(name, pa.large_string() if pa.large_string() in said else pa.string())
        odd = next((k for k in said if _is_text(k) != _is_text(said[0])), said[-1])
        told = " and ".join(f"{str(k)[:100]} in {show(kinds[k])}" for k in (said[0], odd))
        faults.add(f"column {show(name)} is {told}; say what it is (dtypes, --dtype NAME=TYPE)", None, name)
        return pa.field(name, pa.null())


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def not_null(schema: Any) -> Any:
    """With float64 for what is nowhere said."""
    return pa.schema([(f.name, pa.float64() if pa.types.is_null(f.type) else f.type) for f in schema])


def codes(texts: Any) -> bool:
    """Whether one of the texts is a number that begins with a zero."""
    return bool(pc.any(pc.match_substring_regex(texts, CODE)).as_py())


def why(error: Exception, names: Sequence[str]) -> str:
    """What pyarrow says of a cell, with the column's name. It counts columns, and rows within a block."""
    found = _CELL.match(str(error))
    if found is None or int(found[1]) >= len(names):
        return str(error)[:300]
    return f"column {show(names[int(found[1])])}: {found[2][:200]}"
