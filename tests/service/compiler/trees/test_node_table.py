"""Tables of nodes built from estimators (`flatten`) and made smaller (`shrink`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import (
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.svm import SVC

from registry.errors import Refused
from service.compiler.trees.flatten import flatten
from service.compiler.trees.shrink import shrink, to_fraction
from service.runtime.nodes import NodeTable
from tests.service.compiler.tflite import cases

DATA = cases.data(800)


def nodes_of(model: Any, rows: Any = None, target: Any = None) -> NodeTable:
    return flatten(model.fit(DATA.x if rows is None else rows, DATA.three if target is None else target))


def test_the_table_gives_the_probabilities_of_the_forest() -> None:
    model = RandomForestClassifier(10, random_state=0)
    nodes = nodes_of(model, DATA.with_missing)
    assert np.allclose(nodes.raw(DATA.with_missing), model.predict_proba(DATA.with_missing), atol=1e-12)


def test_the_table_gives_the_raw_predictions_of_boosting() -> None:
    model = HistGradientBoostingClassifier(max_iter=10)
    nodes = nodes_of(model, DATA.with_missing)
    assert np.allclose(nodes.raw(DATA.with_missing), model._raw_predict(DATA.with_missing), atol=1e-9)


def test_siblings_are_adjacent_and_a_leaf_is_its_own_child() -> None:
    nodes = nodes_of(RandomForestRegressor(5, random_state=0), target=DATA.value)
    inner = ~nodes.leaf
    children = np.concatenate([nodes.left[inner], nodes.left[inner] + 1, nodes.root])
    assert sorted(children.tolist()) == list(range(len(nodes.left)))
    assert np.isinf(nodes.threshold[nodes.leaf]).all()
    assert (np.diff(nodes.root) > 0).all()


@pytest.mark.parametrize(
    "model",
    [GaussianNB(), SVC(), GradientBoostingRegressor(init=GaussianNB())],
    ids=lambda m: str(m)[:8],
)
def test_a_model_that_is_not_a_tree_ensemble_is_refused_by_name(model: Any) -> None:
    with pytest.raises(Refused, match=type(model).__name__):
        nodes_of(model, DATA.x[:60], DATA.two[:60])


def test_a_smaller_forest_answers_with_the_mean_of_its_trees() -> None:
    model = RandomForestClassifier(10, random_state=0)
    nodes = nodes_of(model)
    smaller = shrink(nodes, 4, None)
    expected = np.mean([t.predict_proba(DATA.x) for t in model.estimators_[:4]], axis=0)
    assert np.allclose(smaller.raw(DATA.x), expected, atol=1e-3)
    assert smaller.reduction.startswith("kept 4 of 10 trees")


def test_reduced_boosting_keeps_whole_rounds() -> None:
    model = HistGradientBoostingClassifier(max_iter=10)
    smaller = shrink(nodes_of(model), 11, None)
    assert smaller.trees == 9
    third_round = list(model.staged_decision_function(DATA.x))[2]
    assert np.allclose(smaller.raw(DATA.x), third_round, atol=1e-3)


def test_a_merged_leaf_answers_with_the_mean_of_its_training_rows() -> None:
    model = RandomForestRegressor(1, bootstrap=False, random_state=0)
    nodes = nodes_of(model, target=DATA.value)
    stump = shrink(nodes, 1, 1)
    assert stump.depth == 0
    assert stump.raw(DATA.x)[0, 0] == pytest.approx(DATA.value.mean(), rel=1e-3)
    assert f"1 of {int(nodes.leaf.sum())} leaves" in stump.reduction


@pytest.mark.parametrize("fraction", [0.5, 0.1, 0.0])
def test_a_fraction_of_the_nodes_gives_mostly_the_same_labels(fraction: float) -> None:
    nodes = nodes_of(RandomForestClassifier(20, random_state=0))
    small = to_fraction(nodes, fraction)
    assert len(small.left) <= max(fraction * len(nodes.left), 100)
    agree = (small.raw(DATA.x).argmax(axis=1) == nodes.raw(DATA.x).argmax(axis=1)).mean()
    assert agree > {0.5: 0.95, 0.1: 0.8, 0.0: 0.4}[fraction]


def test_the_fraction_1_returns_the_table_itself() -> None:
    nodes = nodes_of(IsolationForest(n_estimators=5, random_state=0))
    assert to_fraction(nodes, 1.0) is nodes


@pytest.mark.parametrize("child", [0, 10**6])
def test_a_damaged_tree_is_refused_without_an_endless_loop(child: int) -> None:
    model = RandomForestClassifier(2, random_state=0).fit(DATA.x, DATA.three)
    model.estimators_[1].tree_.children_left[3] = child
    with pytest.raises(Refused, match="damaged"):
        flatten(model)
