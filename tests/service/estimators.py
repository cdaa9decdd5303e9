"""Small estimators of every task, fitted in milliseconds, with example rows."""

from __future__ import annotations

import os
import signal
import time
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import IsolationForest, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, QuantileTransformer

SLEEP_OFFSET = 1000.0
KILL_VALUE = -777.0


class FittedModel(NamedTuple):
    model: Any
    frame: pd.DataFrame  # its example rows


class SleepingModel(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Predicts `x0`. Above `SLEEP_OFFSET` it first sleeps `x0 - SLEEP_OFFSET` seconds.

    At `KILL_VALUE` it kills its process.
    ONNX converters do not support it, so it is served isolated: the child process imports this module.
    """

    def fit(self, X: Any, y: Any) -> Self:
        self.n_features_in_ = np.asarray(X).shape[1]
        self.fitted_ = True
        return self

    def predict(self, X: Any) -> Any:
        values = np.asarray(X)[:, 0].astype(float)
        if values[0] == KILL_VALUE:
            os.kill(os.getpid(), signal.SIGKILL)
        if values[0] >= SLEEP_OFFSET:
            time.sleep(values[0] - SLEEP_OFFSET)
        return values


def numeric_rows(count: int = 60) -> pd.DataFrame:
    generator = np.random.default_rng(7)
    return pd.DataFrame(generator.normal(size=(count, 3)), columns=["x0", "x1", "x2"])


def sign_classifier(swapped: bool = False) -> FittedModel:
    """A classifier that predicts `yes` for `x0` above zero, or `no` when `swapped`."""
    frame = numeric_rows()
    labels = np.where((frame["x0"] > 0) != swapped, "yes", "no")
    return FittedModel(LogisticRegression().fit(frame, labels), frame)


def forest() -> FittedModel:
    frame = numeric_rows()
    labels = (frame["x0"] > 0).astype(int) + (frame["x1"] > 0)
    return FittedModel(RandomForestClassifier(5, max_depth=3, random_state=0).fit(frame, labels), frame)


def mixed_columns() -> FittedModel:
    """A nullable float, a string, a boolean and an integer column."""
    frame = pd.DataFrame(
        {
            "age": [31.5, np.nan, 47.0, 22.0, 63.0, 38.5] * 5,
            "city": ["Bern", "Genève", "Zürich", "Bern", "Genève", "Zürich"] * 5,
            "member": [True, False, True, True, False, False] * 5,
            "visits": [1, 4, 2, 8, 5, 7] * 5,
        }
    )
    columns = ColumnTransformer(
        [
            ("age", SimpleImputer(), ["age"]),
            ("city", OneHotEncoder(), ["city"]),
            ("rest", "passthrough", ["member", "visits"]),
        ]
    )
    labels = (frame["visits"] > 4).to_numpy()
    return FittedModel(make_pipeline(columns, LogisticRegression()).fit(frame, labels), frame)


def models_of_every_task() -> dict[str, FittedModel]:
    """By model name: one estimator per row of the table of predictions in the API description."""
    frame = numeric_rows()
    first = (frame["x0"] > 0).astype(int).to_numpy()
    second = np.where(frame["x1"] > 0, "b", "a")
    targets = np.column_stack([frame["x0"] * 2, frame["x1"] * 3])
    two_labels = np.column_stack([first, (second == "b").astype(int)])
    return {
        "forest": forest(),
        "mixed": mixed_columns(),
        "ridge": FittedModel(RidgeClassifier().fit(frame, second), frame),
        "two-labels": FittedModel(MultiOutputClassifier(LogisticRegression()).fit(frame, two_labels), frame),
        "price": FittedModel(LinearRegression().fit(frame, frame["x0"] * 2 + 1), frame),
        "two-prices": FittedModel(LinearRegression().fit(frame, targets), frame),
        "groups": FittedModel(KMeans(2, n_init=1, random_state=0).fit(frame), frame),
        "outliers": FittedModel(IsolationForest(n_estimators=5, random_state=0).fit(frame), frame),
        "ranks": FittedModel(QuantileTransformer(n_quantiles=20).fit(frame), frame),
        "sleeper": FittedModel(SleepingModel().fit(frame, first), frame),
    }
