"""Converters of models that combine columns: projections, polynomials, k-means, naive Bayes."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn import cluster, decomposition, naive_bayes, preprocessing

from registry.rows import Array
from service.compiler.tflite.converter import CompiledOutputs, ConversionContext, Converter
from service.compiler.tflite.graph_columns import GraphColumns, to_tensor
from service.compiler.tflite.linear import affine
from service.compiler.tflite.operators import Graph
from service.compiler.tflite.writer import ROWS, GraphTensor
from service.compiler.trees.scalers import column_step
from service.runtime.nodes import round_down


def pca(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    centre = np.zeros(columns.width) if model.mean_ is None else model.mean_
    weights = np.asarray(model.components_, dtype=np.float64).T
    if model.whiten:
        smallest = np.finfo(model.explained_variance_.dtype).eps
        weights = weights / np.maximum(np.sqrt(model.explained_variance_), smallest)
    centred = columns.apply(context.graph, column_step("subtract", centre, columns.width))
    return CompiledOutputs(
        columns=GraphColumns((affine(context, centred, weights, np.zeros(weights.shape[1])),))
    )


def truncated_svd(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    weights = np.asarray(model.components_, dtype=np.float64).T
    return CompiledOutputs(
        columns=GraphColumns((affine(context, columns, weights, np.zeros(weights.shape[1])),))
    )


def polynomial(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """Compute products of d features from products of d - 1 features, then take scikit-learn's order."""
    graph, x = context.graph, to_tensor(context.graph, columns)
    terms = [tuple(np.repeat(np.arange(x.width), powers).tolist()) for powers in model.powers_]
    max_degree = max(len(t) for t in terms)
    level: list[tuple[int, ...]] = [(i,) for i in range(x.width)]
    parts, place, products = [x], {term: i for i, term in enumerate(level)}, x
    for degree in range(2, max_degree + 1):
        index = {term: i for i, term in enumerate(level)}
        level = sorted({t[:degree] for t in terms if len(t) >= degree})
        shorter = graph.take(products, [index[term[:-1]] for term in level])
        products = graph.mul(shorter, graph.take(x, [term[-1] for term in level]))
        place |= {term: len(place) + i for i, term in enumerate(level)}
        parts.append(products)
    if () in terms:
        first = graph.take(x, [0]) if x.width > 1 else x
        parts.append(graph.cast(graph.equal(first, first), "float32"))
        place[()] = len(place)
    return CompiledOutputs(
        columns=GraphColumns((graph.take(graph.concat(parts), [place[t] for t in terms]),))
    )


def _squared_distances(graph: Graph, x: GraphTensor, centres: Array, weights: Array) -> GraphTensor:
    """[rows, k]: weighted squared distances to `centres` [k, n], not expanded, to avoid cancellation."""
    difference = graph.sub(graph.reshape(x, (ROWS, 1, x.width)), graph.constant(centres))
    return graph.total(graph.mul(graph.square(difference), graph.constant(weights)), axis=2)


def k_means(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    centres = np.asarray(model.cluster_centers_, dtype=np.float64)
    squares = _squared_distances(
        context.graph, to_tensor(context.graph, columns), centres, np.ones((1, columns.width))
    )
    return CompiledOutputs(labels=(context.graph.argmax(context.graph.neg(squares)),))


def gaussian(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    graph = context.graph
    squares = _squared_distances(graph, to_tensor(graph, columns), model.theta_, -0.5 / model.var_)
    prior = np.log(model.class_prior_) - 0.5 * np.log(2.0 * np.pi * model.var_).sum(axis=1)
    return _from_likelihood(graph, graph.add(squares, graph.constant(prior)))


def multinomial(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    weights = np.asarray(model.feature_log_prob_).T
    return _from_likelihood(context.graph, affine(context, columns, weights, model.class_log_prior_))


def complement_naive_bayes(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    weights = np.asarray(model.feature_log_prob_).T
    prior = model.class_log_prior_ if len(model.classes_) == 1 else np.zeros(weights.shape[1])
    return _from_likelihood(context.graph, affine(context, columns, weights, prior))


def bernoulli(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    graph = context.graph
    if model.binarize is not None:
        threshold = float(round_down(np.array([model.binarize], dtype=np.float64))[0])
        columns = GraphColumns((graph.cast(graph.greater(to_tensor(graph, columns), threshold), "float32"),))
    log_absent = np.log(1.0 - np.exp(model.feature_log_prob_))
    bias = model.class_log_prior_ + log_absent.sum(axis=1)
    return _from_likelihood(graph, affine(context, columns, (model.feature_log_prob_ - log_absent).T, bias))


def _from_likelihood(graph: Graph, likelihood: GraphTensor) -> CompiledOutputs:
    return CompiledOutputs(labels=(graph.argmax(likelihood),), probabilities=(graph.softmax(likelihood),))


CONVERTERS: dict[type, Converter] = {
    decomposition.PCA: pca,
    decomposition.IncrementalPCA: pca,
    decomposition.TruncatedSVD: truncated_svd,
    preprocessing.PolynomialFeatures: polynomial,
    cluster.KMeans: k_means,
    cluster.MiniBatchKMeans: k_means,
    naive_bayes.GaussianNB: gaussian,
    naive_bayes.MultinomialNB: multinomial,
    naive_bayes.ComplementNB: complement_naive_bayes,
    naive_bayes.BernoulliNB: bernoulli,
}
