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
    """Return `{"task", "features": [name, ...], "outputs": [{"name", "shape", "classes"?}, ...]}`."""
    model = schema.Model.GetRootAs(tflite)
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        if entry.Name() == METADATA_NAME:
            metadata: dict[str, Any] = json.loads(bytes(model.Buffers(entry.Buffer()).DataAsNumpy()))
            return metadata
    raise SystemExit("the .tflite file has no Trivium metadata, so its features are unknown")


def read_rows(file: Path, features: list[str]) -> Any:
    """Return float32 [rows, features] in the order of `features`. Empty cells become NaN."""
    with file.open(newline="") as lines:
        rows = [[float(row[name] or "nan") for name in features] for row in csv.DictReader(lines)]
    return np.array(rows, np.float32).reshape(len(rows), len(features))


class Model:
    """A loaded .tflite file with its metadata."""

    def __init__(self, tflite: bytes) -> None:
        self.metadata = read_metadata(tflite)
        interpreter = Interpreter(model_content=tflite, num_threads=1)
        self._signature = interpreter.get_signature_runner()

    def run(self, rows: Any) -> dict[str, Any]:
        """Return arrays by output name for rows as `read_rows` returns them."""
        outputs: dict[str, Any] = self._signature(input=rows)
        return outputs

    def predict(self, rows: Any) -> list[dict[str, Any]]:
        """Return one object per row: labels and probabilities by class, other outputs as numbers."""
        arrays = self.run(rows)
        predictions: list[dict[str, Any]] = [{} for _ in range(len(rows))]
        for output in self.metadata["outputs"]:
            name, classes = output["name"], output.get("classes")
            for row, value in zip(predictions, arrays[name].tolist()):  # noqa: B905 - Python 3.9 lacks `strict`
                if classes and name.endswith("label"):
                    row[name] = classes[value]
                elif classes:
                    row[name] = {str(c): p for c, p in zip(classes, value)}  # noqa: B905
                else:
                    row[name] = value[0] if isinstance(value, list) and len(value) == 1 else value
        return predictions


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
    rows = read_rows(Path(sys.argv[2]), model.metadata["features"])
    if len(rows) == 0:
        raise SystemExit(f"{sys.argv[2]} has no rows")
    result = {"predictions": model.predict(rows), "median_us": round(measure_latency_us(model, rows), 1)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
