"""Columns of a prediction log, and the conversion of recorded calls to a table.

One row of the table is one row of a call: `id` of the prediction, `row`, `time`, `version`, `alias`,
`request_id`, then `input.<feature>` and `output.<column>` with the types of the version's signature. The
outputs have the names of batch outputs (`label`, `probability.<class>`, ...). Missing values, NaN and
infinity are null, as in answers.

Calls are joined to chunks soon after they were answered, which frees their small arrays. A chunk becomes
columns when a file is written. A call of one row and 30 features costs 2 us.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from registry.rows import NUMPY_DTYPES, Array, Outputs, Rows
from registry.signature import DType, Signature
from service import startup
from service.runtime.codec.answer_encoder import AnswerEncoder

startup.import_pyarrow()
import pyarrow as pa  # noqa: E402

from service.runtime.codec.arrow_types import ARROW_TYPES  # noqa: E402

INPUT, OUTPUT = "input.", "output."
TIME = pa.timestamp("us", tz="UTC")
CALL_FIELDS = (
    pa.field("id", pa.string()),
    pa.field("row", pa.int32()),
    pa.field("time", TIME),
    pa.field("version", pa.int32()),
    pa.field("alias", pa.string()),
    pa.field("request_id", pa.string()),
)
_METADATA = b"trivium.labels"


class LabelColumn(msgspec.Struct, frozen=True):
    """The column of the true values of one target. `target`: None if the model has one target only."""

    name: str
    dtype: DType
    target: str | None = None


RecordedCall = tuple[float, str, str | None, str | None, int, Rows, Outputs]
"""Time in seconds since 1970, prediction id, alias, request id, number of rows, rows and outputs."""


class Chunk(NamedTuple):
    """Joined calls. Numbers stay numpy arrays until `LogTable.table`; texts are Arrow arrays."""

    rows: int
    calls: tuple[Any, ...]  # columns `id`, `row`, `time`, `alias`, `request_id`
    inputs: Sequence[Any]  # one matrix, or one array per feature
    outputs: Mapping[str, Any]


class LogTable:
    """The table of one version."""

    def __init__(self, number: int, signature: Signature) -> None:
        self._number = number
        self._inputs = [i.dtype for i in signature.inputs]
        self._answers = AnswerEncoder(signature)
        columns = [pa.field(INPUT + i.name, ARROW_TYPES[i.dtype]) for i in signature.inputs]
        for name, array in self._answers.table(_empty_outputs(signature)).items():
            is_text = array.dtype.kind in "OU"
            kind = pa.string() if is_text else pa.from_numpy_dtype(array.dtype)
            columns.append(pa.field(OUTPUT + name, kind))
        labels = msgspec.json.encode(_label_columns(signature))
        self.schema = pa.schema([*CALL_FIELDS, *columns], {_METADATA: labels})

    def chunk(self, calls: Sequence[RecordedCall]) -> Chunk:
        """Join the rows of calls, in their order."""
        times, ids, aliases, request_ids, counts, rows, outputs = zip(*calls, strict=True)
        total = sum(counts)
        moments = np.rint(np.array(times) * 1e6).astype(np.int64)
        id_column = pa.array(ids, pa.string())
        alias_column, request_column = _text_column(aliases), _text_column(request_ids)
        numbers = np.zeros(total, np.int32)
        if total > len(calls):
            positions = np.repeat(np.arange(len(calls)), counts)
            index = pa.array(positions)
            id_column, alias_column, request_column = (
                column.take(index) for column in (id_column, alias_column, request_column)
            )
            moments = moments[positions]
            starts = np.cumsum(counts) - counts
            numbers = (np.arange(total) - np.repeat(starts, counts)).astype(np.int32)
        call_columns = (id_column, numbers, moments, alias_column, request_column)
        if rows[0].matrix is not None:
            inputs = [np.concatenate([r.matrix for r in rows])]
        else:
            columns = zip(*(r.columns for r in rows), strict=True)
            inputs = [_join(parts, dtype) for parts, dtype in zip(columns, self._inputs, strict=True)]
        joined = {name: _join_outputs([o[name] for o in outputs]) for name in outputs[0]}
        return Chunk(total, call_columns, inputs, joined)

    def table(self, chunks: Sequence[Chunk]) -> Any:
        """Return the rows of all chunks, in their order."""
        ids, numbers, moments, aliases, request_ids = zip(*(c.calls for c in chunks), strict=True)
        times = np.concatenate(moments)
        columns = [
            pa.chunked_array(ids),
            pa.array(np.concatenate(numbers)),
            pa.array(times).view(TIME),
            pa.array(np.full(len(times), self._number, np.int32)),
            pa.chunked_array(aliases),
            pa.chunked_array(request_ids),
            *self._input_columns([c.inputs for c in chunks]),
            *self._output_columns([c.outputs for c in chunks]),
        ]
        return pa.Table.from_arrays(columns, schema=self.schema)

    def _input_columns(self, inputs: Sequence[Sequence[Any]]) -> list[Any]:
        if len(inputs[0]) == 1 and getattr(inputs[0][0], "ndim", 1) == 2:
            matrix = np.concatenate([parts[0] for parts in inputs])
            arrays: Any = ([column] for column in np.ascontiguousarray(matrix.T))
        else:
            arrays = zip(*inputs, strict=True)
        return [_input_column(parts, dtype) for parts, dtype in zip(arrays, self._inputs, strict=True)]

    def _output_columns(self, outputs: Sequence[Mapping[str, Any]]) -> list[Any]:
        arrays: Outputs = {}
        texts: dict[str, Any] = {}
        for name, part in outputs[0].items():
            parts = [o[name] for o in outputs]
            if isinstance(part, pa.Array):
                texts[name] = pa.chunked_array(parts)
                arrays[name] = np.empty(0, object)
            else:
                arrays[name] = np.concatenate(parts)
        columns = []
        for field in self._answers.fields:
            if field.output in texts:
                columns.append(texts[field.output])
            else:
                columns += [self._output_column(name, array) for name, array in field.columns(arrays)]
        return columns

    def _output_column(self, name: str, array: Array) -> Any:
        kind = self.schema.field(OUTPUT + name).type
        if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
            return pa.array(array, kind, mask=~finite)
        return pa.array(np.ascontiguousarray(array), kind)


def label_columns(schema: Any) -> list[LabelColumn]:
    """Return the label columns of a version, from the schema of one of its files."""
    return msgspec.json.decode(schema.metadata[_METADATA], type=list[LabelColumn])


def _label_columns(signature: Signature) -> list[LabelColumn]:
    """One column per target, with the type of what the model predicts.

    A transformer predicts nothing that could be compared; its labels are text.
    """
    columns = []
    for output in signature.outputs:
        target, _, key = output.name.rpartition(".")
        if key in ("label", "value", "cluster"):
            columns.append(_label_column(target or None, output.dtype))
        elif key == "values":
            names = output.classes or tuple(f"y{j}" for j in range(output.shape[-1]))
            columns += [_label_column(str(name), output.dtype) for name in names]
    return columns or [_label_column(None, "string")]


def _label_column(target: str | None, dtype: DType) -> LabelColumn:
    return LabelColumn("feedback.label" if target is None else f"feedback.label.{target}", dtype, target)


def _empty_outputs(signature: Signature) -> Outputs:
    return {
        o.name: np.empty((0, *(max(d, 0) for d in o.shape[1:])), NUMPY_DTYPES[o.dtype])
        for o in signature.outputs
    }


def _text_column(texts: Sequence[str | None]) -> Any:
    if texts.count(texts[0]) == len(texts):  # nearly always: the alias of most calls, no request id
        return pa.repeat(pa.scalar(texts[0], pa.string()), len(texts))
    return pa.array(texts, pa.string())


def _join(parts: Sequence[Array], dtype: DType) -> Any:
    """Join the values of one feature, texts as an Arrow array."""
    if dtype == "string":
        return pa.array(np.concatenate(parts), pa.string())
    if len({part.dtype for part in parts}) > 1:  # numpy would round integers to floats
        return pa.concat_arrays([_numbers(part, dtype) for part in parts])
    return np.concatenate(parts)


def _join_outputs(parts: Sequence[Array]) -> Any:
    joined = np.concatenate(parts)
    return pa.array(joined, pa.string()) if joined.dtype.kind in "OU" and joined.ndim == 1 else joined


def _input_column(parts: Sequence[Any], dtype: DType) -> Any:
    """Return the Arrow column of one feature."""
    if any(isinstance(part, pa.Array) for part in parts):
        return pa.chunked_array([p if isinstance(p, pa.Array) else _numbers(p, dtype) for p in parts])
    return _numbers(parts[0] if len(parts) == 1 else np.concatenate(parts), dtype)


def _numbers(array: Array, dtype: DType) -> Any:
    """Convert numbers of `Rows`, in which NaN is a missing value."""
    missing = None
    if array.dtype.kind == "f" and np.isnan(array).any():
        missing = np.isnan(array)
        array = np.where(missing, 0, array)
    return pa.array(array.astype(NUMPY_DTYPES[dtype], copy=False), mask=missing)
