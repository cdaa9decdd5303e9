"""From a column that trees are given back to the feature it was made of, through scalers and their like."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import check_array

from registry.rows import Array
from registry.signature import Input
from service.compiler.signature.row_layout import name

_SCALERS = (
    "MaxAbsScaler",
    "MinMaxScaler",
    "PowerTransformer",
    "QuantileTransformer",
    "RobustScaler",
    "StandardScaler",
)
"""scikit-learn's own that turn each column into one, by a function of it alone that has an inverse."""
_INNER = ("best_estimator_", "regressor_")


class Way(NamedTuple):
    """The feature's number in the signature, then the steps and which of their columns it is."""

    feature: int
    steps: tuple[tuple[Any, int], ...] = ()


Ways = list[Way | None]


def ways(model: Any, inputs: tuple[Input, ...]) -> Ways:
    """One for each column that the trees are given, None where nothing leads back to a number."""
    found: Ways = [None if given.dtype == "string" else Way(i) for i, given in enumerate(inputs)]
    try:
        return _before_trees(model, found)
    except Exception:  # fitted by another version, or taken apart: parity has other kinds of rows
        return []


def back(found: Ways, splits: Array) -> Array:
    """[m, 2] float64, a tree's (column, threshold), as (feature, its value); those without a way left out."""
    made = [np.empty((0, 2))]
    for column in np.unique(splits[:, 0]).astype(int).tolist():
        way = found[column] if column < len(found) else None
        if way is None:
            continue
        values = splits[splits[:, 0] == column, 1]
        try:
            for step, at in reversed(way.steps):
                values = _undone(step, at, values)
        except Exception:  # anybody's function may raise anything
            values = np.empty(0)
        values = values[np.isfinite(values)]
        made.append(np.column_stack([np.full(len(values), way.feature), values]))
    return np.concatenate(made)


def _undone(step: Any, at: int, values: Array) -> Array:
    scaled = np.zeros((len(values), step.n_features_in_))
    scaled[:, at] = values
    return np.asarray(step.inverse_transform(scaled), dtype=np.float64)[:, at]


def _before_trees(model: Any, found: Ways) -> Ways:
    for inner in _INNER:
        if hasattr(model, inner):
            return _before_trees(getattr(model, inner), found)
    if hasattr(model, "steps"):
        for _, step in model.steps[:-1]:
            found = _through(step, found)
        return _before_trees(model.steps[-1][1], found)
    own = getattr(model, "_preprocessor", None)  # of histogram boosting, which moves its categories ahead
    return found if own is None else _through(own, found)


def _through(step: Any, found: Ways) -> Ways:
    """The ways of the columns that `step` makes of those columns."""
    if step is None or isinstance(step, str):  # "passthrough"
        return found
    if hasattr(step, "steps"):
        for _, part in step.steps:
            found = _through(part, found)
        return found
    if hasattr(step, "output_indices_"):
        return _columns(step, found)
    if type(step).__module__.startswith("sklearn.impute"):
        return _imputed(step, found)
    if name(step) == "FunctionTransformer" and _changes_nothing(step.func):
        return found
    if name(step) in _SCALERS or getattr(step, "inverse_func", None) is not None:
        return [w and Way(w.feature, (*w.steps, (step, at))) for at, w in enumerate(found)]
    return []


def _changes_nothing(function: Any) -> bool:
    """The second is what histogram boosting has its numbers go through."""
    return function is None or getattr(function, "func", None) is check_array


def _imputed(step: Any, found: Ways) -> Ways:
    """It changes what is missing, and no threshold is; it may drop empty columns and add indicators."""
    given = getattr(step, "feature_names_in_", [f"x{i}" for i in range(step.n_features_in_)])
    by_name = dict(zip(given, found, strict=True))
    return [by_name.get(column) for column in step.get_feature_names_out()]


def _columns(step: Any, found: Ways) -> Ways:
    """A ColumnTransformer's: each of its transformers has columns of its own, and makes some of its own."""
    made: Ways = [None] * max((own.stop for own in step.output_indices_.values()), default=0)
    for key, transformer, _ in step.transformers_:
        own = step.output_indices_[key]
        part = [found[i] for i in step._transformer_to_input_indices[key]]
        part = part if transformer == "drop" else _through(transformer, part)
        if len(part) == own.stop - own.start:
            made[own] = part
    return made
