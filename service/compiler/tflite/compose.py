"""The one table of what can be compiled, and the steps of pipelines."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn import base, compose, frozen, model_selection, pipeline

from registry.errors import Refused
from service.compiler.tflite import ensembles, linear, neural, preprocess, projections
from service.compiler.tflite.converter import CompiledOutputs, ConversionContext, Converter
from service.compiler.tflite.forest_graph import compile_forest
from service.compiler.tflite.graph_columns import GraphColumns
from service.compiler.trees import flatten

_NOTHING = (None, "passthrough")
_KINDS = (base.ClassifierMixin, base.RegressorMixin, base.OutlierMixin)


def compile_model(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """Raises `Refused` by name for what has no TFLite form."""
    converter = CONVERTERS.get(type(model))
    if converter is None:
        raise Refused(f"{type(model).__name__} has no TFLite form; these do: {', '.join(alike(model))}")
    return converter(context, model, columns)


def alike(model: Any) -> list[str]:
    """What can be compiled and is of the same kind: classifiers, regressors, outlier detectors, others."""
    kinds = [kind for kind in _KINDS if isinstance(model, kind)]
    found = [t for t in CONVERTERS if (issubclass(t, kinds[0]) if kinds else not issubclass(t, _KINDS))]
    return sorted({t.__name__ for t in found})


def _transformed(context: ConversionContext, model: Any, columns: GraphColumns) -> GraphColumns:
    answer = context.compile(context, model, columns)
    if answer.columns is None:
        raise Refused(f"{type(model).__name__} in front of another step has no TFLite form")
    return answer.columns


def _pipeline(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    steps = [step for _, step in model.steps if not (isinstance(step, str) or step is None)]
    for step in steps[:-1]:
        columns = _transformed(context, step, columns)
    if not steps or model.steps[-1][1] in _NOTHING:
        return CompiledOutputs(columns=_transformed(context, steps[-1], columns) if steps else columns)
    return context.compile(context, steps[-1], columns)


def _columns(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """ColumnTransformer: its parts in the order in which they were fitted, the remainder last."""
    parts = []
    for name, step, _ in model.transformers_:
        taken = np.asarray(model._transformer_to_input_indices[name], dtype=np.int64)
        if (isinstance(step, str) and step == "drop") or not len(taken):
            continue
        chosen = columns.take(context.graph, taken)
        made = chosen if isinstance(step, str) else _transformed(context, step, chosen)
        weight = (model.transformer_weights or {}).get(name)
        parts.append(
            made if weight is None else made.then(context.graph, "multiply", np.full(made.width, weight))
        )
    if not parts:
        raise Refused("a ColumnTransformer that drops all columns has no TFLite form")
    return CompiledOutputs(columns=preprocess.beside(parts))


def _union(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    parts = []
    for name, step in model.transformer_list:
        if isinstance(step, str) and step == "drop":
            continue
        made = columns if step in _NOTHING else _transformed(context, step, columns)
        weight = (model.transformer_weights or {}).get(name)
        parts.append(
            made if weight is None else made.then(context.graph, "multiply", np.full(made.width, weight))
        )
    return CompiledOutputs(columns=preprocess.beside(parts))


def _forest(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    return compile_forest(context, flatten.flatten(model), columns)


def _searched(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    return context.compile(context, model.best_estimator_, columns)


def _frozen(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    return context.compile(context, model.estimator, columns)


CONVERTERS: dict[type, Converter] = {
    **dict.fromkeys(flatten.FAMILIES, _forest),
    **linear.CONVERTERS,
    **neural.CONVERTERS,
    **preprocess.CONVERTERS,
    **projections.CONVERTERS,
    **ensembles.CONVERTERS,
    pipeline.Pipeline: _pipeline,
    pipeline.FeatureUnion: _union,
    compose.ColumnTransformer: _columns,
    model_selection.GridSearchCV: _searched,
    model_selection.RandomizedSearchCV: _searched,
    frozen.FrozenEstimator: _frozen,
}
