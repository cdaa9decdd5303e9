"""Converting an estimator, running the file on LiteRT, and where the two are known to part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from registry.build.describe import describe
from registry.build.estimator import Estimator
from registry.build.given import Corrections
from registry.build.tflite import convert
from registry.build.thresholds import before_trees, thresholds
from registry.rows import Array, Outputs, Rows
from registry.signature import Signature
from service.runtime.tflite import TfliteRuntime


def signature_of(model: Any, **given: Any) -> Signature:
    return describe(model, None, Corrections.read(given)).signature


def runtime(folder: Path, model: Any, signature: Signature) -> TfliteRuntime:
    path = folder / "model.tflite"
    path.write_bytes(convert(model, signature))
    return TfliteRuntime(path, signature)


def both(folder: Path, model: Any, rows: Array, **given: Any) -> tuple[Outputs, Outputs]:
    """What the estimator and its .tflite answer to the same rows, which are rounded to float32 before."""
    signature = signature_of(model, **given)
    taken = Rows(matrix=rows.astype(np.float32).astype(np.float64))
    return Estimator(model, signature).run(taken), runtime(folder, model, signature).run(taken)


def at_thresholds(model: Any, rows: Array, limit: int | None = None) -> Array:
    """`rows` (repeated) with one feature at a tree's threshold and one float32 to either side of it; behind
    scalers, which round, up to three float32 to either side of the way back. Empty where there is none."""
    splits = thresholds(model)
    splits = splits[np.isfinite(splits[:, 1]) & (np.abs(splits[:, 1]) < np.finfo(np.float32).max)]
    steps = before_trees(model)
    if steps and np.shape(steps[-1].transform(_through(steps[:-1], rows[:1]))) != (1, rows.shape[1]):
        return rows[:0]
    splits = splits[np.random.default_rng(0).permutation(len(splits))[:limit]]
    feature, at = splits[:, 0].astype(int), np.arange(len(splits))
    value = splits[:, 1]
    if steps:
        inside = np.array(_through(steps, rows[at % len(rows)]))
        inside[at, feature] = value
        for step in reversed(steps):
            inside = step.inverse_transform(inside)
        value = inside[at, feature]
    single = value.astype(np.float32)
    beside = [single]
    for towards in (np.float32(-np.inf), np.float32(np.inf)):
        here = single
        for _ in range(3 if steps else 1):
            here = np.nextafter(here, towards)
            beside.append(here)
    blocks = []
    for values in beside:
        block = rows[at % len(rows)].copy()
        block[at, feature] = values
        blocks.append(block)
    return np.concatenate(blocks)


def _through(steps: list[Any], rows: Array) -> Array:
    for step in steps:
        rows = step.transform(rows)
    return rows
