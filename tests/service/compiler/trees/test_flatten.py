"""Answers exactly at a cut: at a tie of classes, at a threshold, at the offset of an outlier detector.

Each is compared with scikit-learn in all three forms of a tree ensemble: table of nodes, ONNX and .tflite.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from registry.errors import Refused
from registry.rows import Array, Outputs
from service.compiler.onnx import convert
from service.compiler.signature.estimator import EstimatorRuntime
from service.compiler.tflite import conversion
from service.compiler.trees.flatten import flatten, is_forest
from service.runtime import node_file
from service.runtime.forest_runtime import ForestRuntime
from service.runtime.kernel_code import load_or_compile
from service.runtime.onnx_runtime import OnnxRuntime
from tests.service.compiler.tflite.litert_helpers import device_rows, loaded, signature_of

COLUMN = np.array([[0.0], [1.0], [2.0], [3.0]])
RANDOM_ROWS = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32).astype(np.float64)


def all_answers(folder: Path, model: Any, rows: Array) -> dict[str, Outputs]:
    """The answers of the estimator itself and of its forms, for rows that float32 holds exactly."""
    signature = signature_of(model)
    node_file.save(flatten(model), folder / "forest.nodes")
    forms: dict[str, Any] = {
        "estimator": EstimatorRuntime(model, signature),
        "table": ForestRuntime(folder / "forest.nodes", signature, load_or_compile()),
        "tflite": loaded(folder, conversion.convert(model, signature), signature),
    }
    if not isinstance(model, AdaBoostClassifier):  # converted by skl2onnx itself
        graph = convert.convert(model, signature, convert.Candidate("float64", "tensor"))
        convert.save(graph, folder / "model.onnx")
        forms["onnx"] = OnnxRuntime(folder / "model.onnx", signature)
    return {name: form.run(device_rows(rows)) for name, form in forms.items()}


def labels(folder: Path, model: Any, rows: Array) -> list[Any]:
    """The labels, which all forms share."""
    answers = all_answers(folder, model, rows)
    of_form = {name: answer["label"].tolist() for name, answer in answers.items()}
    assert len({str(v) for v in of_form.values()}) == 1, of_form
    shared: list[Any] = of_form["estimator"]
    return shared


def boosting(loss: str, second: float) -> GradientBoostingClassifier:
    """Two trees with the same answer to all rows: 0.1, then `second`."""
    model = GradientBoostingClassifier(n_estimators=2, init="zero", learning_rate=1.0, loss=loss)
    model.fit(COLUMN, [0, 1, 0, 1])
    for (member,), value in zip(model.estimators_, (0.1, second), strict=True):
        member.tree_.value[:] = value
    return model


@pytest.mark.parametrize("loss", ["log_loss", "exponential"])
@pytest.mark.parametrize(("second", "label"), [(-0.1, 1), (-0.1 + 1e-9, 1), (-0.1 - 1e-9, 0)])
def test_gradient_boosting_answers_the_second_class_at_a_raw_score_of_0(
    tmp_path: Path, loss: str, second: float, label: int
) -> None:
    model = boosting(loss, second)
    assert model.decision_function(COLUMN[:1])[0] == 0.1 + second
    assert labels(tmp_path, model, COLUMN) == [label] * 4


def test_histogram_boosting_answers_the_first_class_at_a_raw_score_of_0(tmp_path: Path) -> None:
    model = HistGradientBoostingClassifier(max_iter=2).fit(np.zeros((4, 1)), [0, 1, 0, 1])
    assert model.decision_function(COLUMN[:1])[0] == 0.0
    assert labels(tmp_path, model, COLUMN) == [0] * 4
    model._baseline_prediction = np.array([[1e-9]])
    assert labels(tmp_path, model, COLUMN) == [1] * 4


def test_adaboost_answers_the_first_class_where_its_votes_are_equal(tmp_path: Path) -> None:
    model = AdaBoostClassifier(DecisionTreeClassifier(max_depth=1), n_estimators=2, random_state=0)
    model.fit(COLUMN, [0, 1, 0, 1])
    model.estimator_weights_[:] = 1.0
    assert model.decision_function(COLUMN).tolist() == [-2.0, 0.0, 0.0, 2.0]
    assert labels(tmp_path, model, COLUMN) == [0, 0, 0, 1]


@pytest.mark.parametrize("classes", [2, 3])
def test_a_forest_answers_the_first_class_where_its_votes_are_equal(tmp_path: Path, classes: int) -> None:
    model = RandomForestClassifier(classes, bootstrap=False, random_state=0)
    model.fit(COLUMN[:classes], np.arange(classes))
    for number, member in enumerate(model.estimators_):
        member.tree_.value[:] = np.eye(classes)[number]
    assert model.predict_proba(COLUMN[:1]).tolist() == [[1 / classes] * classes]
    assert labels(tmp_path, model, COLUMN) == [0] * 4


def test_a_value_equal_to_a_threshold_goes_left(tmp_path: Path) -> None:
    model = DecisionTreeClassifier().fit([[0.0], [1.0]], [0, 1])
    assert model.tree_.threshold[0] == 0.5
    rows = np.array([0.5, np.nextafter(np.float32(0.5), np.float32(1)), -np.float32(0.5)]).reshape(-1, 1)
    assert labels(tmp_path, model, rows) == [0, 1, 0]


def isolation() -> IsolationForest:
    return IsolationForest(n_estimators=10, random_state=0).fit(RANDOM_ROWS)


def test_a_row_exactly_at_the_offset_of_an_isolation_forest_is_an_inlier(tmp_path: Path) -> None:
    model = isolation()
    for row in RANDOM_ROWS[:3]:
        at = row[None, :]
        score = model.score_samples(at)[0]
        for offset, label in ((score, 1), (score * (1 - 1e-6), -1), (score * (1 + 1e-6), 1)):
            model.offset_ = offset
            assert labels(tmp_path, model, at) == [label]


def test_the_score_of_an_isolation_forest_is_the_distance_to_its_offset(tmp_path: Path) -> None:
    model = isolation()
    answers = all_answers(tmp_path, model, RANDOM_ROWS)
    expected = model.score_samples(RANDOM_ROWS) - model.offset_
    for name, tolerance in {"table": 1e-12, "onnx": 1e-12, "tflite": 1e-6}.items():
        np.testing.assert_allclose(answers[name]["score"], expected, atol=tolerance)


def test_an_isolation_forest_needs_samples_of_two_rows() -> None:
    nodes = flatten(IsolationForest(n_estimators=2, max_samples=2, random_state=0).fit(COLUMN))
    assert nodes.slope == 1.0  # the expected depth of two rows is 1
    with pytest.raises(Refused, match="samples of one row"):
        flatten(IsolationForest(n_estimators=2, max_samples=1, random_state=0).fit(COLUMN))


def test_bagged_trees_that_lack_a_class_answer_as_scikit_learn_does(tmp_path: Path) -> None:
    target = np.array(["a", "b", "c"])[np.arange(60) % 3]
    model = BaggingClassifier(n_estimators=5, max_features=1, random_state=0)
    model.fit(RANDOM_ROWS, target)
    part = DecisionTreeClassifier(max_depth=2).fit(RANDOM_ROWS[:, 1:], np.arange(60) % 2 * 2)
    model.estimators_[2], model.estimators_features_[2] = part, np.array([1])  # knows a and c only
    nodes = flatten(model)
    np.testing.assert_allclose(nodes.raw(RANDOM_ROWS), model.predict_proba(RANDOM_ROWS), atol=1e-12)


def test_only_ensembles_of_trees_are_forests() -> None:
    logistic = LogisticRegression()
    models: list[tuple[Any, bool]] = [
        (DecisionTreeClassifier(), True),
        (BaggingClassifier(DecisionTreeClassifier(), 2), True),
        (BaggingClassifier(logistic, 2), False),
        (AdaBoostClassifier(DecisionTreeClassifier(max_depth=1), n_estimators=2), True),
        (AdaBoostClassifier(logistic, n_estimators=2), False),
        (logistic, False),
    ]
    for model, expected in models:
        fitted = model.fit(RANDOM_ROWS, RANDOM_ROWS[:, 0] > 0)
        assert is_forest(fitted) is expected, model
        if not expected:
            with pytest.raises(Refused, match=type(model).__name__):
                flatten(fitted)


def test_adaboost_with_one_class_is_refused() -> None:
    model = AdaBoostClassifier(DecisionTreeClassifier(max_depth=1)).fit(COLUMN, [0, 1, 0, 1])
    model.n_classes_ = 1
    with pytest.raises(Refused, match="only one class"):
        flatten(model)


def test_histogram_boosting_with_categories_or_another_link_is_refused() -> None:
    categorical = HistGradientBoostingRegressor(max_iter=1, categorical_features=[0])
    with pytest.raises(Refused, match="categorical features"):
        flatten(categorical.fit(COLUMN, COLUMN[:, 0]))
    model = HistGradientBoostingRegressor(max_iter=1, loss="poisson").fit(COLUMN, COLUMN[:, 0] + 1)
    assert flatten(model).link == "exp"
    model._loss.link = LogisticRegression()
    with pytest.raises(Refused, match="link function LogisticRegression"):
        flatten(model)
