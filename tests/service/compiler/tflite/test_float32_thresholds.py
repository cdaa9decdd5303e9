"""Thresholds that a device compares in float32: equal numbers, imputed numbers, both ends of the range."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingClassifier, RandomForestRegressor
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from registry.rows import Array
from service.compiler.tflite.float32_thresholds import (
    MAX_FLOAT32,
    compared_numbers,
    float_at_rank,
    float_rank,
    largest_input,
    move_thresholds,
)
from service.compiler.tflite.graph_columns import GraphColumns, RawColumns
from service.compiler.trees.flatten import flatten
from service.runtime.column_steps import ColumnStep
from service.runtime.nodes import round_down
from tests.service.compiler.tflite.litert_helpers import run_both

doubles = st.floats(allow_nan=False)
singles = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(doubles, st.floats(width=32, allow_nan=False))
def test_a_float32_is_above_a_double_if_it_is_above_the_double_rounded_down(limit: float, x: float) -> None:
    assert (x > limit) == (np.float32(x) > round_down(np.array([limit]))[0])


@given(singles)
def test_the_order_of_floats_is_the_order_of_their_ranks(x: float) -> None:
    rank = np.array([float_rank(np.float32(x))])
    assert float_at_rank(rank)[0] == np.float32(x)
    if abs(x) < MAX_FLOAT32:
        assert float_at_rank(rank + 1)[0] > np.float32(x)


@given(
    st.floats(-1e6, 1e6),
    st.floats(1e-3, 1e6),
    st.floats(-10, 10),
    singles,
    st.sampled_from([np.float32, np.float64]),
)
def test_a_moved_threshold_splits_the_same_numbers_as_the_scaled_one(
    mean: float, scale: float, limit: float, x: float, dtype: type[np.floating]
) -> None:
    steps = (ColumnStep("subtract", np.array([mean])), ColumnStep("divide", np.array([scale])))
    columns = RawColumns(np.array([0]), steps)
    threshold = largest_input(columns, np.array([limit]), True, dtype)
    rounded = threshold.astype(np.float32)
    for value in (np.array([x], np.float32), rounded, np.nextafter(rounded, np.float32(np.inf))):
        assert (value[0] > threshold[0]) == (compared_numbers(columns, value, True, dtype)[0] > limit)


def imputed(fill: float, *steps: Any, trees: Any = None) -> Pipeline:
    """Missing values become `fill`; the tree splits 0 and 1 at 0.5."""
    imputer = SimpleImputer(strategy="constant", fill_value=fill)
    trees = DecisionTreeClassifier() if trees is None else trees
    return make_pipeline(imputer, *steps, trees).fit(np.array([[0.0], [1.0]] * 20), [0, 1] * 20)


def answers_to_missing(folder: Path, model: Any) -> list[int]:
    """(answer to a missing value, to 0, to 1), by the estimator and by LiteRT."""
    expected, got = run_both(folder, model, np.array([[np.nan], [0.0], [1.0]]))
    assert got["label"].tolist() == expected["label"].tolist()
    labels: list[int] = expected["label"].tolist()
    return labels


@pytest.mark.parametrize("above", [False, True])
@pytest.mark.parametrize("trees", [DecisionTreeClassifier(), HistGradientBoostingClassifier(max_iter=1)])
def test_an_imputed_value_equal_to_a_threshold_goes_left(tmp_path: Path, above: bool, trees: Any) -> None:
    fill = float(np.nextafter(np.float32(0.5), np.float32(1))) if above else 0.5
    model = imputed(fill, trees=trees)
    if isinstance(trees, HistGradientBoostingClassifier):
        model[-1]._predictors[0][0].nodes["num_threshold"][0] = 0.5
    assert answers_to_missing(tmp_path, model) == [int(above), 0, 1]


@pytest.mark.parametrize("fill", [0.5, 0.1, 0.7])
def test_an_imputed_and_scaled_value_equal_to_a_threshold_goes_left(tmp_path: Path, fill: float) -> None:
    model = imputed(fill, StandardScaler())
    scaled = np.float32(model[:-1].transform([[np.nan]])[0, 0])
    tree = model[-1].tree_
    tree.threshold[0] = scaled
    assert answers_to_missing(tmp_path, model)[0] == 0
    tree.threshold[0] = np.nextafter(scaled, np.float32(-np.inf))
    assert answers_to_missing(tmp_path, model)[0] == 1


def test_each_part_of_the_columns_has_its_own_steps(tmp_path: Path) -> None:
    """The first and the last column of a part belong to it and not to the next."""
    rows = np.random.default_rng(0).integers(0, 4, (200, 5)).astype(np.float64)
    target = rows @ [1.0, 10.0, 100.0, 1000.0, 10000.0]
    filled = {n: SimpleImputer(strategy="constant", fill_value=n - 0.5) for n in (1, 2, 3)}
    columns = ColumnTransformer(
        [("a", filled[1], [3, 1]), ("b", "passthrough", [4]), ("c", filled[2], [0]), ("d", filled[3], [2])]
    )
    model = make_pipeline(columns, RandomForestRegressor(3, random_state=0)).fit(rows, target)
    with_missing = np.vstack([rows[:20]] * 6)
    for column in range(4):
        with_missing[20 * column : 20 * column + 20, [3, 1, 0, 2][column]] = np.nan
    expected, got = run_both(tmp_path, model, with_missing)
    np.testing.assert_allclose(got["value"], expected["value"], rtol=1e-6)


def test_columns_without_steps_keep_thresholds_and_the_side_of_missing_values() -> None:
    rows = np.array([[0.1, 1.0], [0.2, np.nan], [0.3, 1.0], [0.4, np.nan]] * 10)
    nodes = flatten(
        HistGradientBoostingClassifier(max_iter=3, min_samples_leaf=2).fit(rows, [0, 0, 1, 0] * 10)
    )
    plain = GraphColumns((RawColumns(np.arange(2)),))
    moved = move_thresholds(nodes, plain, np.float64)
    np.testing.assert_array_equal(moved.threshold, round_down(nodes.threshold))
    np.testing.assert_array_equal(moved.missing_left, nodes.missing_left)
    filled = plain.apply(None, ColumnStep("fill", np.array([-5.0, 7.0])))  # type: ignore[arg-type]
    moved = move_thresholds(nodes, filled, np.float64)
    inner = ~nodes.leaf
    expected = np.array([-5.0, 7.0])[nodes.feature] <= nodes.threshold
    np.testing.assert_array_equal(moved.missing_left[inner], expected[inner])
    assert (moved.threshold[nodes.leaf] == np.inf).all()


@pytest.mark.parametrize(
    ("steps", "limit", "expected"),
    [
        ((), 0.5, 0.5),
        ((), float(np.nextafter(0.5, 1)), 0.5),
        ((), float(np.nextafter(0.5, 0)), float(np.nextafter(np.float32(0.5), np.float32(0)))),
        ((), 0.0, 0.0),
        ((), float(MAX_FLOAT32), float(MAX_FLOAT32)),
        ((), 1e300, float(MAX_FLOAT32)),
        ((), np.inf, np.inf),
        ((), -float(MAX_FLOAT32), -float(MAX_FLOAT32)),
        ((), -1e300, -np.inf),
        ((("minimum", 1.0),), 1.0, float(MAX_FLOAT32)),
        ((("maximum", 1.0),), 0.5, -np.inf),
        ((("multiply", 2.0),), 3.0, 1.5),
    ],
)
def test_a_limit_becomes_the_largest_float32_that_maps_to_it(
    steps: tuple[tuple[str, float], ...], limit: float, expected: float
) -> None:
    columns = RawColumns(np.array([0]), tuple(ColumnStep(o, np.array([n])) for o, n in steps))
    result = largest_input(columns, np.array([limit]), False, np.float64)
    assert result.dtype == np.float32
    assert result.tolist() == [expected]


def test_ranks_of_zero_and_of_the_largest_floats() -> None:
    assert float_rank(np.float32(0.0)) == float_rank(np.float32(-0.0)) == 0
    assert float_rank(np.float32(1e-45)) == 1
    assert float_rank(np.float32(-1e-45)) == -1
    beyond = np.array([float_rank(MAX_FLOAT32) + 1, float_rank(-MAX_FLOAT32) - 1])
    assert float_at_rank(beyond).tolist() == [np.inf, -np.inf]


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_trees_of_every_small_depth_give_the_answers_of_the_estimator(tmp_path: Path, depth: int) -> None:
    rows: Array = np.arange(8.0).reshape(-1, 1)
    target = np.zeros(8) if depth == 0 else rows[:, 0] ** 2
    model = GradientBoostingRegressor(n_estimators=2, max_depth=max(depth, 1)).fit(rows, target)
    assert flatten(model).depth == depth
    expected, got = run_both(tmp_path, model, np.vstack([rows, rows + 0.5]))
    np.testing.assert_allclose(got["value"], expected["value"], rtol=1e-6, atol=1e-6)
