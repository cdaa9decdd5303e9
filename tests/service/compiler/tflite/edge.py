"""Converting an estimator, running the file on LiteRT, and where the two are known to part."""

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
from service.compiler.tflite import convert
from service.runtime.tflite_runtime import TfliteRuntime


def signature_of(model: Any, rows: Array | None = None, **given: Any) -> Signature:
    """As a publish without example finds it; columns of `rows` with missing values are nullable."""
    if rows is not None:
        holed = np.isnan(rows).any(axis=0)
        given["inputs"] = [{"name": f"x{i}", "nullable": bool(h)} for i, h in enumerate(holed)]
    return describe(model, None, Corrections.read(given)).signature


def loaded(folder: Path, content: bytes, signature: Signature) -> TfliteRuntime:
    path = folder / "model.tflite"
    path.write_bytes(content)
    return TfliteRuntime(path, signature)


def single(rows: Array) -> Rows:
    """What a device can send: float32."""
    return Rows(matrix=rows.astype(np.float32).astype(np.float64))


def both(folder: Path, model: Any, rows: Array) -> tuple[Outputs, Outputs]:
    """What the estimator and its .tflite answer to the same rows."""
    signature = signature_of(model, rows)
    taken = single(rows)
    got = loaded(folder, convert(model, signature), signature).run(taken)
    return EstimatorRuntime(model, signature).run(taken), got


def at_thresholds(model: Any, rows: Array, limit: int | None = None) -> Array:
    """`rows` (repeated) with one feature at a tree's threshold and one float32 to either side of it; behind
    scalers, which round, up to three float32 to either side of the way back. Empty where there is none."""
    inputs = tuple(Input(name=f"x{i}", dtype="float64") for i in range(rows.shape[1]))
    points = split_points(model, inputs)
    splits = points.sample(len(points.source) if limit is None else limit, np.random.default_rng(0))
    splits = splits[np.abs(splits[:, 1]) < np.finfo(np.float32).max]
    feature, value, at = splits[:, 0].astype(int), splits[:, 1], np.arange(len(splits))
    scaled = any(source.steps for source in points.sources)
    single = value.astype(np.float32)
    beside = [single]
    for towards in (np.float32(-np.inf), np.float32(np.inf)):
        here = single
        for _ in range(3 if scaled else 1):
            here = np.nextafter(here, towards)
            beside.append(here)
    blocks = []
    for values in beside:
        block = rows[at % len(rows)].copy()
        block[at, feature] = values
        blocks.append(block)
    return np.concatenate(blocks)
