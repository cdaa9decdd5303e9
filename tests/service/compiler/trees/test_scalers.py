"""Scalers and imputers as column steps: the same numbers to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    PowerTransformer,
    RobustScaler,
    StandardScaler,
)

from registry.errors import Refused
from service.compiler.trees import scalers
from service.compiler.trees.tree_pipeline import split_forest_pipeline
from service.runtime.column_steps import ColumnStep, apply_step, apply_steps

ROWS = np.random.default_rng(0).normal(size=(50, 3)) * [0.1, 7.0, 1e6] + [3.0, -2.0, 1e7]
BEYOND = np.vstack([ROWS, ROWS * 3, -ROWS])


@pytest.mark.parametrize(
    "scaler",
    [
        StandardScaler(),
        StandardScaler(with_mean=False),
        StandardScaler(with_std=False),
        StandardScaler(with_mean=False, with_std=False),
        RobustScaler(),
        RobustScaler(with_centering=False),
        RobustScaler(with_scaling=False),
        MinMaxScaler(),
        MinMaxScaler((-1, 2)),
        MinMaxScaler((-1, 2), clip=True),
        MaxAbsScaler(),
        *([MaxAbsScaler(clip=True)] if "clip" in MaxAbsScaler().get_params() else []),
    ],
    ids=str,
)
def test_steps_of_a_scaler_give_its_numbers_to_the_last_bit(scaler: Any) -> None:
    steps = scalers.scaler_steps(scaler.fit(ROWS))
    assert all(s.numbers.shape == (3,) and s.numbers.dtype == np.float64 for s in steps)
    np.testing.assert_array_equal(apply_steps(steps, BEYOND), scaler.transform(BEYOND))


def test_a_standard_scaler_rounds_its_parameters_to_the_dtype_of_the_rows() -> None:
    fitted = StandardScaler().fit(ROWS)
    double, single = (scalers.scaler_steps(fitted, dtype) for dtype in (np.float64, np.float32))
    assert [s.operation for s in single] == [s.operation for s in double] == ["subtract", "divide"]
    for exact, rounded in zip(double, single, strict=True):
        np.testing.assert_array_equal(rounded.numbers, exact.numbers.astype(np.float32))
    robust = RobustScaler().fit(ROWS)
    for exact, same in zip(*(scalers.scaler_steps(robust, d) for d in (np.float64, np.float32)), strict=True):
        np.testing.assert_array_equal(same.numbers, exact.numbers)


def test_a_fill_replaces_missing_values_only_and_leaves_the_rows_unchanged() -> None:
    rows = np.array([[np.nan, np.inf], [0.0, np.nan]])
    before = rows.copy()
    step = ColumnStep("fill", np.array([5.0, 6.0]))
    assert apply_step(step, rows).tolist() == [[5.0, np.inf], [0.0, 6.0]]
    assert apply_steps((step,), rows).tolist() == [[5.0, np.inf], [0.0, 6.0]]
    np.testing.assert_array_equal(rows, before)


def forest_after(*steps: Any) -> Any:
    rows = ROWS.copy()
    rows[::7, 1] = np.nan
    return make_pipeline(*steps, RandomForestClassifier(2, random_state=0)).fit(rows, ROWS[:, 0] > 3)


def test_an_imputer_before_trees_is_a_fill_with_its_statistics() -> None:
    model = forest_after(SimpleImputer(strategy="median"), StandardScaler())
    steps, last = split_forest_pipeline(model)
    assert [s.operation for s in steps] == ["fill", "subtract", "divide"]
    np.testing.assert_array_equal(steps[0].numbers, model[0].statistics_)
    assert last is model[-1]
    assert split_forest_pipeline(last) == ((), last)


@pytest.mark.parametrize(
    ("transformer", "words"),
    [
        (SimpleImputer(add_indicator=True), "does not only replace numbers"),
        (PowerTransformer(), "PowerTransformer before the trees"),
    ],
)
def test_other_transformers_before_trees_are_refused(transformer: Any, words: str) -> None:
    with pytest.raises(Refused, match=words):
        split_forest_pipeline(forest_after(transformer))


def test_an_imputer_of_other_values_or_columns_is_refused() -> None:
    forest = RandomForestClassifier(2).fit(ROWS[:, :1], ROWS[:, 0] > 3)
    empty = SimpleImputer().fit(np.column_stack([ROWS[:, 0], np.full(50, np.nan)]))
    text = SimpleImputer(strategy="most_frequent").fit(np.array([["a"], ["b"], ["a"]], dtype=object))
    other = SimpleImputer(missing_values=-1.0).fit(ROWS[:, :1])
    only_replace = "does not only replace numbers"
    for imputer, words in ((empty, only_replace), (text, only_replace), (other, "other values than NaN")):
        with pytest.raises(Refused, match=words):
            split_forest_pipeline(make_pipeline(imputer, forest))
