"""What may stand before trees in a pipeline must never cost the model its build."""

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

from registry.build_records import BuildJob, Built
from service.compiler.build import build

RANDOM = np.random.default_rng(0)
FRAME = pd.DataFrame(RANDOM.normal(size=(120, 3)), columns=["a", "b", "c"])
FRAME.iloc[::7, 1] = np.nan
TARGET = (FRAME.a > 0).astype(int)


def built(steps: list[Any], folder: Path) -> Built:
    model = make_pipeline(*steps, RandomForestClassifier(10, random_state=0)).fit(FRAME, TARGET)
    joblib.dump(model, folder / "model.joblib")
    FRAME.to_csv(folder / "example.csv", index=False)
    (out := folder / "out").mkdir()
    job = BuildJob(
        artifact=str(folder / "model.joblib"),
        format="sklearn-joblib",
        out=str(out),
        example=str(folder / "example.csv"),
        example_media_type="text/csv",
    )
    return build(job)


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
    ids=lambda given: "+".join(type(s).__name__ for s in given) if isinstance(given, list) else "",
)
def test_a_forest_behind_other_steps_is_ready(
    steps: list[Any], at_thresholds: bool | None, tmp_path: Path
) -> None:
    made = built(steps, tmp_path)
    assert made.state == "ready", made.report
    if made.runtime == "onnx" and at_thresholds is not None:
        rows = made.report["parity"]["rows"]
        assert ("threshold" in rows) == at_thresholds, rows
        assert ("untried" in made.report["parity"]) != at_thresholds
