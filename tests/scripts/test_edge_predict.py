"""What a program on a device makes of a file of ours, in a process of its own."""

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

from service.compiler import tflite
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.describe import describe

SCRIPT = Path(__file__).parents[2] / "scripts" / "edge_predict.py"


def run(folder: Path, model: Any, rows: pd.DataFrame) -> subprocess.CompletedProcess[str]:
    (folder / "m.tflite").write_bytes(tflite.convert(model, describe(model, None, Corrections()).signature))
    rows.to_csv(folder / "rows.csv", index=False)
    return subprocess.run(
        [sys.executable, SCRIPT, folder / "m.tflite", folder / "rows.csv"], capture_output=True, text=True
    )


def predicted(folder: Path, model: Any, rows: pd.DataFrame) -> list[dict[str, Any]]:
    done = run(folder, model, rows)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["median_us"] > 0
    return list(answer["predictions"])


def test_classes_have_their_names_whatever_the_order_of_the_columns_and_with_gaps(tmp_path: Path) -> None:
    iris = load_iris(as_frame=True)
    rows = (
        iris.data.astype(np.float32)
        .astype(float)
        .mask(np.random.default_rng(0).random(iris.data.shape) < 0.1)
    )
    names = iris.target_names[iris.target]
    model = RandomForestClassifier(20, random_state=0).fit(rows, names)
    found = predicted(tmp_path, model, rows[rows.columns[::-1]].assign(more=1))
    assert [p["label"] for p in found] == model.predict(rows).tolist()
    chances = [[p["probabilities"][name] for name in model.classes_] for p in found]
    np.testing.assert_allclose(chances, model.predict_proba(rows), atol=1e-5)


def test_a_number_is_a_number(tmp_path: Path) -> None:
    diabetes = load_diabetes(as_frame=True)
    rows = diabetes.data.astype(np.float32)
    model = RandomForestRegressor(10, random_state=0).fit(rows, diabetes.target)
    found = [p["value"] for p in predicted(tmp_path, model, rows)]
    np.testing.assert_allclose(found, model.predict(rows), rtol=1e-5)


def test_an_outlier_is_minus_one(tmp_path: Path) -> None:
    rows = load_iris(as_frame=True).data.astype(np.float32)
    model = IsolationForest(n_estimators=20, random_state=0).fit(rows)
    assert [p["label"] for p in predicted(tmp_path, model, rows)] == model.predict(rows).tolist()


def test_a_table_without_one_of_the_features_is_refused_by_its_name(tmp_path: Path) -> None:
    rows = load_iris(as_frame=True).data
    model = IsolationForest(n_estimators=5, random_state=0).fit(rows)
    done = run(tmp_path, model, rows.drop(columns="petal width (cm)"))
    assert done.returncode == 1
    assert "petal width (cm)" in done.stderr.splitlines()[-1]


def test_it_needs_numpy_and_litert_and_nothing_else_and_reads_as_python_3_9() -> None:
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 9))
    named = {
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
    assert named - set(sys.stdlib_module_names) == {"numpy", "ai_edge_litert"}


@pytest.mark.parametrize("content", [b"", b"no model"], ids=["empty", "text"])
def test_what_is_no_tflite_fails(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.tflite").write_bytes(content)
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "m.tflite", "rows.csv"], capture_output=True, text=True
    )
    assert done.returncode == 1
