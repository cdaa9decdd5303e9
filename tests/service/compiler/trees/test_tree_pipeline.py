"""A build must succeed for any transformer before a forest in a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, PowerTransformer, StandardScaler

from registry.build_messages import BuildRequest, BuildResult
from service.compiler.build import build_version

RANDOM = np.random.default_rng(0)
FRAME = pd.DataFrame(RANDOM.normal(size=(120, 3)), columns=["a", "b", "c"])
FRAME.iloc[::7, 1] = np.nan
TARGET = (FRAME.a > 0).astype(int)


def build_pipeline(steps: list[Any], folder: Path) -> BuildResult:
    model = make_pipeline(*steps, RandomForestClassifier(10, random_state=0)).fit(FRAME, TARGET)
    joblib.dump(model, folder / "model.joblib")
    FRAME.to_csv(folder / "example.csv", index=False)
    (out := folder / "out").mkdir()
    request = BuildRequest(
        artifact=str(folder / "model.joblib"),
        format="sklearn-joblib",
        out=str(out),
        example=str(folder / "example.csv"),
        example_media_type="text/csv",
    )
    return build_version(request)


@pytest.mark.parametrize(
    ("steps", "at_thresholds"),
    [
        ([SimpleImputer()], True),
        ([SimpleImputer(), StandardScaler()], True),
        ([SimpleImputer(add_indicator=True)], True),
        ([KNNImputer()], True),
        ([SimpleImputer(), PowerTransformer()], True),
        ([SimpleImputer(), PCA(2)], False),
        ([SimpleImputer(), FunctionTransformer(np.abs)], None),
    ],
    ids=lambda value: "+".join(type(s).__name__ for s in value) if isinstance(value, list) else "",
)
def test_a_forest_after_transformers_is_ready(
    steps: list[Any], at_thresholds: bool | None, tmp_path: Path
) -> None:
    result = build_pipeline(steps, tmp_path)
    assert result.state == "ready", result.report
    if result.runtime == "onnx" and at_thresholds is not None:
        rows = result.report["parity"]["rows"]
        assert ("threshold" in rows) == at_thresholds, rows
        assert ("untried" in result.report["parity"]) != at_thresholds
