"""Answers of .tflite exactly at a cut: a decision of 0, equal classes, a threshold of a column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.ensemble import VotingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Perceptron, RidgeClassifier, SGDClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import BernoulliNB
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import (
    Binarizer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
)
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from registry.errors import Refused
from service.compiler.tflite.conversion import convert, convert_reduced, convert_within
from tests.service.compiler.tflite.litert_helpers import run_both, signature_of

COLUMN = np.array([[-2.0], [-1.0], [1.0], [2.0]])
SIDES = np.array(["a", "a", "b", "b"])
SMALLEST = float(np.nextafter(np.float32(0), np.float32(1)))


def same_labels(folder: Path, model: Any, rows: np.ndarray) -> list[Any]:
    expected, got = run_both(folder, model, rows)
    assert got["label"].tolist() == expected["label"].tolist()
    labels: list[Any] = expected["label"].tolist()
    return labels


@pytest.mark.parametrize(
    "model",
    [LogisticRegression(), LinearSVC(), Perceptron(), RidgeClassifier(), SGDClassifier(loss="log_loss")],
    ids=lambda m: type(m).__name__,
)
def test_a_decision_of_0_is_the_first_class(tmp_path: Path, model: Any) -> None:
    model.fit(COLUMN, SIDES)
    model.coef_, model.intercept_ = np.array([[1.0]]), np.array([0.0])
    rows = np.array([[0.0], [-0.0], [1e-30], [-1e-30]])
    assert same_labels(tmp_path, model, rows) == ["a", "a", "b", "a"]


def test_several_outputs_of_a_ridge_classifier_have_a_cut_of_their_own(tmp_path: Path) -> None:
    model = RidgeClassifier().fit(COLUMN, np.array([[0, 1], [0, 1], [1, 0], [1, 0]]))
    model.coef_, model.intercept_ = np.array([[1.0], [-1.0]]), np.zeros(2)
    expected, got = run_both(tmp_path, model, np.array([[0.0], [1e-30], [-1e-30]]))
    assert got["y0.label"].tolist() == expected["y0.label"].tolist() == [0, 1, 0]
    assert got["y1.label"].tolist() == expected["y1.label"].tolist() == [0, 0, 1]


@pytest.mark.parametrize("classes", [2, 3])
def test_equally_likely_classes_of_a_network_give_the_first_one(tmp_path: Path, classes: int) -> None:
    model = MLPClassifier((2,), max_iter=1, random_state=0)
    rows = np.arange(6.0).reshape(-1, 1)
    with pytest.warns(ConvergenceWarning):
        model.fit(rows, np.arange(6) % classes)
    for weights in (*model.coefs_, *model.intercepts_):
        weights[:] = 0.0
    assert same_labels(tmp_path, model, rows) == [0] * 6


def test_equal_votes_give_the_first_class(tmp_path: Path) -> None:
    left = DecisionTreeClassifier(max_depth=1).fit(COLUMN, [0, 0, 1, 1])
    right = DecisionTreeClassifier(max_depth=1).fit(COLUMN, [1, 1, 0, 0])
    for voting in ("hard", "soft"):
        model = VotingClassifier([("l", left), ("r", right)], voting=voting).fit(COLUMN, [0, 0, 1, 1])
        model.estimators_ = [left, right]
        assert same_labels(tmp_path, model, COLUMN) == [0] * 4
        model.weights = [1.0, 1.5]
        assert same_labels(tmp_path, model, COLUMN) == [1, 1, 0, 0]


def test_one_against_the_rest_needs_three_classes(tmp_path: Path) -> None:
    rows = np.array([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]])
    three = OneVsRestClassifier(LogisticRegression()).fit(rows, [0, 0, 1, 1, 2, 2])
    same_labels(tmp_path, three, rows)
    for member in three.estimators_:
        member.coef_, member.intercept_ = np.array([[0.0]]), np.array([0.0])
    assert same_labels(tmp_path, three, rows) == [0] * 6
    two = OneVsRestClassifier(LogisticRegression()).fit(COLUMN, SIDES)
    with pytest.raises(Refused, match="with two classes or several outputs"):
        convert(two, signature_of(two))


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.1])
def test_a_binarized_number_equal_to_the_threshold_is_0(tmp_path: Path, threshold: float) -> None:
    at = np.float32(threshold)
    numbers = [at, np.nextafter(at, np.float32(1)), np.nextafter(at, np.float32(-1))]
    rows = np.array([[float(n)] for n in numbers])
    expected, got = run_both(tmp_path, Binarizer(threshold=threshold).fit(rows), rows)
    assert got["vector"].tolist() == expected["vector"].tolist()
    assert expected["vector"][:, 0].tolist()[1:] == [1.0, 0.0]
    naive = BernoulliNB(binarize=threshold).fit(rows, [0, 1, 0])
    same_labels(tmp_path, naive, rows)


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test_rows_of_zeros_stay_zeros(tmp_path: Path, norm: str) -> None:
    rows = np.array([[0.0, 0.0], [3.0, -4.0], [0.0, 2.0]])
    expected, got = run_both(tmp_path, Normalizer(norm).fit(rows), rows)
    np.testing.assert_allclose(got["vector"], expected["vector"], rtol=1e-6)
    assert got["vector"][0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("scaler", [MinMaxScaler((-1, 2), clip=True), MaxAbsScaler()])
def test_numbers_at_and_beyond_the_range_of_a_scaler(tmp_path: Path, scaler: Any) -> None:
    rows = np.array([[0.0], [4.0], [-1.0], [5.0], [2.0]])
    expected, got = run_both(tmp_path, scaler.fit(rows[:2]), rows)
    np.testing.assert_allclose(got["vector"], expected["vector"], rtol=1e-6)


def test_a_row_between_two_centres_belongs_to_the_first(tmp_path: Path) -> None:
    model = KMeans(2, random_state=0, n_init=1).fit(COLUMN)
    model.cluster_centers_ = np.array([[-1.0], [1.0]])
    expected, got = run_both(tmp_path, model, np.array([[0.0], [0.5], [-0.5], [SMALLEST]]))
    assert got["cluster"].tolist()[:3] == expected["cluster"].tolist()[:3] == [0, 1, 0]


@pytest.mark.parametrize("drop", [None, "first", "if_binary"])
def test_each_category_has_its_column_and_unknown_ones_are_zeros(tmp_path: Path, drop: str | None) -> None:
    rows = np.array([[0.0, 5.0], [1.0, 6.0], [0.0, 7.0]])
    model = OneHotEncoder(handle_unknown="ignore", drop=drop, sparse_output=False).fit(rows)
    expected, got = run_both(tmp_path, model, np.array([[0.0, 5.0], [1.0, 7.0], [1.0, 6.0]]))
    np.testing.assert_array_equal(got["vector"], expected["vector"])


@pytest.mark.parametrize("unknown", [-1, -2, 99])
def test_codes_begin_at_0_and_unknown_categories_have_their_own(tmp_path: Path, unknown: int) -> None:
    rows = np.array([[0.0, 5.0], [1.0, 6.0], [0.0, 7.0]])
    model = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=unknown).fit(rows)
    expected, got = run_both(tmp_path, model, np.array([[0.0, 5.0], [1.0, 7.0], [2.0, 4.0]]))
    assert got["vector"].tolist() == expected["vector"].tolist() == [[0, 0], [1, 2], [unknown, unknown]]


def test_a_conversion_of_exactly_the_allowed_bytes_is_not_reduced() -> None:
    rows = np.random.default_rng(0).normal(size=(60, 2))
    model = DecisionTreeClassifier(random_state=0).fit(rows, rows[:, 0] * rows[:, 1] > 0)
    signature = signature_of(model)
    size = len(convert(model, signature))
    assert convert_within(model, signature, size).reduction == ""
    smaller = convert_within(model, signature, size - 1)
    assert smaller.reduction.startswith("kept ")
    assert len(smaller.content) <= size - 1
    least = len(convert_reduced(model, signature, 0.0).content)
    assert len(convert_within(model, signature, least).content) == least
    with pytest.raises(
        Refused, match=f"at least {least} with smaller tree ensembles; {least - 1} are allowed"
    ):
        convert_within(model, signature, least - 1)
