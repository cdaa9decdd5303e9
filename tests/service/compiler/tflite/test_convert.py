"""Every supported estimator against its own .tflite on LiteRT."""

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
from service.compiler.tflite import convert, read_entries, read_metadata
from tests.service.compiler.tflite import cases
from tests.service.compiler.tflite.edge import at_thresholds, both, loaded, signature_of, single


@cache
def small() -> cases.Data:
    return cases.data(1500)


def fitted(name: str) -> tuple[Any, Array]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # they are made small on purpose
        return cases.fitted(name, small())


@pytest.mark.parametrize("name", cases.TREES)
def test_trees_label_every_row_as_the_estimator_does(tmp_path: Path, name: str) -> None:
    model, rows = fitted(name)
    beside = at_thresholds(model, rows, 3000) if "Encoder" not in name and "Column" not in name else rows[:0]
    expected, got = both(tmp_path, model, np.concatenate([rows, beside]))
    for output, values in expected.items():
        if output.endswith("label"):
            assert np.array_equal(values, got[output]), output
        else:
            assert np.allclose(values, got[output], rtol=5e-7, atol=2e-7), output


@pytest.mark.parametrize("name", cases.LINEAR | cases.TRANSFORMS)
def test_what_is_computed_in_float32_stays_close(tmp_path: Path, name: str) -> None:
    model, rows = fitted(name)
    expected, got = both(tmp_path, model, rows)
    for output, values in expected.items():
        if values.dtype.kind != "f":
            assert np.array_equal(values, got[output]), output
        else:
            scale = np.nanmax(np.abs(values), initial=1.0)
            assert np.allclose(values, got[output], rtol=1e-5, atol=2e-6 * scale, equal_nan=True), output


def test_one_row_gets_the_answer_it_gets_among_many(tmp_path: Path) -> None:
    model, rows = fitted("VotingClassifier, soft")
    signature = signature_of(model)
    runtime = loaded(tmp_path, convert(model, signature), signature)
    together = runtime.run(single(rows[:40]))
    for i in range(40):
        alone = runtime.run(single(rows[i : i + 1]))
        assert alone["label"].tolist() == together["label"][i : i + 1].tolist()
        assert np.allclose(alone["probabilities"], together["probabilities"][i : i + 1], atol=1e-6)


def test_float32_features_go_through_float32_scalers(tmp_path: Path) -> None:
    """scikit-learn scales float32 rows in float32: thresholds are moved back through that."""
    d = small()
    model = make_pipeline(StandardScaler(), RandomForestClassifier(20, random_state=0)).fit(d.x, d.three)
    given = [{"name": f"x{i}", "dtype": "float32"} for i in range(cases.FEATURES)]
    signature = signature_of(model, inputs=given)
    rows = single(np.concatenate([d.x, at_thresholds(model, d.x, 2000)]))
    expected = EstimatorRuntime(model, signature).run(rows)["label"]
    assert np.array_equal(expected, loaded(tmp_path, convert(model, signature), signature).run(rows)["label"])


def test_missing_values_may_be_all_that_a_split_asks_for(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x = np.where(random.random((400, 2)) < 0.3, np.nan, 1.0)
    y = np.isnan(x[:, 0]).astype(int)
    model = HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=5).fit(x, y)
    expected, got = both(
        tmp_path, model, np.array([[np.nan, 1], [1, np.nan], [1e30, 1], [-1e30, 1], [np.inf, 1]])
    )
    assert expected["label"].tolist() == got["label"].tolist() == [1, 0, 0, 0, 0]


def test_zero_and_the_smallest_floats_are_told_apart(tmp_path: Path) -> None:
    least = float(np.nextafter(np.float32(0), np.float32(1)))
    x = np.array([[-1.0], [0.0], [1.0]] * 10)
    model = GradientBoostingRegressor(n_estimators=3).fit(x, x.ravel())
    for tree in model.estimators_.ravel():
        tree.tree_.threshold[tree.tree_.children_left >= 0] = 0.0
    expected, got = both(tmp_path, model, np.array([[0.0], [-0.0], [least], [-least]]))
    assert np.allclose(expected["value"], got["value"], atol=1e-6)
    assert got["value"][0] != got["value"][2]


def test_a_device_finds_names_and_classes_in_the_file() -> None:
    d = small()
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


def test_the_same_estimator_gives_the_same_bytes() -> None:
    model, _ = fitted("RandomForestClassifier, two outputs")
    signature = signature_of(model)
    assert convert(model, signature) == convert(model, signature)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            KNeighborsClassifier(),
            "KNeighborsClassifier has no TFLite form; these do: AdaBoostClassifier, Bagg",
        ),
        (make_pipeline(StandardScaler(), SVC()), "SVC has no TFLite form"),
        (
            make_pipeline(FunctionTransformer(np.abs), DecisionTreeClassifier()),
            "FunctionTransformer calls a function",
        ),
        (HistGradientBoostingClassifier(categorical_features=[0]), "with categorical features"),
    ],
    ids=["neighbours", "kernel", "function", "categories"],
)
def test_what_has_no_form_is_refused_by_name(model: Any, reason: str) -> None:
    d = small()
    rows = d.counts if "Hist" in type(model).__name__ else d.x
    model = clone(model).fit(rows[:300], d.three[:300])
    with pytest.raises(Refused, match=reason):
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
def test_bytes_that_are_no_tflite_have_no_metadata(content: bytes) -> None:
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
