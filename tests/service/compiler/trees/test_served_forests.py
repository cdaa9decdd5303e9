"""Served forests on rows where runtimes may differ: thresholds, ties, missing values, wide ranges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer, make_classification
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from registry.rows import Array, Rows
from service.compiler.measure.comparison_rows import with_neighbours
from service.compiler.measure.tree_thresholds import tree_splits
from tests.service.compiler.helpers import build_model, runtime

CANCER = load_breast_cancer(as_frame=True)


def served(folder: Path, model: Any, frame: pd.DataFrame) -> Any:
    built = build_model(folder, model, frame)
    assert built.runtime == "onnx", built.runtime_reason
    return runtime(folder, built)


def rows_around_thresholds(model: Any, base: Array) -> Array:
    """For each threshold, rows at it and at the adjacent float32 and float64 numbers."""
    pairs = tree_splits(model)
    rows = np.repeat(base[:1], len(pairs), axis=0)
    blocks = []
    for values in with_neighbours(pairs[:, 1]):
        block = rows.copy()
        block[np.arange(len(pairs)), pairs[:, 0].astype(int)] = values
        blocks.append(block)
    return np.concatenate(blocks)


@pytest.mark.parametrize(
    "classifier", [RandomForestClassifier, ExtraTreesClassifier, GradientBoostingClassifier]
)
def test_a_forest_gives_the_same_answers_at_and_next_to_every_threshold(
    tmp_path: Path, classifier: Any
) -> None:
    model = classifier(n_estimators=30, random_state=0).fit(CANCER.data.to_numpy(), CANCER.target)
    rows = rows_around_thresholds(model, CANCER.data.to_numpy())
    answered = served(tmp_path, model, CANCER.data).run(Rows(matrix=rows))
    assert (answered["label"] == model.predict(rows)).all()
    np.testing.assert_allclose(answered["probabilities"], model.predict_proba(rows), atol=1e-9)


def test_ties_go_to_the_class_that_scikit_learn_predicts(tmp_path: Path) -> None:
    features, labels = make_classification(400, 8, flip_y=0.4, random_state=0)
    model = RandomForestClassifier(50, random_state=0).fit(features, labels)
    rows = np.random.default_rng(1).normal(size=(5000, 8))
    probabilities = model.predict_proba(rows)
    assert (probabilities[:, 0] == probabilities[:, 1]).sum() > 20, "the data set must have ties"
    frame = pd.DataFrame(features, columns=[f"x{i}" for i in range(8)])
    answered = served(tmp_path, model, frame).run(Rows(matrix=rows))
    assert (answered["label"] == model.predict(rows)).all()
    assert (answered["probabilities"] == probabilities).all()


def test_a_scaler_before_a_forest_computes_in_float64(tmp_path: Path) -> None:
    model = make_pipeline(StandardScaler(), RandomForestClassifier(20, random_state=0))
    model.fit(CANCER.data.to_numpy(), CANCER.target)
    rows = np.random.default_rng(0).uniform(CANCER.data.min(), CANCER.data.max(), (5000, 30))
    answered = served(tmp_path, model, CANCER.data).run(Rows(matrix=rows))
    assert (answered["label"] == model.predict(rows)).all()


def with_missing_values(rows: Array) -> Array:
    missing = np.random.default_rng(3).random(rows.shape) < 0.15
    return np.where(missing, np.nan, rows)


@pytest.mark.parametrize(
    "estimator", [RandomForestClassifier(20, random_state=0), HistGradientBoostingClassifier()]
)
def test_missing_values_go_to_the_side_that_the_trees_learned(tmp_path: Path, estimator: Any) -> None:
    rows = with_missing_values(CANCER.data.to_numpy())
    model = estimator.fit(rows, CANCER.target)
    built = build_model(tmp_path, model, pd.DataFrame(rows, columns=CANCER.data.columns))
    assert built.runtime == "onnx", built.runtime_reason
    assert built.report["parity"]["rows"]["missing"] > 0
    assert built.signature is not None
    assert all(i.nullable for i in built.signature.inputs)
    new_rows = with_missing_values(
        np.random.default_rng(5).uniform(rows[~np.isnan(rows).any(1)].min(), 100, (2000, 30))
    )
    answered = runtime(tmp_path, built).run(Rows(matrix=new_rows))
    assert (answered["label"] == model.predict(new_rows)).all()
    np.testing.assert_allclose(answered["probabilities"], model.predict_proba(new_rows), atol=1e-9)


@pytest.mark.parametrize("loss", ["squared_error", "poisson"])
def test_histogram_boosting_supports_columns_of_very_different_ranges(tmp_path: Path, loss: str) -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(500, 4)) * [1e-6, 1.0, 1e6, 1e12]
    model = HistGradientBoostingRegressor(loss=loss).fit(
        features, np.abs(features[:, 2]) + features[:, 1] ** 2
    )
    frame = pd.DataFrame(features, columns=list("abcd"))
    rows = np.vstack([features, features * 10, rows_around_thresholds(model, features)])
    answered = served(tmp_path, model, frame).run(Rows(matrix=rows))
    np.testing.assert_allclose(answered["value"], model.predict(rows), rtol=1e-9)


def test_a_forest_with_several_targets_has_the_output_values(tmp_path: Path) -> None:
    data = CANCER.data.iloc[:, :5]
    model = RandomForestRegressor(10, random_state=0).fit(data, CANCER.data.iloc[:, 5:8])
    built = build_model(tmp_path, model, data)
    assert built.signature is not None
    assert built.signature.outputs[0].classes == ("y0", "y1", "y2")
    answered = runtime(tmp_path, built).run(Rows(matrix=data.to_numpy()))
    np.testing.assert_allclose(answered["values"], model.predict(data), rtol=1e-9)


def test_an_isolation_forest_gives_the_score_of_decision_function(tmp_path: Path) -> None:
    model = IsolationForest(n_estimators=50, max_features=0.5, contamination=0.1, random_state=0).fit(
        CANCER.data
    )
    answered = served(tmp_path, model, CANCER.data).run(Rows(matrix=CANCER.data.to_numpy()))
    assert (answered["label"] == model.predict(CANCER.data)).all()
    np.testing.assert_allclose(answered["score"], model.decision_function(CANCER.data), atol=1e-12)


def test_a_model_that_differs_in_onnx_is_served_by_the_estimator_itself(tmp_path: Path) -> None:
    targets = np.column_stack([CANCER.target, CANCER.data["mean area"] > 600]).astype(int)
    model = RandomForestClassifier(10, random_state=0).fit(CANCER.data, targets)
    built = build_model(tmp_path, model, CANCER.data)
    assert (built.state, built.runtime, built.servable) == ("ready", "isolated", None)
    assert built.runtime_reason is not None
    assert "drifts" in built.runtime_reason
    assert "threshold rows" in built.runtime_reason
    assert [c["outcome"] for c in built.report["candidates"]] == ["drifts", "drifts"]
    files = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert files == ["forest.nodes", "measured.msgpack"], "graphs with other answers are deleted"
    answered = runtime(tmp_path, built).run(Rows(matrix=CANCER.data.to_numpy()))
    assert (answered["y1.label"] == model.predict(CANCER.data)[:, 1]).all()
