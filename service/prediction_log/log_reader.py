"""Reads the prediction log of a model: its rows in the order of time, with the labels of their predictions.

Rows of several versions have one schema: a column that a version lacks is null, and one whose type differs
between versions is text (float32 and float64 are float64). Reading one version keeps its types.

`feedback.label` (`feedback.label.<target>` with several targets) is the newest label of the row, with the
type of what the model predicts, and `feedback.time` is when it was reported. A label that does not have that
type is null there and in `feedback.invalid` as JSON.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from registry import db, labels
from registry.labels import Label, LabelValue
from registry.schema import class_key
from registry.signature import DType
from service.prediction_log import log_files
from service.prediction_log.log_files import LogFile
from service.prediction_log.log_parquet import MergedRows, from_datetime, times_of
from service.prediction_log.log_tables import CALL_FIELDS, INPUT, TIME, LabelColumn, label_columns
from service.runtime.codec.arrow_types import ARROW_TYPES

LABEL_TIME, LABEL_INVALID = "feedback.time", "feedback.invalid"
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_BOOLEANS = {"true": True, "false": False}

LabelLookup = Callable[[Collection[str]], Mapping[tuple[str, int], Label]]
"""Return the labels of these predictions by prediction id and row."""


class Selection(NamedTuple):
    """Rows of one version or of all, from the time `start` on, and before `end`."""

    start: datetime | None = None
    end: datetime | None = None
    version: int | None = None


class _VersionFiles(NamedTuple):
    files: list[LogFile]
    schema: Any


class LogReader:
    """The selected rows of a model's log, as they were recorded when the reader was created.

    `schema` is that of every batch. Memory does not grow with the number of rows.
    """

    def __init__(self, directory: Path, selection: Selection, lookup: LabelLookup | None = None) -> None:
        """`directory`: of the model. Without `lookup`, the columns of labels are left out."""
        self._directory = directory
        self._selection = selection
        self._lookup = lookup
        versions = self._list()
        self._label_columns = {number: label_columns(v.schema) for number, v in versions.items()}
        self._row_schema = _united([v.schema for v in versions.values()])
        self._files = [file for v in versions.values() for file in v.files]
        self._label_schema = self._label_fields() if lookup is not None else []
        self.schema = pa.schema([*self._row_schema, *self._label_schema])

    def batches(self) -> Iterator[Any]:
        """Yield record batches in the order of time."""
        for table in self._tables():
            if self._lookup is not None:
                table = self._with_labels(table, self._lookup)
            yield from table.combine_chunks().to_batches()

    def _list(self) -> dict[int, _VersionFiles]:
        """Return the files that may have selected rows, and the schema, of each version that has some."""
        directories = log_files.version_directories(self._directory)
        if self._selection.version is not None:
            number = self._selection.version
            directories = {number: directories[number]} if number in directories else {}
        while True:
            try:
                with log_files.locked(self._directory, shared=True):
                    listed = {number: log_files.list_files(d) for number, d in directories.items()}
                    return {
                        number: _VersionFiles(self._selected(files), pq.read_schema(files[0].path))
                        for number, files in listed.items()
                        if files
                    }
            except FileNotFoundError:
                if not self._directory.exists():
                    return {}

    def _selected(self, files: list[LogFile]) -> list[LogFile]:
        start, end, _ = self._selection
        return [f for f in files if (start is None or f.last >= start) and (end is None or f.first < end)]

    def _tables(self) -> Iterator[Any]:
        start, end, _ = self._selection
        after = None if start is None else from_datetime(start) - 1
        rows = MergedRows(self._files, self._row_schema, after)
        while True:
            try:
                for table in rows:
                    if end is None or from_datetime(end) > times_of(table)[-1]:
                        yield table
                        continue
                    stop = int(times_of(table).searchsorted(from_datetime(end)))
                    if stop:
                        yield table.slice(0, stop)
                    return
            except FileNotFoundError:  # it was merged, or deleted because of its age, since it was listed
                listed = [v for number, v in self._list().items() if number in self._label_columns]
                files = [file for v in listed for file in v.files]
                rows = MergedRows(files, self._row_schema, rows.position)
            else:
                return

    def _label_fields(self) -> list[Any]:
        columns = [pa.schema(map(_label_field, columns)) for columns in self._label_columns.values()]
        fields = _united_fields(columns) or {"feedback.label": pa.string()}
        return [
            *(pa.field(name, kind) for name, kind in fields.items()),
            pa.field(LABEL_TIME, TIME),
            pa.field(LABEL_INVALID, pa.string()),
        ]

    def _with_labels(self, table: Any, lookup: LabelLookup) -> Any:
        """Append the columns of labels to a table of rows."""
        ids = table.column("id").to_pylist()
        found = lookup(set(ids))
        values: dict[str, list[Any]] = {field.name: [None] * len(ids) for field in self._label_schema}
        if found:
            places = zip(
                ids, table.column("row").to_pylist(), table.column("version").to_pylist(), strict=True
            )
            for index, (prediction_id, row, version) in enumerate(places):
                label = found.get((prediction_id, row))
                if label is not None and label.value is not None:
                    values[LABEL_TIME][index] = label.at
                    self._set_label(values, index, label.value, self._label_columns[version])
        columns = [
            pa.array(values[f.name], pa.string()).cast(f.type)
            if pa.types.is_string(f.type)
            else pa.array(values[f.name], f.type)
            for f in self._label_schema
        ]
        return pa.Table.from_arrays([*table.columns, *columns], schema=self.schema)

    def _set_label(
        self, values: dict[str, list[Any]], index: int, value: LabelValue, columns: list[LabelColumn]
    ) -> None:
        typed = typed_labels(value, columns)
        if typed is None:
            values[LABEL_INVALID][index] = msgspec.json.encode(value).decode()
            return
        for name, label in typed.items():
            is_text = pa.types.is_string(self.schema.field(name).type)
            values[name][index] = class_key(label) if is_text and label is not None else label


def database_labels(sessions: db.Sessions, model: str) -> LabelLookup:
    """Return a lookup of the labels of the keys that have access to `model`."""
    with db.reading(sessions) as session:
        key_ids = labels.keys_reaching(session, model)

    def lookup(prediction_ids: Collection[str]) -> Mapping[tuple[str, int], Label]:
        with db.reading(sessions) as session:
            return labels.of_predictions(session, prediction_ids, key_ids)

    return lookup


def typed_labels(value: LabelValue, columns: list[LabelColumn]) -> dict[str, Any] | None:
    """Return the labels of one row by column, with the types of the columns; None if one does not have it.

    With several targets, the value is an object that has some of the targets.
    """
    by_target = value if isinstance(value, dict) else {None: value}
    names = {column.target: column for column in columns}
    if not by_target or not set(by_target) <= set(names):
        return None
    typed = {}
    for target, label in by_target.items():
        column = names[target]
        if label is not None and (label := typed_label(label, column.dtype)) is None:
            return None
        typed[column.name] = label
    return typed


def typed_label(label: str | bool | int | float, dtype: DType) -> Any:
    """Return the label as a value of `dtype`, None if it is none. Texts of numbers are numbers.

    Text is compared as the keys of `probabilities` are: 1 and "1" are the same class.
    """
    text = class_key(label)
    if dtype == "string":
        return text
    if dtype == "bool":
        return _BOOLEANS.get(text.lower())
    if isinstance(label, bool):
        return None
    if dtype == "int64":
        text = text.removesuffix(".0")
        number = int(text) if _INTEGER.fullmatch(text) else None
        return number if number is not None and -(2**63) <= number < 2**63 else None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _label_field(column: LabelColumn) -> Any:
    return pa.field(column.name, ARROW_TYPES[column.dtype])


def _united(schemas: list[Any]) -> Any:
    """Return the schema of the rows of all versions: the columns of the call, inputs, then outputs."""
    fields = _united_fields([pa.schema(CALL_FIELDS), *schemas])
    calls = {field.name for field in CALL_FIELDS}
    inputs = [name for name in fields if name.startswith(INPUT)]
    outputs = [name for name in fields if name not in calls and not name.startswith(INPUT)]
    return pa.schema([*CALL_FIELDS, *(pa.field(name, fields[name]) for name in inputs + outputs)])


def _united_fields(schemas: list[Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for schema in schemas:
        for field in schema:
            fields[field.name] = _united_type(fields.get(field.name, field.type), field.type)
    return fields


def _united_type(one: Any, other: Any) -> Any:
    if one == other:
        return one
    return pa.float64() if {one, other} <= {pa.float32(), pa.float64()} else pa.string()
