"""Build a model as a publish does: pickled, with an example file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import joblib
import pandas as pd

from registry.build_messages import BuildRequest, BuildResult
from service.compiler import safeload
from service.compiler.build import build_version
from service.compiler.signature.estimator import EstimatorRuntime
from service.runtime.onnx_runtime import OnnxRuntime


def build_model(folder: Path, model: Any, frame: pd.DataFrame | None = None, **options: Any) -> BuildResult:
    """Build `model` with `frame` as its CSV example."""
    artifact = folder / "model.joblib"
    joblib.dump(model, artifact)
    return build_file(folder, artifact, frame, **options)


def build_file(
    folder: Path, artifact: Path, frame: pd.DataFrame | None = None, **options: Any
) -> BuildResult:
    out = folder / "out"
    out.mkdir()
    if frame is not None:
        frame.to_csv(folder / "example.csv", index=False)
        options |= {"example": str(folder / "example.csv"), "example_media_type": "text/csv"}
    options.setdefault("format", "sklearn-joblib")
    return build_version(BuildRequest(artifact=str(artifact), out=str(out), **options))


def runtime(folder: Path, built: BuildResult) -> Any:
    """The runtime that serves `built`; for an isolated version the one inside its child process."""
    assert built.state == "ready", built.report
    assert built.signature is not None
    if built.runtime == "onnx":
        assert built.servable is not None
        return OnnxRuntime(folder / "out" / built.servable, built.signature)
    return EstimatorRuntime(safeload.load(folder / "model.joblib"), built.signature)
