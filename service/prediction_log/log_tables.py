"""Columns of a prediction log, and the conversion of recorded calls to Arrow record batches.

One row of the table is one row of a call: `id` of the prediction, `row`, `time`, `version`, `alias`,
`request_id`, then `input.<feature>` and `output.<column>` with the types of the version's signature. The
outputs have the names of batch outputs (`label`, `probability.<class>`, ...). Missing values, NaN and
infinity are null, as in answers.

Calls are converted many at a time: matrices are concatenated, so that a call of one row costs 3 us.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class RecordedCall(NamedTuple):
    """One call. `time` is in seconds since 1970, when it was answered."""

    time: float
    id: str
    alias: str | None
    request_id: str | None
    row_count: int
    rows: Rows
    outputs: Outputs


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

    def batch(self, calls: Sequence[RecordedCall]) -> Any:
        """Return the rows of the calls as one record batch, in the order of the calls."""
        times, ids, aliases, request_ids, counts, rows, outputs = zip(*calls, strict=True)
        total = sum(counts)
        moments = np.rint(np.array(times) * 1e6).astype(np.int64)
        call_columns = [pa.array(ids, pa.string()), pa.array(aliases, pa.string())]
        call_columns.append(pa.array(request_ids, pa.string()))
        numbers = np.zeros(total, np.int32)
        if total > len(calls):
            positions = np.repeat(np.arange(len(calls)), counts)
            call_columns = [column.take(pa.array(positions)) for column in call_columns]
            moments = moments[positions]
            starts = np.cumsum(counts) - counts
            numbers = (np.arange(total) - np.repeat(starts, counts)).astype(np.int32)
        id_column, alias_column, request_column = call_columns
        columns = [
            id_column,
            pa.array(numbers),
            pa.array(moments).view(TIME),
            pa.array(np.full(total, self._number, np.int32)),
            alias_column,
            request_column,
            *self._input_columns(rows),
            *self._output_columns(outputs),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _input_columns(self, rows: Sequence[Rows]) -> list[Any]:
        if rows[0].matrix is not None:
            arrays = np.ascontiguousarray(np.concatenate([r.matrix for r in rows]).T)
            return [_input_column(array, dtype) for array, dtype in zip(arrays, self._inputs, strict=True)]
        columns = zip(*(r.columns for r in rows), strict=True)
        return [_joined_column(parts, dtype) for parts, dtype in zip(columns, self._inputs, strict=True)]

    def _output_columns(self, outputs: Sequence[Outputs]) -> list[Any]:
        if len(outputs) == 1:
            joined = outputs[0]
        else:
            joined = {name: np.concatenate([o[name] for o in outputs]) for name in outputs[0]}
        fields = self.schema.field
        return [_output_column(a, fields(OUTPUT + n).type) for n, a in self._answers.table(joined).items()]


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


def _joined_column(parts: Sequence[Array], dtype: DType) -> Any:
    if len({part.dtype for part in parts}) > 1:  # numpy would round integers to floats
        return pa.concat_arrays([_input_column(part, dtype) for part in parts])
    return _input_column(np.concatenate(parts), dtype)


def _input_column(array: Array, dtype: DType) -> Any:
    """Convert a column of `Rows`, in which missing numbers are NaN."""
    if dtype == "string":
        return pa.array(array, pa.string())
    missing = None
    if array.dtype.kind == "f" and np.isnan(array).any():
        missing = np.isnan(array)
        array = np.where(missing, 0, array)
    return pa.array(array.astype(NUMPY_DTYPES[dtype], copy=False), mask=missing)


def _output_column(array: Array, kind: Any) -> Any:
    if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
        return pa.array(array, kind, mask=~finite)
    return pa.array(array, kind)
