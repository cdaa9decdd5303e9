"""`scripts/edge_predict.py` on exported files, in a separate process and in this one."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ai_edge_litert import schema_py_generated as schema
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import IsolationForest, RandomForestClassifier, RandomForestRegressor

from scripts import edge_predict
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.describe import describe
from service.compiler.tflite import conversion
from service.compiler.tflite.stamp import pack

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
    assert answer["median_us"] == round(answer["median_us"], 1)
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


# ---- in this process ----


@pytest.fixture(scope="module")
def forest() -> tuple[bytes, pd.DataFrame, Any]:
    """A .tflite file with two outputs, rows for it, and its model."""
    iris = load_iris(as_frame=True)
    rows = iris.data.astype(np.float32)
    model = RandomForestClassifier(5, random_state=0).fit(rows, iris.target_names[iris.target])
    return conversion.convert(model, describe(model, None, Corrections()).signature), rows, model


def test_rows_are_read_in_the_order_of_the_features_and_empty_cells_are_missing(tmp_path: Path) -> None:
    (file := tmp_path / "rows.csv").write_text("b,a,c\n1,2.5,x\n,-3,\n0,,\n")
    rows = edge_predict.read_rows(file, ["a", "b"])
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, np.array([[2.5, 1], [-3, np.nan], [np.nan, 0]], np.float32))


def test_a_file_with_a_header_only_has_no_rows(tmp_path: Path) -> None:
    (file := tmp_path / "rows.csv").write_text("a,b\n")
    assert edge_predict.read_rows(file, ["a", "b"]).shape == (0, 2)


def test_a_file_without_the_metadata_of_trivium_is_refused(forest: tuple[bytes, pd.DataFrame, Any]) -> None:
    tflite, _, _ = forest
    named_otherwise = schema.ModelT.InitFromPackedBuf(tflite, 0)
    (entry,) = (m for m in named_otherwise.metadata if bytes(m.name) == b"trivium")
    entry.name = b"another"
    without_metadata = schema.ModelT.InitFromPackedBuf(tflite, 0)
    without_metadata.metadata = []
    for parsed in (named_otherwise, without_metadata):
        with pytest.raises(SystemExit, match="has no Trivium metadata"):
            edge_predict.Model(pack(parsed))


def test_the_metadata_is_found_behind_other_entries(forest: tuple[bytes, pd.DataFrame, Any]) -> None:
    tflite, rows, model = forest
    parsed = schema.ModelT.InitFromPackedBuf(tflite, 0)
    other = schema.MetadataT()
    other.name, other.buffer = b"another", 0
    parsed.metadata = [other, *parsed.metadata, other]
    loaded = edge_predict.Model(pack(parsed))
    assert loaded.metadata["features"] == list(rows.columns)
    values = rows.to_numpy()[:3]
    assert [p["label"] for p in loaded.predict(values)] == model.predict(rows[:3]).tolist()


def test_each_row_has_its_own_prediction(forest: tuple[bytes, pd.DataFrame, Any]) -> None:
    tflite, rows, model = forest
    loaded = edge_predict.Model(tflite)
    chosen = rows.iloc[[0, 75, 149]]
    assert [p["label"] for p in loaded.predict(chosen.to_numpy())] == model.predict(chosen).tolist()
    assert loaded.predict(chosen.to_numpy()[:0]) == []


def test_several_numbers_of_an_output_are_a_list_without_names(
    forest: tuple[bytes, pd.DataFrame, Any],
) -> None:
    tflite, rows, model = forest
    loaded = edge_predict.Model(tflite)
    for output in loaded.metadata["outputs"]:
        output.pop("classes")
    (first,) = loaded.predict(rows.to_numpy()[:1])
    assert first["label"] == 0, "the index of the label"
    np.testing.assert_allclose(first["probabilities"], model.predict_proba(rows[:1])[0], atol=1e-6)


def test_the_latency_is_the_median_of_300_runs_of_one_row(
    forest: tuple[bytes, pd.DataFrame, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tflite, rows, _ = forest
    loaded, clock, batches = edge_predict.Model(tflite), [0.0], []

    def run(batch: Any) -> dict[str, Any]:
        batches.append(batch)
        clock[0] += 1e-6 * len(batches)  # 1, 2, ... microseconds
        return {}

    monkeypatch.setattr(loaded, "run", run)
    monkeypatch.setattr(edge_predict, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    values = rows.to_numpy()[:7]
    assert edge_predict.measure_latency_us(loaded, values) == pytest.approx(150.5)
    assert len(batches) == 300
    assert {batch.shape for batch in batches} == {(1, 4)}
    np.testing.assert_array_equal(np.concatenate(batches[:8]), values[[0, 1, 2, 3, 4, 5, 6, 0]])


@pytest.mark.parametrize("arguments", [[], ["m.tflite"], ["m.tflite", "rows.csv", "more"]])
def test_the_command_requires_a_model_and_rows(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/edge_predict.py", *arguments])
    with pytest.raises(SystemExit, match=r"usage: edge_predict\.py MODEL\.tflite ROWS\.csv"):
        edge_predict.main()


def test_a_file_without_rows_is_refused(
    tmp_path: Path, forest: tuple[bytes, pd.DataFrame, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tflite, rows, _ = forest
    (tmp_path / "m.tflite").write_bytes(tflite)
    rows[:0].to_csv(tmp_path / "rows.csv", index=False)
    monkeypatch.setattr(
        sys, "argv", ["edge_predict.py", str(tmp_path / "m.tflite"), str(tmp_path / "rows.csv")]
    )
    with pytest.raises(SystemExit, match="has no rows"):
        edge_predict.main()
