"""Transformers column by column: scalers, imputers, encoders, selectors."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn import feature_selection, impute, preprocessing

from registry.errors import Refused
from registry.rows import Array
from service.compiler.tflite.converter import CompiledOutputs, ConversionContext, Converter
from service.compiler.tflite.float32_thresholds import down
from service.compiler.tflite.graph_columns import ColumnPart, GraphColumns, to_tensor
from service.compiler.tflite.operators import Graph
from service.compiler.tflite.writer import GraphTensor


def standard(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """Its constants are rounded to the rows' dtype before use, unlike those of the other scalers."""
    if model.with_mean:
        mean = np.asarray(model.mean_).astype(context.kept)
        columns = columns.then(context.graph, "subtract", mean)
    if model.with_std:
        columns = columns.then(context.graph, "divide", np.asarray(model.scale_).astype(context.kept))
    return CompiledOutputs(columns=columns)


def min_max(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    columns = columns.then(context.graph, "multiply", model.scale_).then(context.graph, "add", model.min_)
    if model.clip:
        bounds = np.repeat(np.asarray(model.feature_range, dtype=np.float64)[:, None], columns.width, axis=1)
        columns = columns.then(context.graph, "clip", bounds)
    return CompiledOutputs(columns=columns)


def max_abs(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    columns = columns.then(context.graph, "divide", model.scale_)
    if getattr(model, "clip", False):
        bounds = np.repeat(np.array([[-1.0], [1.0]]), columns.width, axis=1)
        columns = columns.then(context.graph, "clip", bounds)
    return CompiledOutputs(columns=columns)


def robust(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    if model.with_centering:
        columns = columns.then(context.graph, "subtract", model.center_)
    if model.with_scaling:
        columns = columns.then(context.graph, "divide", model.scale_)
    return CompiledOutputs(columns=columns)


def normalizer(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """Rows of length 0 stay as they are."""
    graph, x = context.graph, to_tensor(context.graph, columns)
    if model.norm == "max":
        length = graph.largest(graph.abs(x), axis=1, keep=True)
    elif model.norm == "l1":
        length = graph.total(graph.abs(x), axis=1, keep=True)
    else:
        length = graph.sqrt(graph.total(graph.square(x), axis=1, keep=True))
    nothing = graph.cast(graph.equal(length, 0.0), "float32")
    return CompiledOutputs(columns=GraphColumns((graph.div(x, graph.add(length, nothing)),)))


def binarizer(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    limit = float(down(np.array([model.threshold], dtype=np.float64))[0])
    above = context.graph.greater(to_tensor(context.graph, columns), limit)
    return CompiledOutputs(columns=GraphColumns((context.graph.cast(above, "float32"),)))


def imputer(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    statistics = _numbers(model, model.statistics_)
    missing = float(model.missing_values) if model.missing_values is not None else np.nan
    filled = columns
    if not model.keep_empty_features and np.isnan(statistics).any():
        filled = columns.take(context.graph, np.flatnonzero(~np.isnan(statistics)))
        statistics = statistics[~np.isnan(statistics)]
    if np.isnan(missing):
        filled = filled.then(context.graph, "fill", statistics)
    else:
        x = to_tensor(context.graph, filled)
        gap = context.graph.equal(x, missing)
        filled = GraphColumns((context.graph.select(gap, context.graph.constant(statistics[None, :]), x),))
    if not model.add_indicator:
        return CompiledOutputs(columns=filled)
    marked = to_tensor(context.graph, columns.take(context.graph, model.indicator_.features_))
    gaps = context.graph.is_nan(marked) if np.isnan(missing) else context.graph.equal(marked, missing)
    return CompiledOutputs(columns=GraphColumns((*filled.parts, context.graph.cast(gaps, "float32"))))


def _numbers(model: Any, values: Any) -> Array:
    try:
        return np.asarray(values, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise Refused(f"{type(model).__name__} of text has no TFLite form; of numbers it has") from error


def _matches(graph: Graph, model: Any, columns: GraphColumns) -> tuple[GraphTensor, list[Array]]:
    """1 where a column has a category [rows, all categories], and each column's categories."""
    known = [_numbers(model, c) for c in model.categories_]
    values = np.concatenate(known)
    single = values.astype(np.float32)
    for column in known:
        if len(np.unique(column.astype(np.float32))) < len(column):
            raise Refused(
                f"{type(model).__name__} tells categories apart that are the same number in float32"
            )
    x = graph.take(
        to_tensor(graph, columns), np.repeat(np.arange(len(known)), [len(c) for c in known]).tolist()
    )
    same = graph.cast(graph.equal(x, graph.constant(single)), "float32")
    gaps = np.isnan(values)
    if gaps.any():  # a missing value is a category of its own, and equals nothing
        is_gap = graph.cast(graph.is_nan(x), "float32")
        same = graph.add(same, graph.mul(is_gap, graph.constant(gaps.astype(np.float32))))
    return same, known


def one_hot(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """A category that was not seen gives zeros, where the estimator may raise instead."""
    if any(c is not None for c in getattr(model, "infrequent_categories_", None) or []):
        raise Refused("OneHotEncoder with infrequent categories has no TFLite form; without them it has")
    same, known = _matches(context.graph, model, columns)
    kept, start = [], 0
    for number, categories in enumerate(known):
        dropped = None if model.drop_idx_ is None else model.drop_idx_[number]
        kept += [start + i for i in range(len(categories)) if i != dropped]
        start += len(categories)
    return CompiledOutputs(columns=GraphColumns((context.graph.take(same, kept),)))


def ordinal(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """Each column's category number; `unknown_value` (or, where the estimator raises, -1) for others."""
    if any(c is not None for c in getattr(model, "infrequent_categories_", None) or []):
        raise Refused("OrdinalEncoder with infrequent categories has no TFLite form; without them it has")
    graph = context.graph
    same, known = _matches(graph, model, columns)
    unknown = float(model.unknown_value) if model.handle_unknown == "use_encoded_value" else -1.0
    weights = np.zeros((same.width, len(known)))
    start = 0
    stays_missing = []
    for number, categories in enumerate(known):
        codes = np.arange(len(categories), dtype=np.float64)
        codes[np.isnan(categories)] = model.encoded_missing_value
        stays_missing.append(bool(np.isnan(codes).any()))
        weights[start : start + len(categories), number] = np.nan_to_num(codes) + 1.0
        start += len(categories)
    found = graph.dense(same, weights, np.zeros(len(known)), exact=True)  # 0: none, else the code plus 1
    codes_or_unknown = graph.sub(found, 1.0)
    if unknown != -1.0:
        codes_or_unknown = graph.select(graph.equal(found, 0.0), unknown, codes_or_unknown)
    if any(stays_missing):
        x = to_tensor(graph, columns)
        gap = graph.equal(
            graph.cast(graph.is_nan(x), "float32"), graph.constant(np.where(stays_missing, 1.0, 2.0))
        )
        codes_or_unknown = graph.select(gap, float("nan"), codes_or_unknown)
    return CompiledOutputs(columns=GraphColumns((codes_or_unknown,)))


def selector(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    return CompiledOutputs(columns=columns.take(context.graph, np.flatnonzero(model.get_support())))


def unchanged(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """A FunctionTransformer without a function, as ColumnTransformer makes for `passthrough`."""
    if model.func is not None:
        raise Refused("FunctionTransformer calls a function of yours, which has no TFLite form")
    return CompiledOutputs(columns=columns)


def beside(parts: list[GraphColumns]) -> GraphColumns:
    """Side by side."""
    everything: list[ColumnPart] = [part for columns in parts for part in columns.parts]
    return GraphColumns(tuple(everything))


SELECTORS = (
    feature_selection.VarianceThreshold,
    feature_selection.SelectKBest,
    feature_selection.SelectPercentile,
    feature_selection.SelectFpr,
    feature_selection.SelectFdr,
    feature_selection.SelectFwe,
    feature_selection.GenericUnivariateSelect,
    feature_selection.SelectFromModel,
    feature_selection.RFE,
    feature_selection.RFECV,
    feature_selection.SequentialFeatureSelector,
)

CONVERTERS: dict[type, Converter] = {
    preprocessing.StandardScaler: standard,
    preprocessing.MinMaxScaler: min_max,
    preprocessing.MaxAbsScaler: max_abs,
    preprocessing.RobustScaler: robust,
    preprocessing.Normalizer: normalizer,
    preprocessing.Binarizer: binarizer,
    impute.SimpleImputer: imputer,
    preprocessing.OneHotEncoder: one_hot,
    preprocessing.OrdinalEncoder: ordinal,
    preprocessing.FunctionTransformer: unchanged,
    **dict.fromkeys(SELECTORS, selector),
}
