#!/usr/bin/env python3
"""What a program on a device does with a .tflite from the registry: feed it rows, and name its answers.

    edge_predict.py fraud.tflite rows.csv

All it must know is in the file: the features, in their order, and the classes. Prints JSON: a prediction for
each row of the CSV file, and the median time that one row takes.

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

ENTRY = b"trivium"
TIMED_RUNS = 300


def metadata(tflite: bytes) -> dict[str, Any]:
    """`{"task", "features": [name, ...], "outputs": [{"name", "shape", "classes"?}, ...]}`"""
    model = schema.Model.GetRootAs(tflite)
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        if entry.Name() == ENTRY:
            found: dict[str, Any] = json.loads(bytes(model.Buffers(entry.Buffer()).DataAsNumpy()))
            return found
    raise SystemExit("this .tflite was not written by Trivium: it does not say what its features are")


def read(file: Path, features: list[str]) -> Any:
    """float32 [rows, features], in the order that the file wants. What is empty is missing."""
    with file.open(newline="") as lines:
        rows = [[float(row[name] or "nan") for name in features] for row in csv.DictReader(lines)]
    return np.array(rows, np.float32).reshape(len(rows), len(features))


class Model:
    def __init__(self, tflite: bytes) -> None:
        self.about = metadata(tflite)
        interpreter = Interpreter(model_content=tflite, num_threads=1)
        self._signature = interpreter.get_signature_runner()

    def run(self, rows: Any) -> dict[str, Any]:
        """Arrays by output name, for as many rows as `read` gives."""
        answers: dict[str, Any] = self._signature(input=rows)
        return answers

    def predict(self, rows: Any) -> list[dict[str, Any]]:
        """One object a row: labels and probabilities by their classes, anything else as numbers."""
        answers = self.run(rows)
        found: list[dict[str, Any]] = [{} for _ in range(len(rows))]
        for output in self.about["outputs"]:
            name, classes = output["name"], output.get("classes")
            for row, value in zip(found, answers[name].tolist()):  # noqa: B905 - Python 3.9 has no `strict`
                if classes and name.endswith("label"):
                    row[name] = classes[value]
                elif classes:
                    row[name] = {str(c): p for c, p in zip(classes, value)}  # noqa: B905
                else:
                    row[name] = value[0] if isinstance(value, list) and len(value) == 1 else value
        return found


def median_us(model: Model, rows: Any) -> float:
    """Microseconds for one row."""
    taken = []
    for index in range(TIMED_RUNS):
        row = rows[index % len(rows)][None]
        started = time.perf_counter()
        model.run(row)
        taken.append((time.perf_counter() - started) * 1e6)
    return statistics.median(taken)


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(f"usage: {Path(sys.argv[0]).name} MODEL.tflite ROWS.csv")
    model = Model(Path(sys.argv[1]).read_bytes())
    rows = read(Path(sys.argv[2]), model.about["features"])
    found = {"predictions": model.predict(rows), "median_us": round(median_us(model, rows), 1)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
