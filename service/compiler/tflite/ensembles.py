"""Converters of estimators that combine others: voting, stacking, bagging, one per output, one per class."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn import ensemble, multiclass, multioutput

from registry.errors import Refused
from registry.rows import Array
from service.compiler.signature import composites
from service.compiler.tflite.converter import CompiledOutputs, ConversionContext, Converter
from service.compiler.tflite.forest_graph import compile_forest
from service.compiler.tflite.graph_columns import GraphColumns, side_by_side
from service.compiler.tflite.linear import normalised
from service.compiler.tflite.operators import Graph
from service.compiler.tflite.writer import ROWS, GraphTensor
from service.compiler.trees import flatten


def _weighted_sum(graph: Graph, tensors: list[GraphTensor], weights: Array) -> GraphTensor:
    total = None
    for tensor, weight in zip(tensors, weights.tolist(), strict=True):
        scaled = tensor if weight == 1.0 else graph.mul(tensor, weight)
        total = scaled if total is None else graph.add(total, scaled)
    assert total is not None
    return total


def _weights(model: Any) -> Array:
    weights = model._weights_not_none
    return np.ones(len(model.estimators_)) if weights is None else np.asarray(weights, dtype=np.float64)


def _members(context: ConversionContext, model: Any, columns: GraphColumns) -> list[CompiledOutputs]:
    return [context.compile(context, part.estimator, columns) for part in composites.parts(model)]


def _values(members: list[CompiledOutputs]) -> list[GraphTensor]:
    return [m.value for m in members if m.value is not None]


def _one_hot(graph: Graph, label: GraphTensor, classes: int) -> GraphTensor:
    """float32 [rows, classes]: 1 at the label."""
    column = graph.reshape(graph.cast(label, "float32"), (ROWS, 1))
    return graph.cast(graph.equal(column, graph.constant(np.arange(classes))), "float32")


def voting_classifier(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    if not hasattr(model, "classes_"):
        raise Refused("VotingClassifier without classes has no TFLite form")
    graph, members, weights = context.graph, _members(context, model, columns), _weights(model)
    if model.voting == "hard":
        votes = [_one_hot(graph, m.labels[0], len(model.classes_)) for m in members]
        return CompiledOutputs(labels=(graph.argmax(_weighted_sum(graph, votes, weights)),))
    total = _weighted_sum(graph, [m.probabilities[0] for m in members], weights)
    mean = graph.div(total, float(weights.sum()))
    return CompiledOutputs(labels=(graph.argmax(total),), probabilities=(mean,))


def voting_regressor(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    weights = _weights(model)
    total = _weighted_sum(context.graph, _values(_members(context, model, columns)), weights)
    return CompiledOutputs(value=context.graph.div(total, float(weights.sum())))


def stacking(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """The last estimator takes the members' answers, and with `passthrough` the columns after them."""
    graph = context.graph
    answers: list[GraphColumns] = []
    for member, method in zip(model.estimators_, model.stack_method_, strict=True):
        compiled = context.compile(context, member, columns)
        answers.append(GraphColumns((_stacked_answer(graph, model, member, method, compiled),)))
    stacked = side_by_side([*answers, columns] if model.passthrough else answers)
    return context.compile(context, model.final_estimator_, stacked)


def _stacked_answer(
    graph: Graph, model: Any, member: Any, method: str, compiled: CompiledOutputs
) -> GraphTensor:
    if compiled.value is not None:
        return compiled.value
    if method == "predict_proba" and len(compiled.probabilities) == 1:
        probabilities = compiled.probabilities[0]
        return graph.take(probabilities, [1]) if len(model.classes_) == 2 else probabilities
    if method == "decision_function" and compiled.decision is not None:
        return compiled.decision
    classes = np.asarray(getattr(member, "classes_", []))
    if method == "predict" and len(compiled.labels) == 1 and classes.dtype.kind in "iuf":
        label = graph.cast(compiled.labels[0], "int32")
        return graph.reshape(graph.gather(graph.constant(classes), label), (ROWS, 1))
    raise Refused(f"{type(model).__name__} over the {method} of {type(member).__name__} has no TFLite form")


def bagging(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """Trees are joined in one table of nodes. Other members are compiled one by one."""
    if flatten.is_forest(model):
        return compile_forest(context, flatten.flatten(model), columns)
    graph = context.graph
    members = []
    for part in composites.parts(model):
        member = part.estimator
        if hasattr(member, "classes_") and len(member.classes_) != len(model.classes_):
            raise Refused(f"{type(model).__name__}: a member was not trained on all classes")
        members.append(context.compile(context, member, columns.take(graph, np.asarray(part.columns))))
    ones = np.ones(len(members))
    if not hasattr(model, "classes_"):
        total = _weighted_sum(graph, _values(members), ones)
        return CompiledOutputs(value=graph.div(total, float(len(members))))
    votes = [
        m.probabilities[0] if m.probabilities else _one_hot(graph, m.labels[0], len(model.classes_))
        for m in members
    ]
    total = _weighted_sum(graph, votes, ones)
    mean = graph.div(total, float(len(members)))
    return CompiledOutputs(labels=(graph.argmax(total),), probabilities=(mean,))


def per_output_classifier(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    members = _members(context, model, columns)
    probabilities = tuple(m.probabilities[0] for m in members if m.probabilities)
    labels = tuple(m.labels[0] for m in members)
    complete = len(probabilities) == len(labels)
    return CompiledOutputs(labels=labels, probabilities=probabilities if complete else ())


def per_output_regressor(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    return CompiledOutputs(value=context.graph.concat(_values(_members(context, model, columns))))


def one_vs_rest(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """The class whose estimator has the largest decision; the estimators' probabilities are scaled to 1."""
    if model.multilabel_ or len(model.estimators_) < 2:
        raise Refused("OneVsRestClassifier with two classes or several outputs has no TFLite form")
    graph, members = context.graph, _members(context, model, columns)
    decisions = [_decision(graph, model, m) for m in members]
    label = graph.argmax(graph.concat(decisions))
    if not all(m.probabilities for m in members):
        return CompiledOutputs(labels=(label,))
    probabilities = graph.concat([graph.take(m.probabilities[0], [1]) for m in members])
    return CompiledOutputs(labels=(label,), probabilities=(normalised(graph, probabilities),))


def _decision(graph: Graph, model: Any, member: CompiledOutputs) -> GraphTensor:
    if member.decision is not None:
        return member.decision
    if not member.probabilities:
        raise Refused(f"{type(model).__name__} over {type(model.estimators_[0]).__name__} has no TFLite form")
    return graph.take(member.probabilities[0], [1])


CONVERTERS: dict[type, Converter] = {
    ensemble.VotingClassifier: voting_classifier,
    ensemble.VotingRegressor: voting_regressor,
    ensemble.StackingClassifier: stacking,
    ensemble.StackingRegressor: stacking,
    ensemble.BaggingClassifier: bagging,
    ensemble.BaggingRegressor: bagging,
    multioutput.MultiOutputClassifier: per_output_classifier,
    multioutput.MultiOutputRegressor: per_output_regressor,
    multiclass.OneVsRestClassifier: one_vs_rest,
}
