"""Convert an estimator, run the file on LiteRT, and make rows where the two may differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from registry.rows import Array, Outputs, Rows
from registry.signature import Input, Signature
from service.compiler.measure.tree_thresholds import split_points
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.describe import describe
from service.compiler.signature.estimator import EstimatorRuntime
from service.compiler.tflite.conversion import convert
from service.runtime.tflite_runtime import TfliteRuntime


def signature_of(model: Any, rows: Array | None = None, **corrections: Any) -> Signature:
    """The signature without an example. Columns of `rows` with missing values are nullable."""
    if rows is not None:
        nullable = np.isnan(rows).any(axis=0)
        corrections["inputs"] = [{"name": f"x{i}", "nullable": bool(n)} for i, n in enumerate(nullable)]
    return describe(model, None, Corrections.read(corrections)).signature


def loaded(folder: Path, content: bytes, signature: Signature) -> TfliteRuntime:
    path = folder / "model.tflite"
    path.write_bytes(content)
    return TfliteRuntime(path, signature)


def device_rows(rows: Array) -> Rows:
    """Rows as a device sends them, in float32."""
    return Rows(matrix=rows.astype(np.float32).astype(np.float64))


def run_both(folder: Path, model: Any, rows: Array) -> tuple[Outputs, Outputs]:
    """(answers of the estimator, answers of its .tflite) to the same rows."""
    signature = signature_of(model, rows)
    float32_rows = device_rows(rows)
    got = loaded(folder, convert(model, signature), signature).run(float32_rows)
    return EstimatorRuntime(model, signature).run(float32_rows), got


def rows_at_thresholds(model: Any, rows: Array, limit: int | None = None) -> Array:
    """Repeated `rows` with one feature at a threshold of the model, and at the adjacent float32 numbers.

    Behind scalers, which round, up to three adjacent numbers on both sides. Empty without thresholds.
    """
    inputs = tuple(Input(name=f"x{i}", dtype="float64") for i in range(rows.shape[1]))
    points = split_points(model, inputs)
    splits = points.sample(len(points.source) if limit is None else limit, np.random.default_rng(0))
    splits = splits[np.abs(splits[:, 1]) < np.finfo(np.float32).max]
    feature, value, at = splits[:, 0].astype(int), splits[:, 1], np.arange(len(splits))
    scaled = any(source.steps for source in points.sources)
    single = value.astype(np.float32)
    neighbours = [single]
    for towards in (np.float32(-np.inf), np.float32(np.inf)):
        number = single
        for _ in range(3 if scaled else 1):
            number = np.nextafter(number, towards)
            neighbours.append(number)
    blocks = []
    for values in neighbours:
        block = rows[at % len(rows)].copy()
        block[at, feature] = values
        blocks.append(block)
    return np.concatenate(blocks)
