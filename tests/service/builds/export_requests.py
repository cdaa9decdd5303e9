"""Export requests for small fitted models, as the supervisor writes them."""

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
    """Features f0, f1, ... and a label `y`: whether their sum is positive, with noise."""
    random = np.random.default_rng(seed)
    frame = pd.DataFrame(random.normal(size=(rows, features)), columns=[f"f{i}" for i in range(features)])
    frame["y"] = np.where(frame.sum(axis=1) + random.normal(0, 0.2, rows) > 0, "yes", "no")
    return frame


def signature_of(model: Any, file: Path | None, target: str | None = None) -> Signature:
    sample = None if file is None else example.read(file, PARQUET, target)
    return describe.describe(model, sample, Corrections.read(None)).signature


def export_request(
    folder: Path, model: Any, rows: pd.DataFrame | None, target: str | None = "y", **options: Any
) -> ExportRequest:
    """Write the files of an export of a fitted `model`; `rows` is its example."""
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
        **options,
    )
