"""Calls of models without a server: rows that a codec decoded, and outputs of every dtype."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from registry.rows import NUMPY_DTYPES, Outputs, Rows
from registry.signature import Input, Output, Signature
from service.prediction_log import log_files
from service.prediction_log.log_parquet import from_datetime, in_time_order, write_table
from service.prediction_log.log_reader import LogReader, Selection
from service.prediction_log.log_tables import LogTable
from service.runtime.codec import Codec
from service.runtime.snapshot import SnapshotLog

LOG = SnapshotLog(7, 1.0)
SIMPLE = Signature("regression", (Input("x", "float64"),), (Output("value", "float64", (-1,)),))


class RecordedCall(NamedTuple):
    """One call. `time` is in seconds since 1970."""

    time: float
    id: str
    alias: str | None
    request_id: str | None
    row_count: int
    rows: Rows
    outputs: Outputs


class Loaded(NamedTuple):
    """What the recorder uses of a loaded model."""

    name: str
    number: int
    codec: Codec


def loaded(number: int = 1, signature: Signature = SIMPLE) -> Any:
    return Loaded("m", number, Codec(signature))


def decode(signature: Signature, instances: Sequence[dict[str, Any]]) -> Rows:
    return Codec(signature).decode_json(msgspec.json.encode({"instances": instances}))


def outputs_of(signature: Signature, count: int, seed: int = 0) -> Outputs:
    """Outputs of each dtype; a float output has NaN and infinity, too."""
    generator = np.random.default_rng(seed)
    outputs: Outputs = {}
    for output in signature.outputs:
        shape = (count, *output.shape[1:])
        if output.classes and output.name.endswith("label"):
            classes = np.array(output.classes, NUMPY_DTYPES[output.dtype])
            outputs[output.name] = generator.choice(classes, shape)
        elif output.dtype == "string":
            outputs[output.name] = np.array([["a", "b"]] * count, object)
        else:
            values = generator.normal(size=shape) * 10
            if output.dtype == "float64" and count > 2:
                values.flat[:2] = np.nan, np.inf
            outputs[output.name] = values.astype(NUMPY_DTYPES[output.dtype])
    return outputs


def simple_call(number: int, time_s: float = 0.0, rows: int = 1) -> RecordedCall:
    """A call of `SIMPLE` whose feature is `number`, and whose answer is twice that."""
    features = np.full((rows, 1), float(number))
    outputs = {"value": 2 * features[:, 0]}
    prediction_id = prediction_id_of(number)
    return RecordedCall(
        time_s or float(number), prediction_id, "champion", None, rows, Rows(matrix=features), outputs
    )


def prediction_id_of(number: int) -> str:
    return f"pred-0123456789-{number:x}"


def write_calls(
    root: Path,
    calls: Sequence[RecordedCall],
    writer: str,
    *,
    version: int = 1,
    level: int = 0,
    signature: Signature = SIMPLE,
) -> Path:
    """Write one file of the log of the model m."""
    table = LogTable(version, signature)
    directory = log_files.model_directory(root, "m", LOG.model_id) / str(version)
    return write_table(directory, in_time_order(table.table([table.chunk(calls)])), level, writer)


def read(root: Path, *selection: Any, lookup: Any = None) -> list[dict[str, Any]]:
    """Return the rows of the log of the model m."""
    directory = log_files.model_directory(root, "m", LOG.model_id)
    reader = LogReader(directory, Selection(*selection), lookup)
    rows = [row for batch in reader.batches() for row in batch.to_pylist()]
    times = [from_datetime(row["time"]) for row in rows]
    assert times == sorted(times)
    return rows


def inputs(rows: Sequence[dict[str, Any]]) -> list[float]:
    return [row["input.x"] for row in rows]
