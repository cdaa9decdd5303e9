"""Damaged arrays inside models are refused before compiled code follows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from scipy import sparse
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_iris
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    IsolationForest,
    RandomForestClassifier,
)
from sklearn.feature_selection import SelectFromModel
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from registry.errors import Refused
from service.compiler import native_structures, safeload
from service.compiler.object_graph import members
from tests.service.compiler.helpers import build_model

ROWS, SPECIES = load_iris(return_X_y=True)


def change_nodes(tree: Any, **changed: Any) -> None:
    """Change fields of the tree's first node."""
    state = tree.__getstate__()
    nodes = state["nodes"].copy()
    for field, value in changed.items():
        nodes[field][0] = value
    tree.__setstate__(state | {"nodes": nodes})


def check(model: Any) -> None:
    for member in members(model):
        native_structures.check(member)


def fault(model: Any) -> str:
    with pytest.raises(Refused, match="the model is damaged or was altered") as caught:
        check(model)
    return str(caught.value)


def fitted_tree() -> DecisionTreeClassifier:
    return DecisionTreeClassifier(max_depth=2, random_state=0).fit(ROWS, SPECIES)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"left_child": 10**6}, "its node 0 has the child 1000000"),
        ({"right_child": 10**6}, "its node 0 has the child 1000000"),
        ({"left_child": -7}, "its node 0 has the child -7"),
        ({"left_child": 0}, "its node 0 has the child 0"),
        ({"right_child": 1}, "its node 1 is the child of two nodes"),
        ({"feature": 4}, "its node 0 splits on the feature 4, but the tree has the features 0 to 3"),
        ({"feature": -2}, "its node 0 splits on the feature -2"),
    ],
)
def test_a_tree_whose_nodes_lead_outside_of_it_is_refused(changed: dict[str, int], words: str) -> None:
    model = fitted_tree()
    change_nodes(model.tree_, **changed)
    assert f"the tree DecisionTreeClassifier.tree_ is not sound: {words}" in fault(model)


def test_a_tree_that_counts_more_nodes_than_it_has_is_refused() -> None:
    model = fitted_tree()
    model.tree_.__setstate__(model.tree_.__getstate__() | {"node_count": 10**6})
    assert "has 1000000 nodes, and memory for" in fault(model)


@pytest.mark.parametrize(
    ("path", "fit", "tree_of"),
    [
        (
            "RandomForestClassifier.estimators_[1].tree_",
            lambda: RandomForestClassifier(2),
            lambda m: m.estimators_[1].tree_,
        ),
        (
            "ExtraTreesClassifier.estimators_[0].tree_",
            lambda: ExtraTreesClassifier(2),
            lambda m: m.estimators_[0].tree_,
        ),
        (
            "GradientBoostingClassifier.estimators_[4].tree_",
            lambda: GradientBoostingClassifier(n_estimators=2),
            lambda m: m.estimators_[1, 1].tree_,
        ),
        (
            "IsolationForest.estimators_[1].tree_",
            lambda: IsolationForest(n_estimators=2),
            lambda m: m.estimators_[1].tree_,
        ),
        (
            "Pipeline.steps[1][1].tree_",
            lambda: make_pipeline(StandardScaler(), DecisionTreeClassifier()),
            lambda m: m[1].tree_,
        ),
        (
            "GridSearchCV.best_estimator_.tree_",
            lambda: GridSearchCV(DecisionTreeClassifier(), {"max_depth": [2]}, cv=2),
            lambda m: m.best_estimator_.tree_,
        ),
        (
            "CalibratedClassifierCV.calibrated_classifiers_[1].estimator.tree_",
            lambda: CalibratedClassifierCV(DecisionTreeClassifier(), cv=2),
            lambda m: m.calibrated_classifiers_[1].estimator.tree_,
        ),
        (
            "SelectFromModel.estimator_.tree_",
            lambda: SelectFromModel(DecisionTreeClassifier()),
            lambda m: m.estimator_.tree_,
        ),
    ],
)
def test_a_damaged_tree_is_named_wherever_it_is(
    path: str, fit: Callable[[], Any], tree_of: Callable[[Any], Any]
) -> None:
    model = fit().fit(ROWS, SPECIES)
    change_nodes(tree_of(model), left_child=10**6)
    assert f"the tree {path} is not sound: its node 0" in fault(model)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("left", 999, "its node 0 has the child 999"),
        ("right", 0, "its node 0 has the child 0"),
        ("feature_idx", 9, "its node 0 splits on the feature 9"),
    ],
)
def test_damaged_trees_of_histogram_boosting_are_refused(field: str, value: int, words: str) -> None:
    model = HistGradientBoostingClassifier(max_iter=2, max_leaf_nodes=4).fit(ROWS, SPECIES)
    model._predictors[1][2].nodes[field][0] = value
    assert f"HistGradientBoostingClassifier._predictors[1][2] is not sound: {words}" in fault(model)


def test_split_categories_that_a_tree_of_histogram_boosting_lacks_are_refused() -> None:
    model = HistGradientBoostingClassifier(max_iter=1, categorical_features=[0]).fit(ROWS.round(), SPECIES)
    nodes = model._predictors[0][0].nodes
    nodes["is_categorical"], nodes["bitset_idx"] = 1, 500
    assert "its node 0 names categories it lacks" in fault(model)


def test_trees_for_fewer_features_than_their_estimator_takes_are_refused() -> None:
    model = GradientBoostingClassifier(n_estimators=1).fit(ROWS, SPECIES)
    narrow = GradientBoostingClassifier(n_estimators=1).fit(ROWS[:, :2], SPECIES)
    narrow.estimators_ = model.estimators_
    assert "splits 4 features, its estimator takes 2" in fault(narrow)


@pytest.mark.parametrize("algorithm", ["kd_tree", "ball_tree"])
def test_trees_of_neighbors_that_list_missing_rows_are_refused(algorithm: str) -> None:
    model = KNeighborsClassifier(algorithm=algorithm, leaf_size=5).fit(ROWS, SPECIES)
    sound = model._tree.__getstate__()
    indices, nodes = sound[1].copy(), sound[2].copy()
    indices[0] = 10**6
    model._tree.__setstate__((sound[0], indices, *sound[2:]))
    assert "lists rows outside 0 to 149" in fault(model)
    nodes["is_leaf"] = 0
    model._tree.__setstate__((*sound[:2], nodes, *sound[3:]))
    assert "has rows or children that do not exist" in fault(model)


def test_a_sparse_matrix_with_indices_out_of_range_is_refused() -> None:
    model = KNeighborsClassifier().fit(sparse.csr_matrix(ROWS), SPECIES)
    model._fit_X.indices[0] = 10**6
    assert "the sparse matrix KNeighborsClassifier._fit_X is not a sound sparse matrix" in fault(model)


def test_a_damaged_tree_is_refused_when_its_file_is_loaded(tmp_path: Path) -> None:
    model = fitted_tree()
    change_nodes(model.tree_, left_child=10**6)
    joblib.dump(model, tmp_path / "model.joblib")
    with pytest.raises(Refused, match="its node 0 has the child 1000000"):
        safeload.load(tmp_path / "model.joblib")


def test_every_sound_tree_passes(tmp_path: Path) -> None:
    best_first = RandomForestClassifier(2, max_leaf_nodes=7).fit(ROWS, SPECIES)
    pruned = DecisionTreeClassifier(ccp_alpha=0.02).fit(ROWS, np.column_stack([SPECIES, SPECIES > 1]))
    for model in (best_first, pruned, IsolationForest(n_estimators=2, max_features=0.5).fit(ROWS)):
        check(model)
    assert build_model(tmp_path, best_first).state == "ready"
