"""A pipeline that ends in a tree ensemble: the ensemble, and what happens to the columns before it.

Only what scikit-learn does to each column by itself, in doubles, is taken, in its order of operations: then
the trees see the same numbers to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn import impute, pipeline, preprocessing
from sklearn.model_selection._search import BaseSearchCV

from registry.errors import Refused
from service.runtime.column_steps import FILL, Step


def split(model: Any) -> tuple[tuple[Step, ...], Any]:
    """(steps, last estimator); for anything but a pipeline no steps and itself.

    Raises `Refused`, by name, for a step that is no such arithmetic.
    """
    if isinstance(model, BaseSearchCV):
        return split(model.best_estimator_)
    if not isinstance(model, pipeline.Pipeline):
        return (), model
    steps: tuple[Step, ...] = ()
    for _, part in model.steps[:-1]:
        if part is None or part == "passthrough":
            continue
        if type(part) not in _STEPS:
            raise Refused(f"what {type(part).__name__} does before the trees is done by no table of nodes")
        steps += tuple(Step(name, _numbers(part, value)) for name, value in _STEPS[type(part)](part))
    inner, last = split(model.steps[-1][1])
    return steps + inner, last


Made = list[tuple[str, Any]]


def _numbers(part: Any, value: Any) -> Any:
    return np.array(np.broadcast_to(value, (part.n_features_in_,)), dtype=np.float64)


def _standard(part: Any) -> Made:
    made = [("subtract", part.mean_)] if part.with_mean else []
    return made + ([("divide", part.scale_)] if part.with_std else [])


def _robust(part: Any) -> Made:
    made = [("subtract", part.center_)] if part.with_centering else []
    return made + ([("divide", part.scale_)] if part.with_scaling else [])


def _min_max(part: Any) -> Made:
    made = [("multiply", part.scale_), ("add", part.min_)]
    return made + (_clipped(*part.feature_range) if part.clip else [])


def _max_abs(part: Any) -> Made:
    return [("divide", part.scale_), *(_clipped(-1.0, 1.0) if part.clip else [])]


def _clipped(low: float, high: float) -> Made:
    return [("maximum", low), ("minimum", high)]


def _filled(part: Any) -> Made:
    numbers = np.asarray(part.statistics_)
    if part.indicator_ is not None or numbers.dtype.kind != "f" or np.isnan(numbers).any():
        raise Refused("this SimpleImputer does more than fill in numbers")
    if part.missing_values == part.missing_values:
        raise Refused("this SimpleImputer fills in for other values than NaN")
    return [(FILL, numbers)]


_STEPS: dict[type, Callable[[Any], Made]] = {
    preprocessing.StandardScaler: _standard,
    preprocessing.RobustScaler: _robust,
    preprocessing.MinMaxScaler: _min_max,
    preprocessing.MaxAbsScaler: _max_abs,
    impute.SimpleImputer: _filled,
}
