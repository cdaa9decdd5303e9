"""Converters of transformers of single columns: scalers, imputers, encoders, selectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn import feature_selection, impute, preprocessing

from registry.errors import Refused
from registry.rows import Array
from service.compiler.tflite.converter import CompiledOutputs, ConversionContext, Converter
from service.compiler.tflite.graph_columns import GraphColumns, to_tensor
from service.compiler.tflite.operators import Graph
from service.compiler.tflite.writer import GraphTensor
from service.compiler.trees import scalers
from service.runtime.column_steps import FILL
from service.runtime.nodes import round_down


def scaler(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    for step in scalers.scaler_steps(model, context.scaler_dtype):
        columns = columns.apply(context.graph, step)
    return CompiledOutputs(columns=columns)


def normalizer(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """Rows of length 0 stay unchanged."""
    graph, x = context.graph, to_tensor(context.graph, columns)
    if model.norm == "max":
        length = graph.largest(graph.abs(x), axis=1, keep=True)
    elif model.norm == "l1":
        length = graph.total(graph.abs(x), axis=1, keep=True)
    else:
        length = graph.sqrt(graph.total(graph.square(x), axis=1, keep=True))
    is_zero = graph.cast(graph.equal(length, 0.0), "float32")
    return CompiledOutputs(columns=GraphColumns((graph.div(x, graph.add(length, is_zero)),)))


def binarizer(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    threshold = float(round_down(np.array([model.threshold], dtype=np.float64))[0])
    above = context.graph.greater(to_tensor(context.graph, columns), threshold)
    return CompiledOutputs(columns=GraphColumns((context.graph.cast(above, "float32"),)))


def imputer(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    statistics = _numbers(model, model.statistics_)
    missing = np.nan if pd.isna(model.missing_values) else float(model.missing_values)  # also None and pd.NA
    filled = columns
    if not model.keep_empty_features and np.isnan(statistics).any():
        filled = columns.take(context.graph, np.flatnonzero(~np.isnan(statistics)))
        statistics = statistics[~np.isnan(statistics)]
    if np.isnan(missing):
        filled = filled.apply(context.graph, scalers.column_step(FILL, statistics, filled.width))
    else:
        x = to_tensor(context.graph, filled)
        is_missing = context.graph.equal(x, missing)
        filled = GraphColumns(
            (context.graph.select(is_missing, context.graph.constant(statistics[None, :]), x),)
        )
    if not model.add_indicator or not len(model.indicator_.features_):
        return CompiledOutputs(columns=filled)
    indicated = to_tensor(context.graph, columns.take(context.graph, model.indicator_.features_))
    indicator = (
        context.graph.is_nan(indicated) if np.isnan(missing) else context.graph.equal(indicated, missing)
    )
    return CompiledOutputs(columns=GraphColumns((*filled.parts, context.graph.cast(indicator, "float32"))))


def _numbers(model: Any, values: Any) -> Array:
    try:
        return np.asarray(values, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise Refused(f"{type(model).__name__} of text has no TFLite form, only of numbers") from error


def _matches(graph: Graph, model: Any, columns: GraphColumns) -> tuple[GraphTensor, list[Array]]:
    """(one-hot float32 [rows, all categories], the categories of each column)."""
    categories = [_numbers(model, c) for c in model.categories_]
    values = np.concatenate(categories)
    single = values.astype(np.float32)
    for column in categories:
        if len(np.unique(column.astype(np.float32))) < len(column):
            raise Refused(
                f"{type(model).__name__} has different categories that are the same number in float32"
            )
    x = graph.take(
        to_tensor(graph, columns),
        np.repeat(np.arange(len(categories)), [len(c) for c in categories]).tolist(),
    )
    same = graph.cast(graph.equal(x, graph.constant(single)), "float32")
    missing = np.isnan(values)
    if missing.any():  # the category of missing values: NaN does not equal itself
        is_missing = graph.cast(graph.is_nan(x), "float32")
        same = graph.add(same, graph.mul(is_missing, graph.constant(missing.astype(np.float32))))
    return same, categories


def one_hot(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """An unknown category gives zeros, also where the estimator raises an error."""
    if any(c is not None for c in getattr(model, "infrequent_categories_", None) or []):
        raise Refused("OneHotEncoder with infrequent categories has no TFLite form")
    same, all_categories = _matches(context.graph, model, columns)
    indices, start = [], 0
    for number, categories in enumerate(all_categories):
        dropped = None if model.drop_idx_ is None else model.drop_idx_[number]
        indices += [start + i for i in range(len(categories)) if i != dropped]
        start += len(categories)
    return CompiledOutputs(columns=GraphColumns((context.graph.take(same, indices),)))


def ordinal(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """The code of each column's category.

    An unknown category gives `unknown_value`, or -1 where the estimator raises an error.
    """
    if any(c is not None for c in getattr(model, "infrequent_categories_", None) or []):
        raise Refused("OrdinalEncoder with infrequent categories has no TFLite form")
    graph = context.graph
    same, all_categories = _matches(graph, model, columns)
    unknown = float(model.unknown_value) if model.handle_unknown == "use_encoded_value" else -1.0
    weights = np.zeros((same.width, len(all_categories)))
    start = 0
    stays_missing = []
    for number, categories in enumerate(all_categories):
        codes = np.arange(len(categories), dtype=np.float64)
        codes[np.isnan(categories)] = model.encoded_missing_value
        stays_missing.append(bool(np.isnan(codes).any()))
        weights[start : start + len(categories), number] = np.nan_to_num(codes) + 1.0
        start += len(categories)
    # 0 for an unknown category, else the code plus 1
    shifted = graph.dense(same, weights, np.zeros(len(all_categories)), exact=True)
    codes_or_unknown = graph.sub(shifted, 1.0)
    if unknown != -1.0:
        codes_or_unknown = graph.select(graph.equal(shifted, 0.0), unknown, codes_or_unknown)
    if any(stays_missing):
        x = to_tensor(graph, columns)
        is_missing = graph.equal(
            graph.cast(graph.is_nan(x), "float32"), graph.constant(np.where(stays_missing, 1.0, 2.0))
        )
        codes_or_unknown = graph.select(is_missing, float("nan"), codes_or_unknown)
    return CompiledOutputs(columns=GraphColumns((codes_or_unknown,)))


def selector(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    return CompiledOutputs(columns=columns.take(context.graph, np.flatnonzero(model.get_support())))


def unchanged(context: ConversionContext, model: Any, columns: GraphColumns) -> CompiledOutputs:
    """FunctionTransformer without a function, which ColumnTransformer uses for `passthrough`."""
    if model.func is not None:
        raise Refused("FunctionTransformer calls a Python function, which has no TFLite form")
    return CompiledOutputs(columns=columns)


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
    **dict.fromkeys(scalers.SCALERS, scaler),
    preprocessing.Normalizer: normalizer,
    preprocessing.Binarizer: binarizer,
    impute.SimpleImputer: imputer,
    preprocessing.OneHotEncoder: one_hot,
    preprocessing.OrdinalEncoder: ordinal,
    preprocessing.FunctionTransformer: unchanged,
    **dict.fromkeys(SELECTORS, selector),
}
