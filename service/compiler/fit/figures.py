"""How good a model is on rows that it was never trained on."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    log_loss,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)

from registry.rows import Array


def of_labels(truth: Array, predicted: Array, chances: Array | None, classes: int) -> dict[str, float]:
    """`truth` and `predicted` are codes of classes, int64 [rows]; `chances` float64 [rows, classes], or
    [rows, 1] scores of the second of two classes. `f1` is that of the second class when there are two, else
    the classes' mean. `roc_auc` needs two classes that both occur."""
    binary = classes == 2
    found = {
        "accuracy": accuracy_score(truth, predicted),
        "f1": f1_score(truth, predicted, average="binary" if binary else "macro", zero_division=0.0),
    }
    if chances is not None:
        if binary and len(np.unique(truth)) == 2:
            found["roc_auc"] = roc_auc_score(truth, chances[:, -1])
        if chances.shape[1] == classes:
            found["log_loss"] = log_loss(truth, chances, labels=np.arange(classes))
    return {name: float(value) for name, value in found.items()}


def of_values(truth: Array, predicted: Array) -> dict[str, float]:
    """`truth` and `predicted` are float64 [rows]. `r2` needs two rows."""
    found = {
        "mae": mean_absolute_error(truth, predicted),
        "rmse": root_mean_squared_error(truth, predicted),
    }
    if len(truth) > 1:
        found["r2"] = r2_score(truth, predicted)
    return {name: float(value) for name, value in found.items()}
