"""Estimators that ask other estimators: voting, stacking, bagging, one per output, one per class."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn import ensemble, multiclass, multioutput

from registry.errors import Refused
from registry.rows import Array
from service.compiler.tflite.converter import CompiledOutputs, ConversionContext, Converter
from service.compiler.tflite.forest_graph import compile_forest
from service.compiler.tflite.graph_columns import GraphColumns
from service.compiler.tflite.linear import normalised
from service.compiler.tflite.operators import Graph
from service.compiler.tflite.preprocess import beside
from service.compiler.tflite.writer import ROWS, GraphTensor
from service.compiler.trees import flatten


def _weighted(graph: Graph, parts: list[GraphTensor], weights: Array) -> GraphTensor:
    """The sum of `parts`, each times its weight."""
    total = None
    for part, weight in zip(parts, weights.tolist(), strict=True):
        scaled = part if weight == 1.0 else graph.mul(part, weight)
        total = scaled if total is None else graph.add(total, scaled)
    assert total is not None
    return total


def _weights(model: Any) -> Array:
    given = model._weights_not_none
    return np.ones(len(model.estimators_)) if given is None else np.asarray(given, dtype=np.float64)


def _members(context: ConversionContext, model: Any, columns: GraphColumns) -> list[CompiledOutputs]:
    return [context.compile(context, member, columns) for member in model.estimators_]


def _values(answers: list[CompiledOutputs]) -> list[GraphTensor]:
    return [a.value for a in answers if a.value is not None]


def _votes(graph: Graph, label: GraphTensor, classes: int) -> GraphTensor:
    """[rows, classes] float32: 1 at the label."""
    column = graph.reshape(graph.cast(label, "float32"), (ROWS, 1))
    return graph.cast(graph.equal(column, graph.constant(np.arange(classes))), "float32")


def voting_classifier(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    if not hasattr(model, "classes_"):
        raise Refused("VotingClassifier without classes has no TFLite form")
    graph, answers, weights = context.graph, _members(context, model, columns), _weights(model)
    if model.voting == "hard":
        votes = [_votes(graph, a.labels[0], len(model.classes_)) for a in answers]
        return CompiledOutputs(labels=(graph.argmax(_weighted(graph, votes, weights)),))
    total = _weighted(graph, [a.probabilities[0] for a in answers], weights)
    chances = graph.div(total, float(weights.sum()))
    return CompiledOutputs(labels=(graph.argmax(total),), probabilities=(chances,))


def voting_regressor(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    weights = _weights(model)
    total = _weighted(context.graph, _values(_members(context, model, columns)), weights)
    return CompiledOutputs(value=context.graph.div(total, float(weights.sum())))


def stacking(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """What the members answer is what the last estimator takes, the columns themselves after it if wanted."""
    graph = context.graph
    asked: list[GraphColumns] = []
    for member, method in zip(model.estimators_, model.stack_method_, strict=True):
        answer = context.compile(context, member, columns)
        asked.append(GraphColumns((_asked(graph, model, member, method, answer),)))
    given = beside([*asked, columns] if model.passthrough else asked)
    return context.compile(context, model.final_estimator_, given)


def _asked(graph: Graph, model: Any, member: Any, method: str, answer: CompiledOutputs) -> GraphTensor:
    if answer.value is not None:
        return answer.value
    if method == "predict_proba" and len(answer.probabilities) == 1:
        chances = answer.probabilities[0]
        return graph.take(chances, [1]) if len(model.classes_) == 2 else chances
    if method == "decision_function" and answer.decision is not None:
        return answer.decision
    classes = np.asarray(getattr(member, "classes_", []))
    if method == "predict" and len(answer.labels) == 1 and classes.dtype.kind in "iuf":
        label = graph.cast(answer.labels[0], "int32")
        return graph.reshape(graph.gather(graph.constant(classes), label), (ROWS, 1))
    raise Refused(f"{type(model).__name__} over the {method} of {type(member).__name__} has no TFLite form")


def bagging(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """Trees go into one table; other members are asked one by one, each for its own columns."""
    if flatten.is_forest(model):
        return compile_forest(context, flatten.flatten(model), columns)
    graph = context.graph
    answers = []
    for member, features in zip(model.estimators_, model.estimators_features_, strict=True):
        if hasattr(member, "classes_") and len(member.classes_) != len(model.classes_):
            raise Refused(f"{type(model).__name__}: a member has not seen all classes")
        answers.append(context.compile(context, member, columns.take(graph, features)))
    ones = np.ones(len(answers))
    if not hasattr(model, "classes_"):
        return CompiledOutputs(value=graph.div(_weighted(graph, _values(answers), ones), float(len(answers))))
    parts = [
        a.probabilities[0] if a.probabilities else _votes(graph, a.labels[0], len(model.classes_))
        for a in answers
    ]
    total = _weighted(graph, parts, ones)
    return CompiledOutputs(
        labels=(graph.argmax(total),), probabilities=(graph.div(total, float(len(answers))),)
    )


def per_output_classifier(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    answers = _members(context, model, columns)
    chances = tuple(a.probabilities[0] for a in answers if a.probabilities)
    labels = tuple(a.labels[0] for a in answers)
    return CompiledOutputs(labels=labels, probabilities=chances if len(chances) == len(labels) else ())


def per_output_regressor(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    return CompiledOutputs(value=context.graph.concat(_values(_members(context, model, columns))))


def one_vs_rest(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """The class whose own estimator is surest; their probabilities scaled to 1."""
    if model.multilabel_ or len(model.estimators_) < 2:
        raise Refused("OneVsRestClassifier with two classes or several outputs has no TFLite form")
    graph, answers = context.graph, _members(context, model, columns)
    decisions = [_surest(graph, model, a) for a in answers]
    label = graph.argmax(graph.concat(decisions))
    if not all(a.probabilities for a in answers):
        return CompiledOutputs(labels=(label,))
    chances = graph.concat([graph.take(a.probabilities[0], [1]) for a in answers])
    return CompiledOutputs(labels=(label,), probabilities=(normalised(graph, chances),))


def _surest(graph: Graph, model: Any, answer: CompiledOutputs) -> GraphTensor:
    if answer.decision is not None:
        return answer.decision
    if not answer.probabilities:
        raise Refused(f"{type(model).__name__} over {type(model.estimators_[0]).__name__} has no TFLite form")
    return graph.take(answer.probabilities[0], [1])


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
