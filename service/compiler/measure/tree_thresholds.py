"""Where the trees inside an estimator split: the values at which two runtimes may disagree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.tree._tree import Tree

from registry.rows import Array

_DEPTH = 16
"""Attributes, lists and dicts count: a forest in a pipeline hides its trees nine deep."""


def thresholds(model: Any) -> Array:
    """[m, 2] float64: (feature of the tree's own input, threshold), each once."""
    pairs = [p for p in _pairs(model, set(), 0) if len(p)]
    return np.unique(np.concatenate(pairs), axis=0) if pairs else np.empty((0, 2))


def _pairs(thing: Any, seen: set[int], depth: int) -> Iterator[Array]:
    """Walks attributes, lists, dicts and arrays of objects for scikit-learn's two kinds of tree."""
    if depth > _DEPTH or id(thing) in seen or isinstance(thing, str | bytes | int | float | type(None)):
        return
    seen.add(id(thing))
    if isinstance(thing, Tree):
        inner = thing.children_left >= 0
        yield np.column_stack([thing.feature[inner], thing.threshold[inner]]).astype(np.float64)
    elif isinstance(thing, np.ndarray):
        if thing.dtype.names and "num_threshold" in thing.dtype.names:
            inner = (thing["is_leaf"] == 0) & (thing["is_categorical"] == 0)
            yield np.column_stack([thing["feature_idx"][inner], thing["num_threshold"][inner]]).astype(
                np.float64
            )
        elif thing.dtype == object:
            for item in thing.ravel().tolist():
                yield from _pairs(item, seen, depth + 1)
    elif isinstance(thing, list | tuple):
        for item in thing[:100_000]:
            yield from _pairs(item, seen, depth + 1)
    elif isinstance(thing, dict):
        for item in thing.values():
            yield from _pairs(item, seen, depth + 1)
    elif type(thing).__module__.startswith("sklearn"):
        yield from _pairs(getattr(thing, "__dict__", {}), seen, depth + 1)
        if hasattr(thing, "tree_"):
            yield from _pairs(thing.tree_, seen, depth + 1)
