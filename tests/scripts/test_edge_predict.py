"""`scripts/edge_predict.py` on exported files, in a separate process."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import IsolationForest, RandomForestClassifier, RandomForestRegressor

from service.compiler.signature.corrections import Corrections
from service.compiler.signature.describe import describe
from service.compiler.tflite import conversion

SCRIPT = Path(__file__).parents[2] / "scripts" / "edge_predict.py"


def run_script(folder: Path, model: Any, rows: pd.DataFrame) -> subprocess.CompletedProcess[str]:
    (folder / "m.tflite").write_bytes(
        conversion.convert(model, describe(model, None, Corrections()).signature)
    )
    rows.to_csv(folder / "rows.csv", index=False)
    return subprocess.run(
        [sys.executable, SCRIPT, folder / "m.tflite", folder / "rows.csv"], capture_output=True, text=True
    )


def predict(folder: Path, model: Any, rows: pd.DataFrame) -> list[dict[str, Any]]:
    process = run_script(folder, model, rows)
    assert process.returncode == 0, process.stderr
    answer = json.loads(process.stdout)
    assert answer["median_us"] > 0
    return list(answer["predictions"])


def test_classes_are_named_for_reordered_columns_and_missing_values(tmp_path: Path) -> None:
    iris = load_iris(as_frame=True)
    rows = (
        iris.data.astype(np.float32)
        .astype(float)
        .mask(np.random.default_rng(0).random(iris.data.shape) < 0.1)
    )
    names = iris.target_names[iris.target]
    model = RandomForestClassifier(20, random_state=0).fit(rows, names)
    predictions = predict(tmp_path, model, rows[rows.columns[::-1]].assign(extra=1))
    assert [p["label"] for p in predictions] == model.predict(rows).tolist()
    probabilities = [[p["probabilities"][name] for name in model.classes_] for p in predictions]
    np.testing.assert_allclose(probabilities, model.predict_proba(rows), atol=1e-5)


def test_a_regression_returns_numbers(tmp_path: Path) -> None:
    diabetes = load_diabetes(as_frame=True)
    rows = diabetes.data.astype(np.float32)
    model = RandomForestRegressor(10, random_state=0).fit(rows, diabetes.target)
    values = [p["value"] for p in predict(tmp_path, model, rows)]
    np.testing.assert_allclose(values, model.predict(rows), rtol=1e-5)


def test_an_outlier_has_the_label_minus_one(tmp_path: Path) -> None:
    rows = load_iris(as_frame=True).data.astype(np.float32)
    model = IsolationForest(n_estimators=20, random_state=0).fit(rows)
    assert [p["label"] for p in predict(tmp_path, model, rows)] == model.predict(rows).tolist()


def test_a_missing_feature_column_is_named_in_the_error(tmp_path: Path) -> None:
    rows = load_iris(as_frame=True).data
    model = IsolationForest(n_estimators=5, random_state=0).fit(rows)
    process = run_script(tmp_path, model, rows.drop(columns="petal width (cm)"))
    assert process.returncode == 1
    assert "petal width (cm)" in process.stderr.splitlines()[-1]


def test_the_script_runs_on_python_3_9_and_imports_only_numpy_and_litert() -> None:
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 9))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported - set(sys.stdlib_module_names) == {"numpy", "ai_edge_litert"}


@pytest.mark.parametrize("content", [b"", b"no model"], ids=["empty", "text"])
def test_a_file_that_is_not_tflite_fails(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.tflite").write_bytes(content)
    process = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "m.tflite", "rows.csv"], capture_output=True, text=True
    )
    assert process.returncode == 1
