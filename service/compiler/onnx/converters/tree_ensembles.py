"""Tree ensembles in ONNX, with answers that add up doubles as scikit-learn does (see `node_writer`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto
from skl2onnx import update_registered_converter
from skl2onnx.common._registration import get_converter, get_shape_calculator
from skl2onnx.common.data_types import DoubleTensorType, StringTensorType
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.ensemble._iforest import _average_path_length
from sklearn.tree import (
    DecisionTreeClassifier,
    DecisionTreeRegressor,
    ExtraTreeClassifier,
    ExtraTreeRegressor,
)

from registry.rows import Array
from service.compiler.onnx.converters.node_writer import NodeWriter
from service.compiler.trees.flatten import SLACK
from service.compiler.trees.tree_arrays import Tree, from_predictor, from_tree


def _members(model: Any) -> list[Any]:
    return [e.tree_ for e in getattr(model, "estimators_", [model])]


def forest_classifier(scope: Any, operator: Any, container: Any) -> None:
    """The mean of the trees' class fractions; the first of the largest is the label."""
    model, nodes = operator.raw_operator, NodeWriter(scope, operator, container)
    members = _members(model)
    trees = [from_tree(t, t.value[:, 0, : len(model.classes_)]) for t in members]
    sums = nodes.trees(trees, rounded=True)
    _write_classes(nodes, operator, nodes.add("Div", sums, nodes.double(len(members)), version=14))


def forest_regressor(scope: Any, operator: Any, container: Any) -> None:
    model, nodes = operator.raw_operator, NodeWriter(scope, operator, container)
    members = _members(model)
    sums = nodes.trees([from_tree(t, t.value[:, :, 0]) for t in members], rounded=True)
    mean = nodes.add("Div", sums, nodes.double(len(members)), version=14)
    _cast_to_declared(nodes, mean, operator.outputs[0])


def _histogram_raw(nodes: NodeWriter, model: Any) -> str:
    if model.is_categorical_ is not None:
        raise NotImplementedError("histogram boosting with categorical features")
    width = model.n_trees_per_iteration_
    trees: list[Tree] = [
        from_predictor(predictor, k, width)
        for iteration in model._predictors
        for k, predictor in enumerate(iteration)
    ]
    baseline = np.asarray(model._baseline_prediction, dtype=np.float64).ravel()
    return nodes.add("Add", nodes.trees(trees, rounded=False), nodes.double(*baseline.tolist()), version=14)


def histogram_classifier(scope: Any, operator: Any, container: Any) -> None:
    model, nodes = operator.raw_operator, NodeWriter(scope, operator, container)
    raw = _histogram_raw(nodes, model)
    multiclass = model.n_trees_per_iteration_ > 1
    probabilities = nodes.add("Softmax", raw, axis=1) if multiclass else _two_classes(nodes, raw)
    _write_classes(nodes, operator, probabilities)


def histogram_regressor(scope: Any, operator: Any, container: Any) -> None:
    model, nodes = operator.raw_operator, NodeWriter(scope, operator, container)
    raw = _histogram_raw(nodes, model)
    link = type(model._loss.link).__name__
    if link not in ("IdentityLink", "LogLink"):
        raise NotImplementedError(f"histogram boosting with a {link}")
    value = nodes.add("Exp", raw) if link == "LogLink" else raw
    _cast_to_declared(nodes, value, operator.outputs[0])


def _gradient_raw(nodes: NodeWriter, model: Any) -> str:
    if model.init_ != "zero" and not isinstance(model.init_, DummyClassifier | DummyRegressor):
        raise NotImplementedError(f"boosting that starts from a {type(model.init_).__name__}")
    start = model._raw_predict_init(np.zeros((1, model.n_features_in_), dtype=np.float32)).ravel()
    width = model.n_trees_per_iteration_
    trees = []
    for iteration in model.estimators_:
        for k, member in enumerate(iteration):
            values = np.zeros((member.tree_.node_count, width))
            values[:, k] = model.learning_rate * member.tree_.value[:, 0, 0]
            trees.append(from_tree(member.tree_, values))
    return nodes.add("Add", nodes.trees(trees, rounded=True), nodes.double(*start.tolist()), version=14)


def gradient_classifier(scope: Any, operator: Any, container: Any) -> None:
    """With two classes: the second one from a raw score of 0 on, as `GradientBoostingClassifier.predict`."""
    model, nodes = operator.raw_operator, NodeWriter(scope, operator, container)
    raw = _gradient_raw(nodes, model)
    if model.n_trees_per_iteration_ > 1:
        index = nodes.add("ArgMax", raw, axis=1, keepdims=0)
        _write_classes(nodes, operator, nodes.add("Softmax", raw, axis=1), index)
        return
    positive = nodes.cast(nodes.add("GreaterOrEqual", raw, nodes.double(0.0), version=16), TensorProto.INT64)
    index = nodes.add("Reshape", positive, nodes.constant(TensorProto.INT64, [1], [-1]))
    if model.loss == "exponential":
        raw = nodes.add("Mul", raw, nodes.double(2.0), version=14)
    _write_classes(nodes, operator, _two_classes(nodes, raw), index)


def gradient_regressor(scope: Any, operator: Any, container: Any) -> None:
    nodes = NodeWriter(scope, operator, container)
    _cast_to_declared(nodes, _gradient_raw(nodes, operator.raw_operator), operator.outputs[0])


def _two_classes(nodes: NodeWriter, raw: str) -> str:
    positive = nodes.add("Sigmoid", raw)
    return nodes.add("Concat", nodes.add("Sub", nodes.double(1.0), positive, version=14), positive, axis=1)


def isolation_forest(scope: Any, operator: Any, container: Any) -> None:
    """score = 2 ** -(mean depth / expected depth), as `IsolationForest.score_samples`, less the offset."""
    model, nodes = operator.raw_operator, NodeWriter(scope, operator, container)
    trees = []
    for tree, lengths, remaining, features in zip(
        _members(model),
        model._decision_path_lengths,
        model._average_path_length_per_tree,
        model.estimators_features_,
        strict=True,
    ):
        trees.append(from_tree(tree, (lengths + remaining - 1.0).reshape(-1, 1), features))
    scale = -1.0 / (len(trees) * float(_average_path_length([model._max_samples])[0]))
    depth = nodes.add("Mul", nodes.trees(trees, rounded=True), nodes.double(scale), version=14)
    power = nodes.add("Pow", nodes.double(2.0), depth, version=15)
    score = nodes.add("Sub", nodes.double(-float(model.offset_)), power, version=14)
    cut = -SLACK * abs(float(model.offset_))  # rounding must not make a row at the offset an outlier
    outside = nodes.cast(nodes.add("Less", score, nodes.double(cut)), TensorProto.INT64)
    two, one = (nodes.constant(TensorProto.INT64, [1], [n]) for n in (2, 1))
    doubled = nodes.add("Mul", outside, two, version=14)
    nodes.add("Sub", one, doubled, version=14, out=operator.outputs[0].full_name)
    _cast_to_declared(nodes, score, operator.outputs[1])


def _write_classes(nodes: NodeWriter, operator: Any, probabilities: str, index: str | None = None) -> None:
    """Label and probabilities of a classifier, from double probabilities [n, k].

    `index` [n] is the label's position; without it, the position of the first largest probability.
    """
    classes: Array = np.asarray(operator.raw_operator.classes_)
    label, declared = operator.outputs[0], operator.outputs[1]
    if isinstance(label.type, StringTensorType):
        names = nodes.constant(TensorProto.STRING, [len(classes)], [str(c).encode() for c in classes])
    else:
        names = nodes.constant(TensorProto.INT64, [len(classes)], [int(c) for c in classes])
    index = index or nodes.add("ArgMax", probabilities, axis=1, keepdims=0)
    nodes.add("Gather", names, index, axis=0, out=label.full_name)
    _cast_to_declared(nodes, probabilities, declared)


def _cast_to_declared(nodes: NodeWriter, name: str, output: Any) -> None:
    double = isinstance(output.type, DoubleTensorType)
    nodes.add("Cast", name, to=TensorProto.DOUBLE if double else TensorProto.FLOAT, out=output.full_name)


CONVERTERS: dict[type, Any] = {
    RandomForestClassifier: forest_classifier,
    ExtraTreesClassifier: forest_classifier,
    DecisionTreeClassifier: forest_classifier,
    ExtraTreeClassifier: forest_classifier,
    RandomForestRegressor: forest_regressor,
    ExtraTreesRegressor: forest_regressor,
    DecisionTreeRegressor: forest_regressor,
    ExtraTreeRegressor: forest_regressor,
    GradientBoostingClassifier: gradient_classifier,
    GradientBoostingRegressor: gradient_regressor,
    HistGradientBoostingClassifier: histogram_classifier,
    HistGradientBoostingRegressor: histogram_regressor,
    IsolationForest: isolation_forest,
}


def register() -> None:
    for estimator, converter in CONVERTERS.items():
        alias = f"Sklearn{estimator.__name__}"
        choices = ["decision_path", "decision_leaf", "score_samples"]
        if "Classifier" in alias:
            choices += ["zipmap", "nocl", "raw_scores", "output_class_labels"]
        update_registered_converter(
            estimator,
            alias,
            _double_shapes(get_shape_calculator(alias)),
            _for_single_output(converter, get_converter(alias)),
            overwrite=True,
            options={choice: [True, False] for choice in choices},
        )


def _for_single_output(converter: Any, library_converter: Any) -> Any:
    """`converter`, but skl2onnx's own for classifiers with several outputs, which `converter` lacks."""

    def convert_trees(scope: Any, operator: Any, container: Any) -> None:
        chosen = library_converter if _has_several_outputs(operator) else converter
        chosen(scope, operator, container)

    return convert_trees


def _double_shapes(library_shapes: Any) -> Any:
    """skl2onnx's output shapes, but double outputs for a double input."""

    def shape_trees(operator: Any) -> None:
        library_shapes(operator)
        if not _has_several_outputs(operator) and isinstance(operator.inputs[0].type, DoubleTensorType):
            last = operator.outputs[-1]
            last.type = DoubleTensorType(last.type.shape)

    return shape_trees


def _has_several_outputs(operator: Any) -> bool:
    return isinstance(getattr(operator.raw_operator, "classes_", None), list)
