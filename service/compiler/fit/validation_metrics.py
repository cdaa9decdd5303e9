"""Metrics of a model on validation rows, which it was not trained on."""

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


def classification_metrics(
    truth: Array, predicted: Array, scores: Array | None, classes: int
) -> dict[str, float]:
    """Accuracy and F1, and with `scores` ROC AUC and log loss where they are defined.

    `truth` and `predicted` are class codes, int64 [rows]. `scores` are probabilities float64 [rows, classes],
    or the decision values [rows, 1] of the second of two classes. `f1` is that of the second of two classes,
    or the mean over more classes. `roc_auc` needs two classes that both occur in `truth`.
    """
    binary = classes == 2
    metrics = {
        "accuracy": accuracy_score(truth, predicted),
        "f1": f1_score(truth, predicted, average="binary" if binary else "macro", zero_division=0.0),
    }
    if scores is not None:
        if binary and len(np.unique(truth)) == 2:
            metrics["roc_auc"] = roc_auc_score(truth, scores[:, -1])
        if scores.shape[1] == classes:
            metrics["log_loss"] = log_loss(truth, scores, labels=np.arange(classes))
    return {name: float(value) for name, value in metrics.items()}


def regression_metrics(truth: Array, predicted: Array) -> dict[str, float]:
    """MAE, RMSE and, from two rows on, R2. `truth` and `predicted` are float64 [rows]."""
    metrics = {
        "mae": mean_absolute_error(truth, predicted),
        "rmse": root_mean_squared_error(truth, predicted),
    }
    if len(truth) > 1:
        metrics["r2"] = r2_score(truth, predicted)
    return {name: float(value) for name, value in metrics.items()}
