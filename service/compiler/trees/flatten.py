"""Convert each family of scikit-learn's tree ensembles to a table of nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn import dummy, ensemble, tree
from sklearn._loss import loss as losses
from sklearn.ensemble._iforest import _average_path_length

from registry.errors import Refused
from registry.rows import Array
from service.compiler.trees.tree_arrays import Tree, from_predictor, from_tree, node_arrays
from service.runtime.nodes import NodeTable

SLACK = 1e-9
"""Relative distance by which an isolation forest's cut is lowered, here and in ONNX.

The cut is often the score of a training row. Such rows are inliers, as in scikit-learn, also after rounding.
"""


def flatten(model: Any) -> NodeTable:
    """Convert a fitted tree ensemble.

    Raises `Refused`, naming the class, for any other model, and for splits on categories.
    """
    name = type(model).__name__
    if type(model) not in FAMILIES:
        supported = ", ".join(sorted(t.__name__ for t in FAMILIES))
        raise Refused(f"{name} cannot be converted to a table of nodes; supported: {supported}")
    return FAMILIES[type(model)](model)


def is_forest(model: Any) -> bool:
    """Whether the model is a tree ensemble that `flatten` supports."""
    members = getattr(model, "estimators_", None) if isinstance(model, _META_ESTIMATORS) else None
    return type(model) in FAMILIES and (members is None or all(type(m) in _SINGLE_TREES for m in members))


def _tree(inner: Any, values: Array, missing: bool = True, features: Array | None = None) -> Tree:
    """`missing`: the estimator accepts NaN. If not, NaN goes left at all nodes, which costs nothing."""
    converted = from_tree(inner, values, features)
    if missing:
        return converted
    return replace(converted, missing_left=np.ones(len(converted.feature), dtype=bool))


def _table(trees: list[Tree], **fields: Any) -> NodeTable:
    return NodeTable(**node_arrays(trees), **fields)  # type: ignore[arg-type]


def _members(model: Any) -> list[Any]:
    return list(getattr(model, "estimators_", [model]))


def _accepts_nan(model: Any) -> bool:
    return getattr(model, "monotonic_cst", None) is None


def _class_forest(model: Any) -> NodeTable:
    sizes = tuple(int(k) for k in np.atleast_1d(model.n_classes_))
    trees = []
    for member in _members(model):
        parts = [member.tree_.value[:, o, :k] for o, k in enumerate(sizes)]
        trees.append(_tree(member.tree_, np.hstack(parts), _accepts_nan(model)))
    k = sum(sizes)
    return _table(
        trees, outputs=k, link="fractions", base=np.zeros(k), weight=np.ones(len(trees)), blocks=sizes
    )


def _value_forest(model: Any) -> NodeTable:
    trees = [_tree(m.tree_, m.tree_.value[:, :, 0], _accepts_nan(model)) for m in _members(model)]
    k = trees[0].values.shape[1]
    return _table(trees, outputs=k, link="identity", base=np.zeros(k), weight=np.ones(len(trees)))


def _bagged(model: Any) -> NodeTable:
    """Bagged trees: each has its own columns, and possibly not all of the classes."""
    if not is_forest(model):
        raise Refused(
            f"{type(model).__name__} over {type(model.estimators_[0]).__name__} is not a tree ensemble"
        )
    trees = []
    classes = len(model.classes_) if hasattr(model, "classes_") else 0
    for member, features in zip(model.estimators_, model.estimators_features_, strict=True):
        values = member.tree_.value[:, 0, :] if classes else member.tree_.value[:, :, 0]
        if classes:
            all_classes = np.zeros((len(values), classes))
            all_classes[:, np.asarray(member.classes_, dtype=int)] = values[:, : len(member.classes_)]
            values = all_classes
        trees.append(_tree(member.tree_, values, _accepts_nan(member), features))
    k = trees[0].values.shape[1]
    link = {"link": "fractions", "blocks": (k,)} if classes else {"link": "identity"}
    return _table(trees, outputs=k, base=np.zeros(k), weight=np.ones(len(trees)), **link)


def _gradient(model: Any) -> NodeTable:
    width = model.estimators_.shape[1]
    if not (isinstance(model.init_, dummy.DummyClassifier | dummy.DummyRegressor) or model.init_ == "zero"):
        raise Refused(f"{type(model).__name__} with init={type(model.init_).__name__} has no tree form")
    base = model._raw_predict_init(np.zeros((1, model.n_features_in_), dtype=np.float32))[0]
    trees = [
        _tree(m.tree_, model.learning_rate * m.tree_.value[:, 0], False) for m in model.estimators_.ravel()
    ]
    target = np.tile(np.arange(width, dtype=np.int32), len(model.estimators_))
    nodes = _table(
        trees, outputs=width, link="identity", base=np.asarray(base, dtype=np.float64), target=target
    )
    if not hasattr(model, "classes_"):
        return nodes
    if width > 1:
        return replace(nodes, link="softmax")
    slope = 2.0 if isinstance(model._loss, losses.ExponentialLoss) else 1.0
    return replace(nodes, link="sigmoid", slope=slope, inclusive=True)


def _histogram(model: Any) -> NodeTable:
    if model.is_categorical_ is not None:
        raise Refused(
            f"{type(model).__name__} with categorical features: its splits are not comparisons of numbers"
        )
    width = model.n_trees_per_iteration_
    trees = [from_predictor(predictor) for iteration in model._predictors for predictor in iteration]
    target = np.tile(np.arange(width, dtype=np.int32), len(model._predictors))
    base = np.asarray(model._baseline_prediction, dtype=np.float64).ravel()
    table = _table(trees, outputs=width, link="identity", base=base, target=target, rounded=False)
    if hasattr(model, "classes_"):
        return replace(table, link="softmax" if width > 1 else "sigmoid")
    link = type(model._loss.link).__name__
    if link not in ("IdentityLink", "LogLink"):
        raise Refused(f"{type(model).__name__} with the link function {link} has no tree form")
    return replace(table, link="exp" if link == "LogLink" else "identity")


def _isolation(model: Any) -> NodeTable:
    """score = -offset - 2 ** -(mean depth / expected depth), as in `decision_function`."""
    trees = []
    for member, lengths, extra_lengths, features in zip(
        model.estimators_,
        model._decision_path_lengths,
        model._average_path_length_per_tree,
        model.estimators_features_,
        strict=True,
    ):
        trees.append(_tree(member.tree_, (lengths + extra_lengths - 1.0).reshape(-1, 1), True, features))
    expected = float(_average_path_length([model._max_samples])[0])
    if expected <= 0:
        raise Refused("this IsolationForest was fitted on samples of one row, so all its scores are equal")
    cut = -expected * float(np.log2(-model.offset_))
    return _table(
        trees,
        outputs=1,
        link="isolation",
        base=np.zeros(1),
        weight=np.ones(len(trees)),
        slope=1.0 / expected,
        cut=cut - SLACK * abs(cut),
        cut_score=-float(model.offset_),
        inclusive=True,
    )


def _adaboost(model: Any) -> NodeTable:
    """Every tree votes with its weight for the class that it predicts, and against the others."""
    if any(type(m) not in _SINGLE_TREES for m in model.estimators_):
        raise Refused(
            f"{type(model).__name__} over {type(model.estimators_[0]).__name__} is not a tree ensemble"
        )
    k = int(model.n_classes_)
    if k < 2:
        raise Refused(f"{type(model).__name__} has only one class")
    trees = []
    weights = np.asarray(model.estimator_weights_, dtype=np.float64)[: len(model.estimators_)]
    for member, weight in zip(model.estimators_, weights, strict=True):
        classes = np.searchsorted(model.classes_, member.classes_)
        predicted = classes[member.tree_.value[:, 0, : len(classes)].argmax(axis=1)]
        # the same expression as in scikit-learn, for the same rounding
        votes = np.where(predicted[:, None] == np.arange(k), weight, -1 / (k - 1) * weight)
        trees.append(_tree(member.tree_, 2.0 * votes[:, 1:] if k == 2 else votes, _accepts_nan(member)))
    if k == 2:
        return _table(trees, outputs=1, link="sigmoid", base=np.zeros(1), weight=weights)
    return _table(trees, outputs=k, link="softmax", base=np.zeros(k), weight=weights, slope=1.0 / (k - 1))


_SINGLE_TREES = (
    tree.DecisionTreeClassifier,
    tree.DecisionTreeRegressor,
    tree.ExtraTreeClassifier,
    tree.ExtraTreeRegressor,
)
_META_ESTIMATORS = (ensemble.BaggingClassifier, ensemble.BaggingRegressor, ensemble.AdaBoostClassifier)

FAMILIES: dict[type, Callable[[Any], NodeTable]] = {
    tree.DecisionTreeClassifier: _class_forest,
    tree.ExtraTreeClassifier: _class_forest,
    ensemble.RandomForestClassifier: _class_forest,
    ensemble.ExtraTreesClassifier: _class_forest,
    tree.DecisionTreeRegressor: _value_forest,
    tree.ExtraTreeRegressor: _value_forest,
    ensemble.RandomForestRegressor: _value_forest,
    ensemble.ExtraTreesRegressor: _value_forest,
    ensemble.BaggingClassifier: _bagged,
    ensemble.BaggingRegressor: _bagged,
    ensemble.GradientBoostingClassifier: _gradient,
    ensemble.GradientBoostingRegressor: _gradient,
    ensemble.HistGradientBoostingClassifier: _histogram,
    ensemble.HistGradientBoostingRegressor: _histogram,
    ensemble.IsolationForest: _isolation,
    ensemble.AdaBoostClassifier: _adaboost,
}
