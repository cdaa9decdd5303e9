"""Column steps of scikit-learn's scalers: the operations that each of them does.

`SCALERS` has the scalers that are linear, apart from clipping, and so can be compiled. It is not
`signature.composites.INVERTIBLE_SCALERS`, through which a column's values can be followed back to a feature.
The steps have scikit-learn's order of operations, so that float64 rows give the same numbers to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn import preprocessing

from service.runtime.column_steps import ColumnStep

Operations = list[tuple[str, Any]]
"""Operation and its numbers, one per column or one for all columns."""


def is_scaler(transformer: Any) -> bool:
    return type(transformer) in SCALERS


def scaler_steps(scaler: Any, dtype: type[np.floating] = np.float64) -> tuple[ColumnStep, ...]:
    """The steps of a fitted scaler whose rows are of `dtype`.

    StandardScaler rounds its parameters to the dtype of the rows before it uses them; other scalers do not.
    """
    operations = SCALERS[type(scaler)](scaler)
    if isinstance(scaler, preprocessing.StandardScaler):
        operations = [(operation, np.asarray(numbers).astype(dtype)) for operation, numbers in operations]
    return tuple(column_step(operation, numbers, scaler.n_features_in_) for operation, numbers in operations)


def column_step(operation: str, numbers: Any, columns: int) -> ColumnStep:
    """A step with one float64 number for each of `columns`; a single number is repeated."""
    return ColumnStep(operation, np.array(np.broadcast_to(numbers, (columns,)), dtype=np.float64))


def _standard(scaler: Any) -> Operations:
    operations = [("subtract", scaler.mean_)] if scaler.with_mean else []
    return operations + ([("divide", scaler.scale_)] if scaler.with_std else [])


def _robust(scaler: Any) -> Operations:
    operations = [("subtract", scaler.center_)] if scaler.with_centering else []
    return operations + ([("divide", scaler.scale_)] if scaler.with_scaling else [])


def _min_max(scaler: Any) -> Operations:
    operations = [("multiply", scaler.scale_), ("add", scaler.min_)]
    return operations + (_clip(*scaler.feature_range) if scaler.clip else [])


def _max_abs(scaler: Any) -> Operations:
    return [("divide", scaler.scale_), *(_clip(-1.0, 1.0) if getattr(scaler, "clip", False) else [])]


def _clip(low: float, high: float) -> Operations:
    return [("maximum", low), ("minimum", high)]


SCALERS: dict[type, Callable[[Any], Operations]] = {
    preprocessing.StandardScaler: _standard,
    preprocessing.RobustScaler: _robust,
    preprocessing.MinMaxScaler: _min_max,
    preprocessing.MaxAbsScaler: _max_abs,
}
