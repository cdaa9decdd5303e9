"""Export jobs of small real models, as a supervisor would write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd

from registry.build_messages import ExportRequest
from registry.signature import Signature
from service.compiler import example
from service.compiler.signature import describe
from service.compiler.signature.corrections import Corrections

PARQUET = "application/vnd.apache.parquet"


def table(rows: int = 400, features: int = 4, seed: int = 0) -> pd.DataFrame:
    """Features f0, f1, ... and a label `y` that most of them have a say in."""
    random = np.random.default_rng(seed)
    found = pd.DataFrame(random.normal(size=(rows, features)), columns=[f"f{i}" for i in range(features)])
    found["y"] = np.where(found.sum(axis=1) + random.normal(0, 0.2, rows) > 0, "yes", "no")
    return found


def signature_of(model: Any, file: Path | None, target: str | None = None) -> Signature:
    sample = None if file is None else example.read(file, PARQUET, target)
    return describe.describe(model, sample, Corrections.read(None)).signature


def job_of(
    folder: Path, model: Any, rows: pd.DataFrame | None, target: str | None = "y", **given: Any
) -> ExportRequest:
    """`model` is fitted, `rows` its example."""
    out, artifact, file = folder / "out", folder / "model.joblib", None
    out.mkdir()
    joblib.dump(model, artifact)
    if rows is not None:
        file = folder / "example.parquet"
        rows.to_parquet(file)
    target = target if rows is not None and target in rows else None
    return ExportRequest(
        artifact=str(artifact),
        format="sklearn-joblib",
        signature=signature_of(model, file, target),
        model="m",
        version=1,
        out=str(out),
        example=None if file is None else str(file),
        example_media_type=PARQUET,
        target=target,
        **given,
    )
