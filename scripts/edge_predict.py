#!/usr/bin/env python3
"""Run a .tflite file from the registry on the rows of a CSV file, as a program on a device does.

    edge_predict.py fraud.tflite rows.csv

Everything it needs is in the file: the features in their order, and the classes. Prints JSON: a prediction
per row, and the median time of one row in microseconds.

Needs Python 3.9 or newer and two packages: pip install numpy ai-edge-litert
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

METADATA_NAME = b"trivium"
TIMED_RUNS = 300


def read_metadata(tflite: bytes) -> dict[str, Any]:
    """Return the file's metadata: its task, features and outputs, and the bounds of whole numbers.

    `{"task", "features": [name, ...], "outputs": [{"name", "shape", "classes"?}, ...], "bounds"?: {...}}`
    """
    model = schema.Model.GetRootAs(tflite)
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        if entry.Name() == METADATA_NAME:
            metadata: dict[str, Any] = json.loads(bytes(model.Buffers(entry.Buffer()).DataAsNumpy()))
            return metadata
    raise SystemExit("the .tflite file has no Trivium metadata, so its features are unknown")


def read_rows(file: Path, features: list[str], bounds: dict[str, list[float]] | None = None) -> Any:
    """Return float32 [rows, features] in the order of `features`. Empty cells become NaN.

    Exits when a whole number is outside the bounds of its feature: float32 would round it.
    """
    with file.open(newline="") as lines:
        rows = [[float(row[name] or "nan") for name in features] for row in csv.DictReader(lines)]
    for name, (low, high) in (bounds or {}).items():
        for number, row in enumerate(rows):
            value = row[features.index(name)]
            if not (low <= value <= high and value == int(value)):
                expected = f"a whole number from {low:.0f} to {high:.0f}"
                raise SystemExit(f"row {number}: {name} is {value:.12g}; it is {expected}")
    return np.array(rows, np.float32).reshape(len(rows), len(features))


class Model:
    """A loaded .tflite file with its metadata."""

    def __init__(self, tflite: bytes) -> None:
        self.metadata = read_metadata(tflite)
        self._interpreter = Interpreter(model_content=tflite, num_threads=1)
        self._interpreter.allocate_tensors()
        self._signature = self._interpreter.get_signature_runner()
        (details,) = self._interpreter.get_input_details()
        if details["dtype"] is not np.float32:
            raise SystemExit(f"the file's input holds {details['dtype'].__name__}; only float32 is supported")
        shape = [int(n) for n in details["shape_signature"]]
        self._row_shape, self._fixed = shape[1:], shape[0] != -1

    def run(self, rows: Any) -> dict[str, Any]:
        """Return arrays by output name for rows as `read_rows` returns them.

        A file with a fixed number of rows runs one row at a time: its operators may rely on that number.
        """
        if self._fixed and len(rows) > 1:
            parts = [self.run(rows[index : index + 1]) for index in range(len(rows))]
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        self._interpreter.reset_all_variables()  # a recurrent operator keeps its state from call to call
        outputs: dict[str, Any] = self._signature(input=rows.reshape(len(rows), *self._row_shape))
        return outputs

    def predict(self, rows: Any) -> list[dict[str, Any]]:
        """Return one object per row: labels and probabilities by class, other outputs as numbers."""
        arrays = self.run(rows)
        predictions: list[dict[str, Any]] = [{} for _ in range(len(rows))]
        for output in self.metadata["outputs"]:
            name, classes = output["name"], output.get("classes")
            for row, value in zip(predictions, arrays[name].tolist()):  # noqa: B905 - Python 3.9 lacks `strict`
                if name == "sigmoids":
                    row.update(label_predictions(value, classes))
                elif classes and name.endswith("label"):
                    row[name] = classes[value]
                elif classes:
                    row[name] = {str(c): p for c, p in zip(classes, value)}  # noqa: B905
                else:
                    row[name] = value[0] if isinstance(value, list) and len(value) == 1 else value
        return predictions


def label_predictions(probabilities: list[float], classes: list[Any]) -> dict[str, Any]:
    """The answer of each of several independent labels; `classes` are two of each label in turn."""
    answers: dict[str, Any] = {}
    for number, probability in enumerate(probabilities):
        pair = classes[2 * number : 2 * number + 2]
        answers[f"y{number}.label"] = pair[probability > 0.5]
        answers[f"y{number}.probabilities"] = {str(pair[0]): 1.0 - probability, str(pair[1]): probability}
    return answers


def measure_latency_us(model: Model, rows: Any) -> float:
    """Return the median time of one row in microseconds."""
    times = []
    for index in range(TIMED_RUNS):
        row = rows[index % len(rows)][None]
        start = time.perf_counter()
        model.run(row)
        times.append((time.perf_counter() - start) * 1e6)
    return statistics.median(times)


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(f"usage: {Path(sys.argv[0]).name} MODEL.tflite ROWS.csv")
    model = Model(Path(sys.argv[1]).read_bytes())
    rows = read_rows(Path(sys.argv[2]), model.metadata["features"], model.metadata.get("bounds"))
    if len(rows) == 0:
        raise SystemExit(f"{sys.argv[2]} has no rows")
    result = {"predictions": model.predict(rows), "median_us": round(measure_latency_us(model, rows), 1)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
