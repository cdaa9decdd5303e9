"""Converting an estimator, running the file on LiteRT, and where the two are known to part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from registry.build.describe import describe
from registry.build.estimator import Estimator
from registry.build.given import Corrections
from registry.build.tflite import convert
from registry.build.thresholds import thresholds
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
    """`rows` (repeated) with one feature at a tree's threshold and one float32 to either side of it."""
    splits = thresholds(model)[:limit]
    with np.errstate(over="ignore"):
        single = splits[:, 1].astype(np.float32)
    feature = splits[:, 0].astype(int)
    at = np.arange(len(splits))
    blocks = []
    for beside in (
        single,
        np.nextafter(single, np.float32(-np.inf)),
        np.nextafter(single, np.float32(np.inf)),
    ):
        block = rows[at % len(rows)].copy()
        block[at, feature] = beside
        blocks.append(block)
    return np.concatenate(blocks)
