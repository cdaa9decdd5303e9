"""Our own ONNX form of scikit-learn's trees and forests, registered with the converter in place of its own.

The library's form weighs each leaf by 1/trees and adds float32: two classes with equal votes end up a
rounding apart, so ties (common with an even number of trees) get another label than scikit-learn gives.
It also drops where missing values go. Here the trees add up doubles as scikit-learn does, the sum is
divided once, and the first of the largest classes wins. Being vectorised it is also 20 times quicker.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper
from skl2onnx import update_registered_converter
from skl2onnx.common._registration import get_converter, get_shape_calculator
from skl2onnx.common.data_types import DoubleTensorType, StringTensorType
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor, RandomForestClassifier, RandomForestRegressor
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreeClassifier, ExtraTreeRegressor

from registry.rows import Array

CLASSIFIERS = (RandomForestClassifier, ExtraTreesClassifier, DecisionTreeClassifier, ExtraTreeClassifier)
REGRESSORS = (RandomForestRegressor, ExtraTreesRegressor, DecisionTreeRegressor, ExtraTreeRegressor)


def attributes(trees: list[Any], leaves: list[Array]) -> dict[str, Any]:
    """The attributes of one TreeEnsembleRegressor adding up `leaves`, one [nodes, targets] array per tree."""
    sizes = [t.node_count for t in trees]
    tree = np.repeat(np.arange(len(trees)), sizes)
    node = np.concatenate([np.arange(n) for n in sizes])
    left = np.concatenate([t.children_left for t in trees])
    inner = left >= 0
    values = np.concatenate(leaves)
    at, target = np.nonzero(~inner[:, None] & (values != 0))
    silent = np.flatnonzero(~inner & (values == 0).all(axis=1))  # every leaf says something, if only 0
    at, target = np.concatenate([at, silent]), np.concatenate([target, np.zeros_like(silent)])

    def branch(name: str) -> list[int]:
        kept: list[int] = np.where(inner, np.concatenate([getattr(t, name) for t in trees]), 0).tolist()
        return kept

    thresholds = np.where(inner, np.concatenate([t.threshold for t in trees]), 0.0)
    return {
        "n_targets": values.shape[1],
        "nodes_treeids": tree.tolist(),
        "nodes_nodeids": node.tolist(),
        "nodes_featureids": branch("feature"),
        "nodes_modes": np.where(inner, "BRANCH_LEQ", "LEAF").tolist(),
        "nodes_values_as_tensor": _doubles("thresholds", thresholds),
        "nodes_truenodeids": branch("children_left"),
        "nodes_falsenodeids": branch("children_right"),
        "nodes_missing_value_tracks_true": branch("missing_go_to_left"),
        "target_treeids": tree[at].tolist(),
        "target_nodeids": node[at].tolist(),
        "target_ids": target.tolist(),
        "target_weights_as_tensor": _doubles("weights", values[at, target]),
    }


def _doubles(name: str, values: Array) -> TensorProto:
    return helper.make_tensor(name, TensorProto.DOUBLE, [len(values)], values.astype("<f8").tobytes(), raw=True)


def _mean(scope: Any, operator: Any, container: Any, leaf_values: Any) -> str:
    """Adds the nodes that average the trees; returns the name of a double [n, targets]."""
    model = operator.raw_operator
    members = [e.tree_ for e in getattr(model, "estimators_", [model])]
    single, double, total, wide, count, mean = (
        scope.get_unique_variable_name(n) for n in ("rounded", "widened", "total", "votes", "trees", "mean")
    )
    # scikit-learn rounds to float32, then compares with double thresholds
    container.add_node("Cast", [operator.inputs[0].full_name], [single], to=TensorProto.FLOAT, op_version=13)
    container.add_node("Cast", [single], [double], to=TensorProto.DOUBLE, op_version=13)
    container.add_node(
        "TreeEnsembleRegressor",
        [double],
        [total],
        op_domain="ai.onnx.ml",
        op_version=3,
        name=scope.get_unique_operator_name("trees"),
        **attributes(members, [leaf_values(t) for t in members]),
    )
    container.add_node("Cast", [total], [wide], to=TensorProto.DOUBLE, op_version=13)
    container.add_initializer(count, TensorProto.DOUBLE, [], [float(len(members))])
    container.add_node("Div", [wide, count], [mean], op_version=14)
    return str(mean)


def convert_classifier(scope: Any, operator: Any, container: Any) -> None:
    model = operator.raw_operator
    classes = np.asarray(model.classes_)
    chances = _mean(scope, operator, container, lambda tree: tree.value[:, 0, : len(classes)])
    label, probabilities = operator.outputs[0], operator.outputs[1]
    names, index = scope.get_unique_variable_name("classes"), scope.get_unique_variable_name("index")
    if isinstance(label.type, StringTensorType):
        container.add_initializer(names, TensorProto.STRING, [len(classes)], [str(c).encode() for c in classes])
    else:
        container.add_initializer(names, TensorProto.INT64, [len(classes)], [int(c) for c in classes])
    container.add_node("ArgMax", [chances], [index], axis=1, keepdims=0, op_version=13)
    container.add_node("Gather", [names, index], [label.full_name], axis=0, op_version=13)
    _cast_to_declared(container, chances, probabilities)


def convert_regressor(scope: Any, operator: Any, container: Any) -> None:
    mean = _mean(scope, operator, container, lambda tree: tree.value[:, :, 0])
    _cast_to_declared(container, mean, operator.outputs[0])


def _cast_to_declared(container: Any, name: str, output: Any) -> None:
    wanted = TensorProto.DOUBLE if isinstance(output.type, DoubleTensorType) else TensorProto.FLOAT
    container.add_node("Cast", [name], [output.full_name], to=wanted, op_version=13)


def _or_library(ours: Any, library: Any) -> Any:
    """Ours for what it covers: class labels that are whole numbers or strings, one output."""

    def convert_trees(scope: Any, operator: Any, container: Any) -> None:
        model = operator.raw_operator
        classes = getattr(model, "classes_", None)
        if classes is not None and (isinstance(classes, list) or len(operator.outputs) != 2):
            library(scope, operator, container)
        else:
            ours(scope, operator, container)

    return convert_trees


def _shapes(library: Any) -> Any:
    """The library's output shapes; a double input gives doubles."""

    def shape_trees(operator: Any) -> None:
        library(operator)
        last = operator.outputs[-1]
        ours = not isinstance(getattr(operator.raw_operator, "classes_", None), list)
        if ours and isinstance(operator.inputs[0].type, DoubleTensorType):
            last.type = DoubleTensorType(last.type.shape)

    return shape_trees


def register() -> None:
    for estimator in (*CLASSIFIERS, *REGRESSORS):
        alias = f"Sklearn{estimator.__name__}"
        ours = convert_classifier if estimator in CLASSIFIERS else convert_regressor
        options: dict[str, Any] = {"decision_path": [True, False], "decision_leaf": [True, False]}
        if estimator in CLASSIFIERS:
            options |= {
                "zipmap": [True, False, "columns"],
                "raw_scores": [True, False],
                "nocl": [True, False],
                "output_class_labels": [False, True],
            }
        update_registered_converter(
            estimator,
            alias,
            _shapes(get_shape_calculator(alias)),
            _or_library(ours, get_converter(alias)),
            overwrite=True,
            options=options,
        )
