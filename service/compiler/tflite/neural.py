"""Converters of multi-layer perceptrons: affine maps, each followed by an activation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sklearn import neural_network

from registry.errors import Refused
from service.compiler.tflite.converter import CompiledOutputs, ConversionContext, Converter
from service.compiler.tflite.graph_columns import GraphColumns
from service.compiler.tflite.linear import affine, complement, positive
from service.compiler.tflite.operators import Graph
from service.compiler.tflite.writer import GraphTensor

ACTIVATIONS: dict[str, Callable[[Graph, GraphTensor], GraphTensor]] = {
    "identity": lambda graph, x: x,
    "logistic": Graph.logistic,
    "tanh": Graph.tanh,
    "relu": Graph.relu,
    "softmax": Graph.softmax,
    "exp": Graph.exp,
}


def _last_layer(context: ConversionContext, model: Any, columns: GraphColumns) -> GraphTensor:
    """The sums of the last layer [rows, outputs], before its activation."""
    graph, relu, depth = context.graph, model.activation == "relu", len(model.coefs_)
    x = affine(context, columns, model.coefs_[0], model.intercepts_[0], relu=relu and depth > 1)
    for number in range(1, depth):
        activated = x if relu else ACTIVATIONS[model.activation](graph, x)
        weights, bias = model.coefs_[number], model.intercepts_[number]
        x = graph.dense(activated, weights, bias, relu=relu and number < depth - 1)
    return x


def _activated(graph: Graph, model: Any, raw: GraphTensor) -> GraphTensor:
    if model.out_activation_ not in ACTIVATIONS:
        name = type(model).__name__
        raise Refused(f"{name} with the output activation {model.out_activation_} has no TFLite form")
    return ACTIVATIONS[model.out_activation_](graph, raw)


def regressor(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    raw = _last_layer(context, model, columns)
    return CompiledOutputs(value=_activated(context.graph, model, raw))


def classifier(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """The last activation is logistic for two classes and for each of several outputs, else softmax."""
    graph = context.graph
    raw = _last_layer(context, model, columns)
    probabilities = _activated(graph, model, raw)
    if model.out_activation_ == "softmax":
        return CompiledOutputs(labels=(graph.argmax(raw),), probabilities=(probabilities,))
    single = [(graph.take(raw, [i]), graph.take(probabilities, [i])) for i in range(raw.width)]
    return CompiledOutputs(
        labels=tuple(positive(graph, r) for r, _ in single),
        probabilities=tuple(complement(graph, p) for _, p in single),
    )


CONVERTERS: dict[type, Converter] = {
    neural_network.MLPClassifier: classifier,
    neural_network.MLPRegressor: regressor,
}
