"""Every supported estimator against its .tflite on LiteRT."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from registry.errors import Invalid, Refused
from registry.rows import Array, Rows
from registry.signature import Input, Output, Signature
from service.compiler.signature.estimator import EstimatorRuntime
from service.compiler.tflite.conversion import convert
from service.compiler.tflite.metadata import read_entries, read_metadata
from tests.service.compiler.tflite import cases
from tests.service.compiler.tflite.litert_helpers import (
    device_rows,
    loaded,
    rows_at_thresholds,
    run_both,
    signature_of,
)


@cache
def small_data() -> cases.Data:
    return cases.data(1500)


def fitted(name: str) -> tuple[Any, Array]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # few iterations, for speed
        return cases.fitted(name, small_data())


@pytest.mark.parametrize("name", cases.TREES)
def test_labels_of_trees_equal_the_estimator_on_every_row(tmp_path: Path, name: str) -> None:
    model, rows = fitted(name)
    has_thresholds = "Encoder" not in name and "Column" not in name
    edge_rows = rows_at_thresholds(model, rows, 3000) if has_thresholds else rows[:0]
    expected, got = run_both(tmp_path, model, np.concatenate([rows, edge_rows]))
    for output, values in expected.items():
        if output.endswith("label"):
            assert np.array_equal(values, got[output]), output
        else:
            assert np.allclose(values, got[output], rtol=5e-7, atol=2e-7), output


@pytest.mark.parametrize("name", cases.LINEAR | cases.TRANSFORMS)
def test_answers_in_float32_are_close(tmp_path: Path, name: str) -> None:
    model, rows = fitted(name)
    expected, got = run_both(tmp_path, model, rows)
    for output, values in expected.items():
        if values.dtype.kind != "f":
            assert np.array_equal(values, got[output]), output
        else:
            scale = np.nanmax(np.abs(values), initial=1.0)
            assert np.allclose(values, got[output], rtol=1e-5, atol=2e-6 * scale, equal_nan=True), output


def test_a_row_has_the_same_answer_alone_and_in_a_batch(tmp_path: Path) -> None:
    model, rows = fitted("VotingClassifier, soft")
    signature = signature_of(model)
    runtime = loaded(tmp_path, convert(model, signature), signature)
    batch_outputs = runtime.run(device_rows(rows[:40]))
    for i in range(40):
        row_outputs = runtime.run(device_rows(rows[i : i + 1]))
        assert row_outputs["label"].tolist() == batch_outputs["label"][i : i + 1].tolist()
        assert np.allclose(row_outputs["probabilities"], batch_outputs["probabilities"][i : i + 1], atol=1e-6)


def test_float32_features_are_scaled_in_float32(tmp_path: Path) -> None:
    """scikit-learn scales float32 rows in float32, so thresholds are moved back through that arithmetic."""
    d = small_data()
    model = make_pipeline(StandardScaler(), RandomForestClassifier(20, random_state=0)).fit(d.x, d.three)
    inputs = [{"name": f"x{i}", "dtype": "float32"} for i in range(cases.FEATURES)]
    signature = signature_of(model, inputs=inputs)
    rows = device_rows(np.concatenate([d.x, rows_at_thresholds(model, d.x, 2000)]))
    expected = EstimatorRuntime(model, signature).run(rows)["label"]
    assert np.array_equal(expected, loaded(tmp_path, convert(model, signature), signature).run(rows)["label"])


def test_a_split_may_test_for_missing_values_only(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x = np.where(random.random((400, 2)) < 0.3, np.nan, 1.0)
    y = np.isnan(x[:, 0]).astype(int)
    model = HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=5).fit(x, y)
    expected, got = run_both(
        tmp_path, model, np.array([[np.nan, 1], [1, np.nan], [1e30, 1], [-1e30, 1], [np.inf, 1]])
    )
    assert expected["label"].tolist() == got["label"].tolist() == [1, 0, 0, 0, 0]


def test_zero_differs_from_the_smallest_floats(tmp_path: Path) -> None:
    smallest = float(np.nextafter(np.float32(0), np.float32(1)))
    x = np.array([[-1.0], [0.0], [1.0]] * 10)
    model = GradientBoostingRegressor(n_estimators=3).fit(x, x.ravel())
    for tree in model.estimators_.ravel():
        tree.tree_.threshold[tree.tree_.children_left >= 0] = 0.0
    expected, got = run_both(tmp_path, model, np.array([[0.0], [-0.0], [smallest], [-smallest]]))
    assert np.allclose(expected["value"], got["value"], atol=1e-6)
    assert got["value"][0] != got["value"][2]


def test_the_file_contains_names_and_classes() -> None:
    d = small_data()
    model = RandomForestClassifier(3, random_state=0).fit(d.x[:, :2], d.names)
    signature = signature_of(model, inputs=[{"name": "flow"}, {"name": "heat"}])
    content = convert(model, signature)
    assert read_metadata(content) == {
        "task": "classification",
        "features": ["flow", "heat"],
        "outputs": [
            {"name": "label", "shape": [-1], "classes": ["high", "low", "middle"]},
            {"name": "probabilities", "shape": [-1, 3], "classes": ["high", "low", "middle"]},
        ],
        "model": "RandomForestClassifier",
    }
    assert list(read_entries(content)) == ["trivium"]


def test_two_conversions_give_the_same_bytes() -> None:
    model, _ = fitted("RandomForestClassifier, two outputs")
    signature = signature_of(model)
    assert convert(model, signature) == convert(model, signature)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            KNeighborsClassifier(),
            "KNeighborsClassifier has no TFLite form; supported: AdaBoostClassifier, Bagg",
        ),
        (make_pipeline(StandardScaler(), SVC()), "SVC has no TFLite form"),
        (
            make_pipeline(FunctionTransformer(np.abs), DecisionTreeClassifier()),
            "FunctionTransformer calls a Python function",
        ),
        (HistGradientBoostingClassifier(categorical_features=[0]), "with categorical features"),
    ],
    ids=["neighbours", "kernel", "function", "categories"],
)
def test_an_unsupported_estimator_is_refused_by_name(model: Any, message: str) -> None:
    d = small_data()
    rows = d.counts if "Hist" in type(model).__name__ else d.x
    model = clone(model).fit(rows[:300], d.three[:300])
    with pytest.raises(Refused, match=message):
        convert(model, signature_of(model))


def test_text_features_are_refused_by_name() -> None:
    model = make_pipeline(ColumnTransformer([("c", OneHotEncoder(), [0])]), LogisticRegression())
    model.fit(np.array([["a"], ["b"]] * 10, dtype=object), [0, 1] * 10)
    signature = Signature(
        "classification", (Input("colour", "string"),), (Output("label", "int64", (-1,), (0, 1)),)
    )
    with pytest.raises(Refused, match="feature 'colour' is text"):
        convert(model, signature)


@pytest.mark.parametrize("content", [b"", b"nonsense" * 100, b"\x10\x00\x00\x00TFL3" + bytes(range(200))])
def test_metadata_of_other_bytes_is_invalid(content: bytes) -> None:
    with pytest.raises(Invalid):
        read_metadata(content)


def test_an_empty_batch_has_an_empty_answer(tmp_path: Path) -> None:
    model, _ = fitted("LogisticRegression")
    signature = signature_of(model)
    answer = loaded(tmp_path, convert(model, signature), signature).run(
        Rows(matrix=np.empty((0, cases.FEATURES)))
    )
    assert answer["label"].shape == (0,)
    assert answer["probabilities"].shape == (0, 3)
