"""Split a pipeline that ends in a tree ensemble: the ensemble, and the arithmetic on the columns before it.

Supports only transformers that change each column by itself and in float64, in scikit-learn's order of
operations, so that the trees receive the same numbers to the last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.impute import SimpleImputer

from registry.errors import Refused
from service.compiler.signature import composites
from service.compiler.trees import scalers
from service.runtime.column_steps import FILL, ColumnStep


def split_forest_pipeline(model: Any) -> tuple[tuple[ColumnStep, ...], Any]:
    """(column steps, last estimator); for a model that is not a pipeline, no steps and the model itself.

    Raises `Refused`, naming the transformer, for other transformers.
    """
    transformers, last = composites.chain(model)
    return tuple(step for transformer in transformers for step in _column_steps(transformer)), last


def _column_steps(transformer: Any) -> tuple[ColumnStep, ...]:
    if scalers.is_scaler(transformer):
        return scalers.scaler_steps(transformer)
    if type(transformer) is SimpleImputer:
        return (_fill(transformer),)
    name = type(transformer).__name__
    raise Refused(f"{name} before the trees is not arithmetic on single columns, as a table of nodes needs")


def _fill(imputer: Any) -> ColumnStep:
    numbers = np.asarray(imputer.statistics_)
    if imputer.indicator_ is not None or numbers.dtype.kind != "f" or np.isnan(numbers).any():
        raise Refused(
            "this SimpleImputer does not only replace numbers: it drops or adds columns, or fills text"
        )
    if imputer.missing_values == imputer.missing_values:
        raise Refused("this SimpleImputer replaces other values than NaN")
    return scalers.column_step(FILL, numbers, imputer.n_features_in_)
