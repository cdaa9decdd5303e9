"""Where the trees inside an estimator split, as values of the features.

Two runtimes are most likely to disagree at these values, so parity compares rows at them and next to them.
Trees behind scalers split scaled columns: the transformers between a feature and the trees are inverted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from sklearn.feature_selection import SelectorMixin
from sklearn.tree._tree import Tree

from registry.rows import Array
from registry.signature import Input
from service.compiler.signature import composites
from service.compiler.signature.composites import ColumnSource, ColumnSources, EstimatorVisit

_MAX_DEPTH = 16
"""Attributes, lists and dicts count: a forest in a third-party wrapper hides its trees nine levels deep."""


class SplitPoints(NamedTuple):
    """The thresholds of all trees that compare a column made of one numeric feature, each once."""

    sources: list[ColumnSource]
    source: Array  # [m] int64: the position in `sources` of the column that is compared
    threshold: Array  # [m] float64: as the tree compares it

    def on_features(self) -> Array:
        """[k, 2] float64 (feature, value) of the thresholds on features that no transformer changed."""
        return self._invert(np.flatnonzero([not self.sources[s].steps for s in self.source.tolist()]))

    def sample(self, size: int, random: np.random.Generator) -> Array:
        """[k, 2] float64 (feature, value) of up to `size` random thresholds, in the features' own units."""
        return self._invert(random.permutation(len(self.source))[:size])

    def _invert(self, chosen: Array) -> Array:
        pairs = [np.empty((0, 2))]
        for position in np.unique(self.source[chosen]).tolist():
            values = invert(self.sources[position], self.threshold[chosen][self.source[chosen] == position])
            feature = self.sources[position].feature
            pairs.append(np.column_stack([np.full(len(values), feature), values]))
        return np.concatenate(pairs)


def split_points(model: Any, inputs: tuple[Input, ...]) -> SplitPoints:
    """The split points of every tree whose answer contributes to the model's answer."""
    features = [None if feature.dtype == "string" else ColumnSource(i) for i, feature in enumerate(inputs)]
    sources: list[ColumnSource] = []
    positions: dict[Any, int] = {}
    pairs = [np.empty((0, 2))]
    for visit, splits in _tree_visits(model, features):
        columns = _tree_columns(visit)
        for column in np.unique(splits[:, 0]).astype(int).tolist():
            source = columns[column] if column < len(columns) else None
            if source is None:
                continue
            key = (source.feature, tuple((id(transformer), at) for transformer, at in source.steps))
            if key not in positions:
                positions[key] = len(sources)
                sources.append(source)
            values = splits[splits[:, 0] == column, 1]
            pairs.append(np.column_stack([np.full(len(values), positions[key]), values]))
    unique = np.unique(np.concatenate(pairs), axis=0)
    return SplitPoints(sources, unique[:, 0].astype(np.int64), unique[:, 1])


def has_splits(model: Any) -> bool:
    """Whether `model` answers with trees, on whatever columns they split."""
    return next(_tree_visits(model, ()), None) is not None


def _tree_visits(model: Any, features: ColumnSources) -> Iterator[tuple[EstimatorVisit, Array]]:
    """The estimators that hold trees, with their splits. Selectors hold trees but do not answer with them."""
    for visit in composites.walk(model, features):
        if visit.is_composite or isinstance(visit.estimator, SelectorMixin):
            continue
        if len(splits := tree_splits(visit.estimator)):
            yield visit, splits


def _tree_columns(visit: EstimatorVisit) -> ColumnSources:
    """Histogram boosting has a preprocessor of its own, which moves its categorical columns to the front."""
    own = getattr(visit.estimator, "_preprocessor", None)
    return visit.sources if own is None else composites.sources_after(own, visit.sources)


def invert(source: ColumnSource, values: Array) -> Array:
    """The feature's values that the transformers turn into `values`; only those with a finite inverse."""
    try:
        for transformer, column in reversed(source.steps):
            full = np.zeros((len(values), transformer.n_features_in_))
            full[:, column] = values
            values = np.asarray(transformer.inverse_transform(full), dtype=np.float64)[:, column]
    except Exception:  # a user's inverse function may raise anything
        return np.empty(0)
    return values[np.isfinite(values)]


def tree_splits(estimator: Any) -> Array:
    """[m, 2] float64 (column of the tree's own input, threshold) of all trees inside, each once."""
    pairs = [p for p in _splits(estimator, set(), 0) if len(p)]
    return np.unique(np.concatenate(pairs), axis=0) if pairs else np.empty((0, 2))


def _splits(value: Any, visited: set[int], depth: int) -> Iterator[Array]:
    """Search attributes, lists, dicts and object arrays for scikit-learn's two kinds of tree."""
    if (
        depth > _MAX_DEPTH
        or id(value) in visited
        or isinstance(value, str | bytes | int | float | type(None))
    ):
        return
    visited.add(id(value))
    if isinstance(value, Tree):
        inner = value.children_left >= 0
        yield np.column_stack([value.feature[inner], value.threshold[inner]]).astype(np.float64)
    elif isinstance(value, np.ndarray):
        if value.dtype.names and "num_threshold" in value.dtype.names:
            nodes = value[(value["is_leaf"] == 0) & (value["is_categorical"] == 0)]
            yield np.column_stack([nodes["feature_idx"], nodes["num_threshold"]]).astype(np.float64)
        elif value.dtype == object:
            yield from _splits_in(value.ravel().tolist(), visited, depth)
    elif isinstance(value, list | tuple):
        yield from _splits_in(value[:100_000], visited, depth)
    elif isinstance(value, dict):
        yield from _splits_in(value.values(), visited, depth)
    elif type(value).__module__.startswith("sklearn"):
        yield from _splits(getattr(value, "__dict__", {}), visited, depth + 1)
        if hasattr(value, "tree_"):
            yield from _splits(value.tree_, visited, depth + 1)


def _splits_in(values: Any, visited: set[int], depth: int) -> Iterator[Array]:
    for value in values:
        yield from _splits(value, visited, depth + 1)
