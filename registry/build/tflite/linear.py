"""Models that are one affine map of the features, and what they do with its result."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn import discriminant_analysis, linear_model, svm

from registry.build.tflite.answer import Answer, Context, Converter
from registry.build.tflite.columns import Columns, centred
from registry.build.tflite.graph import Graph
from registry.build.tflite.writer import ROWS, Tensor
from registry.errors import Refused
from registry.rows import Array


def affine(context: Context, columns: Columns, weights: Array, bias: Array) -> Tensor:
    """[rows, m]: the columns times `weights` [n, m] plus `bias` [m]; scalers before are folded in."""
    x, scale, shift = centred(context.graph, columns)
    weights = np.asarray(weights, dtype=np.float64)
    return context.graph.dense(
        x, weights * scale[:, None], np.asarray(bias, dtype=np.float64) + shift @ weights
    )


def positive(graph: Graph, decision: Tensor) -> Tensor:
    """int64 [rows]: 1 where the decision [rows, 1] is above 0."""
    return graph.reshape(graph.cast(graph.greater(decision, 0.0), "int64"), (ROWS,))


def complement(graph: Graph, chance: Tensor) -> Tensor:
    """[rows, 1] -> [rows, 2]: of the first and of the second class."""
    return graph.concat([graph.sub(1.0, chance), chance])


def _decision(context: Context, model: Any, columns: Columns) -> Tensor:
    return affine(context, columns, np.atleast_2d(model.coef_).T, np.atleast_1d(model.intercept_))


def regressor(context: Context, model: Any, columns: Columns) -> Answer:
    return Answer(value=_decision(context, model, columns))


def log_regressor(context: Context, model: Any, columns: Columns) -> Answer:
    """Generalised linear models: the link of Poisson and Gamma, and of Tweedie where it is that."""
    raw = _decision(context, model, columns)
    link = type(model._base_loss.link).__name__
    if link not in ("IdentityLink", "LogLink"):
        raise Refused(f"{type(model).__name__} with a {link} has no TFLite form")
    return Answer(value=context.graph.exp(raw) if link == "LogLink" else raw)


def classifier(context: Context, model: Any, columns: Columns) -> Answer:
    """A label for the largest decision, no probabilities."""
    raw = _decision(context, model, columns)
    return Answer(labels=(_label(context.graph, raw),), decision=raw)


def _label(graph: Graph, raw: Tensor) -> Tensor:
    return positive(graph, raw) if raw.width == 1 else graph.argmax(raw)


def logistic(context: Context, model: Any, columns: Columns) -> Answer:
    raw = _decision(context, model, columns)
    graph = context.graph
    chances = complement(graph, graph.logistic(raw)) if raw.width == 1 else graph.softmax(raw)
    return Answer(labels=(_label(graph, raw),), probabilities=(chances,), decision=raw)


REGRESSORS = (
    linear_model.LinearRegression,
    linear_model.Ridge,
    linear_model.Lasso,
    linear_model.ElasticNet,
)

CONVERTERS: dict[type, Converter] = {
    **dict.fromkeys(REGRESSORS, regressor),
    **dict.fromkeys((linear_model.RidgeClassifier, linear_model.Perceptron, svm.LinearSVC), classifier),
    linear_model.LogisticRegression: logistic,
    discriminant_analysis.LinearDiscriminantAnalysis: logistic,
}
