"""Bodies of MLflow's scoring server: `dataframe_split`, `dataframe_records`, `inputs` or `instances`.

Names are features, in any order. Rows without names are in the order of the features. The answer is
`{"predictions": [...]}`, with what the estimator's `predict` returns for each row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from registry.errors import invalid_field
from registry.rows import Outputs, Rows
from registry.signature import Signature
from service.runtime.codec.columns import (
    Column,
    Faults,
    ValueRejected,
    check_names,
    describe_value,
    read_column,
    rows_or_raise,
    show,
)
from service.runtime.codec.json import NonFiniteLiteral
from service.runtime.codec.strict_json import max_items, read_body

FORMATS = ("dataframe_split", "dataframe_records", "inputs", "instances")
_USAGE = f"send one of {', '.join(FORMATS)}"
_REFUSED_FIELDS = {
    "params": "the model takes no parameters in a call; leave it out",
    "signature_name": "a model has one signature; leave it out",
}
_PREDICTED = ("label", "value", "values", "cluster", "vector")
"""The outputs that `predict`, or `transform`, returns: not the probabilities and scores."""


class ScoringCodec:
    """The decoder and encoder of one signature. Thread-safe."""

    def __init__(self, signature: Signature, columns: Sequence[Column], max_rows: int) -> None:
        self._columns = columns
        self._names = [c.name for c in columns]
        self._max_rows = max_rows
        self._max_items = max_items(max_rows, len(columns))
        self._predicted = [o.name for o in signature.outputs if o.name.rpartition(".")[2] in _PREDICTED]
        self._readers: dict[str, Callable[[str, Any], Rows]] = {
            "dataframe_split": self._read_split,
            "dataframe_records": self._read_rows,
            "inputs": self._read_inputs,
            "instances": self._read_rows,
        }

    def decode(self, body: bytes) -> Rows:
        """Raises `Invalid`; each fault names the row and the feature."""
        value = read_body(body, self._max_items)
        if not isinstance(value, dict):
            raise invalid_field(None, f"the body is {describe_value(value)}; {_USAGE}", "object")
        for name, reason in _REFUSED_FIELDS.items():
            if name in value:
                raise invalid_field(name, f"{show(name)} is not supported: {reason}")
        formats = [name for name in value if name in FORMATS]
        for name in value:
            if name not in FORMATS:
                raise invalid_field(name, f"{show(name)} is not a field of this call; {_USAGE}", _USAGE)
        if len(formats) != 1:
            raise invalid_field(None, f"the body has {' and '.join(formats) or 'no data'}; {_USAGE}", _USAGE)
        return self._readers[formats[0]](formats[0], value[formats[0]])

    def encode(self, outputs: Outputs) -> bytes:
        """Encode the answer; NaN and infinity become null."""
        columns = [outputs[name].tolist() for name in self._predicted]
        rows = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
        return msgspec.json.encode({"predictions": rows})

    def _read_split(self, field: str, value: Any) -> Rows:
        """Read `{"columns", "index", "data"}`. The columns of an unnamed data frame are 0, 1, ..."""
        if not isinstance(value, dict) or "data" not in value:
            raise invalid_field(field, f"{field} has no data; send {{columns: [...], data: [[...], ...]}}")
        for name in value:
            if name not in ("columns", "index", "data"):
                raise invalid_field(name, f"{show(name)} is not a field of {field}; send columns and data")
        data = self._require_rows(f"{field}.data", value["data"])
        names = value.get("columns")
        if names is None or names == list(range(len(self._names))):
            return self._rows_of_lists(self._names, data)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise invalid_field("columns", f"the columns of {field} are not names; send a list of strings")
        return self._rows_of_lists(names, data)

    def _read_inputs(self, field: str, value: Any) -> Rows:
        """Read a list of values for each feature by its name, or rows."""
        if not isinstance(value, dict):
            return self._read_rows(field, value)
        values_by_name: dict[str, Sequence[Any]] = {}
        count: int | None = None
        for name, column in value.items():
            values = self._require_rows(f"{field}.{name}", column)
            if count is not None and len(values) != count:
                message = f"{show(name)} has {len(values)} values, {show(next(iter(value)))} has {count}"
                raise invalid_field(name, f"{message}; send as many for each feature", f"{count} values")
            count = len(values)
            values_by_name[name] = [v[0] if isinstance(v, list) and len(v) == 1 else v for v in values]
        return self._rows_of_columns(values_by_name, count or 0)

    def _read_rows(self, field: str, value: Any) -> Rows:
        """Read rows that are objects, lists in the order of the features, or values of the only feature."""
        rows = self._require_rows(field, value)
        if isinstance(rows[0], dict):
            return self._rows_of_records(rows)
        if len(self._names) == 1 and not isinstance(rows[0], list):
            rows = [[value] for value in rows]
        return self._rows_of_lists(self._names, rows)

    def _require_rows(self, field: str, value: Any) -> list[Any]:
        expected = f"a list of 1 to {self._max_rows} rows"
        if not isinstance(value, list):
            raise invalid_field(field, f"{show(field)} is {describe_value(value)}; send {expected}", expected)
        if not 1 <= len(value) <= self._max_rows:
            raise invalid_field(field, f"{show(field)} has {len(value)} rows; send {expected}", expected)
        return value

    def _rows_of_records(self, records: list[Any]) -> Rows:
        """Read objects that have the same features each, in any order."""
        faults = Faults()
        names = set(self._names)
        for index, record in enumerate(records):
            if not isinstance(record, dict):
                faults.add(f"the row is {describe_value(record)}; send an object", index, None, "object")
            elif record.keys() != names:
                _add_key_faults(index, record, self._columns, faults)
            if faults.full:
                break
        faults.raise_any()
        return self._rows_of_columns({n: [r[n] for r in records] for n in self._names}, len(records))

    def _rows_of_lists(self, names: Sequence[str], rows: list[Any]) -> Rows:
        """Read lists of one value for each of `names`."""
        faults = Faults()
        for index, row in enumerate(rows):
            if not isinstance(row, list):
                message = f"the row is {describe_value(row)}; send a list of {len(names)} values"
                faults.add(message, index, None, "list")
            elif len(row) != len(names):
                message = f"the row has {len(row)} values; send {len(names)}: {', '.join(names[:20])}"
                faults.add(message, index, None, f"{len(names)} values")
        faults.raise_any()
        check_names(names, self._columns, faults)
        faults.raise_any()
        columns = zip(*rows, strict=True)
        return self._rows_of_columns(dict(zip(names, columns, strict=True)), len(rows))

    def _rows_of_columns(self, values_by_name: dict[str, Sequence[Any]], count: int) -> Rows:
        faults = Faults()
        check_names(list(values_by_name), self._columns, faults)
        faults.raise_any()
        arrays = [read_column(c, values_by_name[c.name], _read_value, faults) for c in self._columns]
        return rows_or_raise(self._columns, arrays, count, faults)


def _add_key_faults(index: int, record: dict[str, Any], columns: Sequence[Column], faults: Faults) -> None:
    missing = [c for c in columns if c.name not in record]
    for column in missing:
        message = f"{show(column.name)} is missing; {column.advice}"
        faults.add(message, index, column.name, column.expected)
    names = {c.name for c in columns}
    for name in record:
        if name not in names:
            faults.add_unknown("is not a feature of this model", name, [c.name for c in missing], index)


def _read_value(value: Any, column: Column) -> Any:
    """NaN, which Python's encoder writes for a missing value, is null."""
    if not isinstance(value, NonFiniteLiteral):
        return value
    if value.text == "NaN":
        return None
    raise ValueRejected(f"is {value.text}, which is not valid JSON; {column.advice}")
