"""Builds of scikit-learn versions: runtime, parity, table of nodes and report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from registry.rows import Rows
from service.compiler.trees import flatten, forest_table
from service.runtime.nodes import NodeTable
from tests.service.compiler.helpers import build_model, runtime


def test_a_forest_with_a_csv_example_is_served_by_onnx(tmp_path: Path) -> None:
    data = load_breast_cancer(as_frame=True)
    model = RandomForestClassifier(100, random_state=0).fit(data.data, data.target)
    built = build_model(tmp_path, model, data.frame, target="target")
    assert (built.state, built.runtime) == ("ready", "onnx")
    assert built.signature is not None
    assert [i.name for i in built.signature.inputs] == list(data.data.columns)
    assert [o.name for o in built.signature.outputs] == ["label", "probabilities"]
    assert built.signature.outputs[0].classes == (0, 1)
    assert built.metrics["accuracy"] > 0.99
    assert built.report["parity"]["label_mismatches"] == 0
    assert set(built.report["parity"]["rows"]) == {"example", "random", "wide", "threshold"}
    assert (built.forest, built.report["forest"]["label_mismatches"]) == ("forest.nodes", 0)
    assert built.report["forest"]["rows"] == built.report["parity"]["rows"]
    assert built.report["bytes"]["forest"] == (tmp_path / "out" / "forest.nodes").stat().st_size
    assert msgspec.json.decode(msgspec.json.encode(built.report)) == built.report

    answered = runtime(tmp_path, built).run(Rows(matrix=data.data.to_numpy()))
    assert (answered["label"] == model.predict(data.data)).all()
    np.testing.assert_allclose(answered["probabilities"], model.predict_proba(data.data), atol=1e-6)


def test_the_signature_holds_an_example_value_and_the_range_of_each_feature(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.5, 2.0, 9.0, 4.0] * 5, "b": [1, 2, 3, 4] * 5})
    built = build_model(tmp_path, RandomForestClassifier(3).fit(frame, [0, 1, 0, 1] * 5), frame)
    assert built.signature is not None
    a, b = built.signature.inputs
    assert (a.dtype, a.example, a.minimum, a.maximum, a.nullable) == ("float64", 1.5, 1.5, 9.0, False)
    assert (b.dtype, b.example) == ("int64", 1)


def test_a_model_without_trees_gets_no_table_and_the_report_states_the_reason(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.5, 2.0, 9.0, 4.0] * 5})
    built = build_model(tmp_path, LinearRegression().fit(frame, frame["a"]), frame)
    assert (built.state, built.forest) == ("ready", None)
    assert built.report["forest"] == {"reason": "LinearRegression is not a tree ensemble"}


def test_the_table_includes_a_scaler_before_the_trees_unless_it_scales_in_float32(tmp_path: Path) -> None:
    data = load_breast_cancer(as_frame=True)
    model = make_pipeline(StandardScaler(), RandomForestClassifier(10, random_state=0))
    model.fit(data.data, data.target)
    built = build_model(tmp_path, model, data.data)
    assert (built.forest, built.report["forest"]["label_mismatches"]) == ("forest.nodes", 0)
    (tmp_path / "again").mkdir()
    single = {"inputs": [{"name": name, "dtype": "float32"} for name in data.data.columns]}
    built = build_model(tmp_path / "again", model, data.data, signature=single)
    assert (built.state, built.forest) == ("ready", None)
    assert "in float32" in built.report["forest"]["reason"]


def test_a_table_with_different_answers_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(model: Any) -> NodeTable:
        nodes = flatten.flatten(model)
        return replace(nodes, base=nodes.base + 1e-3)

    frame = pd.DataFrame({"a": [1.5, 2.0, 9.0, 4.0] * 5})
    model = RandomForestRegressor(3, random_state=0).fit(frame, frame["a"])
    with monkeypatch.context() as patched:
        patched.setattr(
            forest_table, "flatten", SimpleNamespace(is_forest=flatten.is_forest, flatten=shifted)
        )
        built = build_model(tmp_path, model, frame)
    assert (built.runtime, built.forest) == ("onnx", None)
    assert built.report["forest"]["reason"] == "its answers differ from the model's"
    assert built.report["forest"]["largest_difference"] > 1e-5
    assert {p.name for p in (tmp_path / "out").iterdir()} == {built.servable, built.measured}
