"""The table of all converters, and the converters of pipelines and column transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn import base, compose, pipeline

from registry.errors import Refused
from service.compiler.signature import composites
from service.compiler.tflite import ensembles, linear, neural, preprocess, projections
from service.compiler.tflite.converter import CompiledOutputs, ConversionContext, Converter
from service.compiler.tflite.forest_graph import compile_forest
from service.compiler.tflite.graph_columns import GraphColumns, side_by_side
from service.compiler.trees import flatten
from service.compiler.trees.scalers import column_step

_KINDS = (base.ClassifierMixin, base.RegressorMixin, base.OutlierMixin)


def compile_model(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """Raises `Refused`, naming the class, for an estimator without a TFLite form."""
    converter = CONVERTERS.get(type(model))
    if converter is None and (inner := composites.delegate(model)) is not None:
        return compile_model(context, inner, columns)
    if converter is None:
        supported = ", ".join(supported_alternatives(model))
        raise Refused(f"{type(model).__name__} has no TFLite form; supported: {supported}")
    return converter(context, model, columns)


def supported_types() -> list[type]:
    """The estimators that can be converted, if the estimators inside them can be."""
    return [*CONVERTERS, *composites.delegating_types()]


def supported_alternatives(model: Any) -> list[str]:
    """Supported estimators of the same kind: classifiers, regressors, outlier detectors, or others."""
    kinds = [kind for kind in _KINDS if isinstance(model, kind)]
    types = supported_types()
    alternatives = [t for t in types if (issubclass(t, kinds[0]) if kinds else not issubclass(t, _KINDS))]
    return sorted({t.__name__ for t in alternatives})


def _transform(context: ConversionContext, transformer: Any, columns: GraphColumns) -> GraphColumns:
    compiled = context.compile(context, transformer, columns)
    if compiled.columns is None:
        raise Refused(f"{type(transformer).__name__} before another step has no TFLite form")
    return compiled.columns


def _pipeline(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    steps = composites.steps(model)
    for step in steps[:-1]:
        columns = _transform(context, step, columns)
    if not steps or model.steps[-1][1] in composites.PASSTHROUGH:
        return CompiledOutputs(columns=_transform(context, steps[-1], columns) if steps else columns)
    return context.compile(context, steps[-1], columns)


def _parallel(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """ColumnTransformer and FeatureUnion: the columns of all parts side by side, times the parts' weights."""
    parts = []
    for part in composites.parts(model):
        selected = columns
        if part.columns is not None:
            selected = columns.take(context.graph, np.asarray(part.columns, dtype=np.int64))
        compiled = selected if part.estimator is None else _transform(context, part.estimator, selected)
        weight = (model.transformer_weights or {}).get(part.name)
        if weight is not None:
            compiled = compiled.apply(context.graph, column_step("multiply", weight, compiled.width))
        parts.append(compiled)
    if not parts:
        raise Refused(f"a {type(model).__name__} that drops all columns has no TFLite form")
    return CompiledOutputs(columns=side_by_side(parts))


def _forest(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    return compile_forest(context, flatten.flatten(model), columns)


CONVERTERS: dict[type, Converter] = {
    **dict.fromkeys(flatten.FAMILIES, _forest),
    **linear.CONVERTERS,
    **neural.CONVERTERS,
    **preprocess.CONVERTERS,
    **projections.CONVERTERS,
    **ensembles.CONVERTERS,
    pipeline.Pipeline: _pipeline,
    pipeline.FeatureUnion: _parallel,
    compose.ColumnTransformer: _parallel,
}
