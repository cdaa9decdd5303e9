"""Transformers and models that mix columns: projections, polynomials, distances to centres, naive Bayes."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn import cluster, decomposition, naive_bayes, preprocessing

from registry.rows import Array
from service.compiler.tflite.converter import CompiledOutputs, ConversionContext, Converter
from service.compiler.tflite.float32_thresholds import down
from service.compiler.tflite.graph_columns import GraphColumns, to_tensor
from service.compiler.tflite.linear import affine
from service.compiler.tflite.operators import Graph
from service.compiler.tflite.writer import ROWS, GraphTensor


def pca(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    centre = np.zeros(columns.width) if model.mean_ is None else model.mean_
    weights = np.asarray(model.components_, dtype=np.float64).T
    if model.whiten:
        least = np.finfo(model.explained_variance_.dtype).eps
        weights = weights / np.maximum(np.sqrt(model.explained_variance_), least)
    centred = columns.then(context.graph, "subtract", centre)
    return CompiledOutputs(
        columns=GraphColumns((affine(context, centred, weights, np.zeros(weights.shape[1])),))
    )


def truncated(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    weights = np.asarray(model.components_, dtype=np.float64).T
    return CompiledOutputs(
        columns=GraphColumns((affine(context, columns, weights, np.zeros(weights.shape[1])),))
    )


def polynomial(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """Every product of d features is one of d - 1 features times the last; sklearn's order at the end."""
    graph, x = context.graph, to_tensor(context.graph, columns)
    wanted = [tuple(np.repeat(np.arange(x.width), powers).tolist()) for powers in model.powers_]
    deepest = max(len(w) for w in wanted)
    level: list[tuple[int, ...]] = [(i,) for i in range(x.width)]
    parts, place, here = [x], {w: i for i, w in enumerate(level)}, x
    for degree in range(2, deepest + 1):
        known = {w: i for i, w in enumerate(level)}
        level = sorted({w[:degree] for w in wanted if len(w) >= degree})
        before = graph.take(here, [known[w[:-1]] for w in level])
        here = graph.mul(before, graph.take(x, [w[-1] for w in level]))
        place |= {w: len(place) + i for i, w in enumerate(level)}
        parts.append(here)
    if () in wanted:
        first = graph.take(x, [0]) if x.width > 1 else x
        parts.append(graph.cast(graph.equal(first, first), "float32"))
        place[()] = len(place)
    return CompiledOutputs(
        columns=GraphColumns((graph.take(graph.concat(parts), [place[w] for w in wanted]),))
    )


def _squares(graph: Graph, x: GraphTensor, centres: Array, weights: Array) -> GraphTensor:
    """[rows, k]: the weighted squared distances to `centres` [k, n], not expanded, which would cancel."""
    apart = graph.sub(graph.reshape(x, (ROWS, 1, x.width)), graph.constant(centres))
    return graph.total(graph.mul(graph.square(apart), graph.constant(weights)), axis=2)


def k_means(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    centres = np.asarray(model.cluster_centers_, dtype=np.float64)
    squares = _squares(context.graph, to_tensor(context.graph, columns), centres, np.ones((1, columns.width)))
    return CompiledOutputs(labels=(context.graph.argmax(context.graph.neg(squares)),))


def gaussian(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    graph = context.graph
    squares = _squares(graph, to_tensor(graph, columns), model.theta_, -0.5 / model.var_)
    prior = np.log(model.class_prior_) - 0.5 * np.log(2.0 * np.pi * model.var_).sum(axis=1)
    return _likeliest(graph, graph.add(squares, graph.constant(prior)))


def multinomial(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    weights = np.asarray(model.feature_log_prob_).T
    return _likeliest(context.graph, affine(context, columns, weights, model.class_log_prior_))


def complement_classes(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    weights = np.asarray(model.feature_log_prob_).T
    prior = model.class_log_prior_ if len(model.classes_) == 1 else np.zeros(weights.shape[1])
    return _likeliest(context.graph, affine(context, columns, weights, prior))


def bernoulli(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    graph = context.graph
    if model.binarize is not None:
        limit = float(down(np.array([model.binarize], dtype=np.float64))[0])
        columns = GraphColumns((graph.cast(graph.greater(to_tensor(graph, columns), limit), "float32"),))
    against = np.log(1.0 - np.exp(model.feature_log_prob_))
    bias = model.class_log_prior_ + against.sum(axis=1)
    return _likeliest(graph, affine(context, columns, (model.feature_log_prob_ - against).T, bias))


def _likeliest(graph: Graph, likelihood: GraphTensor) -> CompiledOutputs:
    return CompiledOutputs(labels=(graph.argmax(likelihood),), probabilities=(graph.softmax(likelihood),))


CONVERTERS: dict[type, Converter] = {
    decomposition.PCA: pca,
    decomposition.IncrementalPCA: pca,
    decomposition.TruncatedSVD: truncated,
    preprocessing.PolynomialFeatures: polynomial,
    cluster.KMeans: k_means,
    cluster.MiniBatchKMeans: k_means,
    naive_bayes.GaussianNB: gaussian,
    naive_bayes.MultinomialNB: multinomial,
    naive_bayes.ComplementNB: complement_classes,
    naive_bayes.BernoulliNB: bernoulli,
}
