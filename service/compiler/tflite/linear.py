"""Models that are one affine map of the features, and what they do with its result."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn import cross_decomposition, discriminant_analysis, linear_model, svm

from registry.errors import Refused
from registry.rows import Array
from service.compiler.tflite.converter import CompiledOutputs, ConversionContext, Converter
from service.compiler.tflite.graph_columns import GraphColumns, centred_tensor
from service.compiler.tflite.operators import Graph
from service.compiler.tflite.writer import ROWS, GraphTensor


def affine(
    context: ConversionContext, columns: GraphColumns, weights: Array, bias: Array, relu: bool = False
) -> GraphTensor:
    """[rows, m]: the columns times `weights` [n, m] plus `bias` [m].

    Scalers before are computed, not folded into the weights: quantized, a column must not drown the others.
    """
    x, scale, shift = centred_tensor(context.graph, columns)
    weights = np.asarray(weights, dtype=np.float64)
    x = context.graph.mul(x, context.graph.constant(scale)) if (scale != 1).any() else x
    return context.graph.dense(x, weights, np.asarray(bias, dtype=np.float64) + shift @ weights, relu=relu)


def positive(graph: Graph, decision: GraphTensor) -> GraphTensor:
    """int64 [rows]: 1 where the decision [rows, 1] is above 0."""
    return graph.reshape(graph.cast(graph.greater(decision, 0.0), "int64"), (ROWS,))


def complement(graph: Graph, chance: GraphTensor) -> GraphTensor:
    """[rows, 1] -> [rows, 2]: of the first and of the second class."""
    return graph.concat([graph.sub(1.0, chance), chance])


def _decision(context: ConversionContext, model: Any, columns: GraphColumns) -> GraphTensor:
    return affine(context, columns, np.atleast_2d(model.coef_).T, np.atleast_1d(model.intercept_))


def regressor(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    return CompiledOutputs(value=_decision(context, model, columns))


def log_regressor(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """Generalised linear models: the link of Poisson and Gamma, and of Tweedie where it is that."""
    raw = _decision(context, model, columns)
    link = type(model._base_loss.link).__name__
    if link not in ("IdentityLink", "LogLink"):
        raise Refused(f"{type(model).__name__} with a {link} has no TFLite form")
    return CompiledOutputs(value=context.graph.exp(raw) if link == "LogLink" else raw)


def classifier(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """A label for the largest decision, no probabilities."""
    raw = _decision(context, model, columns)
    return CompiledOutputs(labels=(_label(context.graph, raw),), decision=raw)


def _label(graph: Graph, raw: GraphTensor) -> GraphTensor:
    return positive(graph, raw) if raw.width == 1 else graph.argmax(raw)


def logistic(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    raw = _decision(context, model, columns)
    graph = context.graph
    chances = complement(graph, graph.logistic(raw)) if raw.width == 1 else graph.softmax(raw)
    return CompiledOutputs(labels=(_label(graph, raw),), probabilities=(chances,), decision=raw)


def several_labels(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """RidgeClassifier: with several outputs, each is a class of its own above 0."""
    if not model._label_binarizer.y_type_.startswith("multilabel"):
        return classifier(context, model, columns)
    raw = _decision(context, model, columns)
    graph = context.graph
    return CompiledOutputs(
        labels=tuple(positive(graph, graph.take(raw, [i])) for i in range(raw.width)), decision=raw
    )


def sgd(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """Probabilities by class, scaled to 1: `log_loss` and `modified_huber` have them."""
    made = classifier(context, model, columns)
    raw, graph = made.decision, context.graph
    assert raw is not None
    if model.loss == "log_loss":
        chances = graph.logistic(raw)
    elif model.loss == "modified_huber":
        limited = graph.minimum(graph.maximum(raw, -1.0), 1.0)
        chances = graph.mul(graph.add(limited, 1.0), 0.5)
    else:
        return made
    chances = complement(graph, chances) if raw.width == 1 else normalised(graph, chances)
    return CompiledOutputs(labels=made.labels, probabilities=(chances,), decision=raw)


def normalised(graph: Graph, chances: GraphTensor) -> GraphTensor:
    """Rows scaled to the sum 1; rows of zeros become all equal."""
    total = graph.total(chances, axis=1, keep=True)
    nothing = graph.cast(graph.equal(total, 0.0), "float32")
    filled = graph.add(chances, nothing)
    return graph.div(filled, graph.add(total, graph.mul(nothing, float(chances.width))))


def partial_least_squares(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    centred_tensor = columns.then(context.graph, "subtract", model._x_mean)
    return CompiledOutputs(value=affine(context, centred_tensor, np.asarray(model.coef_).T, model.intercept_))


def _types(module: Any, names: str) -> list[type]:
    """Some of these come and go with scikit-learn's versions."""
    return [getattr(module, name) for name in names.split() if hasattr(module, name)]


REGRESSORS = [
    *_types(
        linear_model,
        "LinearRegression Ridge RidgeCV Lasso LassoCV ElasticNet ElasticNetCV Lars LarsCV LassoLars "
        "LassoLarsCV LassoLarsIC OrthogonalMatchingPursuit OrthogonalMatchingPursuitCV BayesianRidge "
        "ARDRegression "
        "HuberRegressor QuantileRegressor TheilSenRegressor MultiTaskLasso MultiTaskLassoCV "
        "MultiTaskElasticNet MultiTaskElasticNetCV SGDRegressor PassiveAggressiveRegressor",
    ),
    svm.LinearSVR,
]

CONVERTERS: dict[type, Converter] = {
    **dict.fromkeys(REGRESSORS, regressor),
    **dict.fromkeys(_types(linear_model, "PoissonRegressor GammaRegressor TweedieRegressor"), log_regressor),
    **dict.fromkeys(_types(linear_model, "Perceptron PassiveAggressiveClassifier"), classifier),
    **dict.fromkeys(_types(linear_model, "RidgeClassifier RidgeClassifierCV"), several_labels),
    **dict.fromkeys(_types(linear_model, "LogisticRegression LogisticRegressionCV"), logistic),
    linear_model.SGDClassifier: sgd,
    svm.LinearSVC: classifier,
    discriminant_analysis.LinearDiscriminantAnalysis: logistic,
    cross_decomposition.PLSRegression: partial_least_squares,
}
