"""Converters of models that are one affine map of the features and a function of its result."""

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
from service.compiler.trees.scalers import column_step


def affine(
    context: ConversionContext, columns: GraphColumns, weights: Array, bias: Array, relu: bool = False
) -> GraphTensor:
    """[rows, m]: the columns times `weights` [n, m] plus `bias` [m].

    Scalers before are computed and not folded into the weights: with quantized weights, one column of large
    numbers would take the precision of all others.
    """
    x, scale, shift = centred_tensor(context.graph, columns)
    weights = np.asarray(weights, dtype=np.float64)
    x = context.graph.mul(x, context.graph.constant(scale)) if (scale != 1).any() else x
    return context.graph.dense(x, weights, np.asarray(bias, dtype=np.float64) + shift @ weights, relu=relu)


def positive(graph: Graph, decision: GraphTensor) -> GraphTensor:
    """int64 [rows]: 1 where the decision [rows, 1] is above 0."""
    return graph.reshape(graph.cast(graph.greater(decision, 0.0), "int64"), (ROWS,))


def complement(graph: Graph, probability: GraphTensor) -> GraphTensor:
    """[rows, 1] of the second class -> [rows, 2] of both classes."""
    return graph.concat([graph.sub(1.0, probability), probability])


def _decision(context: ConversionContext, model: Any, columns: GraphColumns) -> GraphTensor:
    return affine(context, columns, np.atleast_2d(model.coef_).T, np.atleast_1d(model.intercept_))


def regressor(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    return CompiledOutputs(value=_decision(context, model, columns))


def log_regressor(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """Generalised linear models with the identity or the log link."""
    raw = _decision(context, model, columns)
    link = type(model._base_loss.link).__name__
    if link not in ("IdentityLink", "LogLink"):
        raise Refused(f"{type(model).__name__} with the link function {link} has no TFLite form")
    return CompiledOutputs(value=context.graph.exp(raw) if link == "LogLink" else raw)


def classifier(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """The label of the largest decision, without probabilities."""
    raw = _decision(context, model, columns)
    return CompiledOutputs(labels=(_label(context.graph, raw),), decision=raw)


def _label(graph: Graph, raw: GraphTensor) -> GraphTensor:
    return positive(graph, raw) if raw.width == 1 else graph.argmax(raw)


def logistic(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    raw = _decision(context, model, columns)
    graph = context.graph
    probabilities = complement(graph, graph.logistic(raw)) if raw.width == 1 else graph.softmax(raw)
    return CompiledOutputs(labels=(_label(graph, raw),), probabilities=(probabilities,), decision=raw)


def ridge_classifier(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """RidgeClassifier: with several outputs, each output has the label 1 where its decision is above 0."""
    if not model._label_binarizer.y_type_.startswith("multilabel"):
        return classifier(context, model, columns)
    raw = _decision(context, model, columns)
    graph = context.graph
    return CompiledOutputs(
        labels=tuple(positive(graph, graph.take(raw, [i])) for i in range(raw.width)), decision=raw
    )


def sgd(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """With the losses `log_loss` and `modified_huber`, probabilities by class, scaled to 1."""
    compiled = classifier(context, model, columns)
    raw, graph = compiled.decision, context.graph
    assert raw is not None
    if model.loss == "log_loss":
        probabilities = graph.logistic(raw)
    elif model.loss == "modified_huber":
        limited = graph.minimum(graph.maximum(raw, -1.0), 1.0)
        probabilities = graph.mul(graph.add(limited, 1.0), 0.5)
    else:
        return compiled
    per_class = complement(graph, probabilities) if raw.width == 1 else normalised(graph, probabilities)
    return CompiledOutputs(labels=compiled.labels, probabilities=(per_class,), decision=raw)


def normalised(graph: Graph, probabilities: GraphTensor) -> GraphTensor:
    """Rows scaled to the sum 1. In a row of zeros, all numbers become equal."""
    total = graph.total(probabilities, axis=1, keep=True)
    is_zero = graph.cast(graph.equal(total, 0.0), "float32")
    filled = graph.add(probabilities, is_zero)
    return graph.div(filled, graph.add(total, graph.mul(is_zero, float(probabilities.width))))


def partial_least_squares(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    centred = columns.apply(context.graph, column_step("subtract", model._x_mean, columns.width))
    return CompiledOutputs(value=affine(context, centred, np.asarray(model.coef_).T, model.intercept_))


def _types(module: Any, names: str) -> list[type]:
    """The classes that exist: some are missing in some releases of scikit-learn."""
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
    **dict.fromkeys(_types(linear_model, "RidgeClassifier RidgeClassifierCV"), ridge_classifier),
    **dict.fromkeys(_types(linear_model, "LogisticRegression LogisticRegressionCV"), logistic),
    linear_model.SGDClassifier: sgd,
    svm.LinearSVC: classifier,
    discriminant_analysis.LinearDiscriminantAnalysis: logistic,
    cross_decomposition.PLSRegression: partial_least_squares,
}
