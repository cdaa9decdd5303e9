"""The rows that parity is measured on: how many of each kind, and which values they hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.tree import DecisionTreeRegressor

from registry.rows import Outputs, Rows
from registry.signature import Input, Output, Signature
from service.compiler.measure import comparison_rows
from service.compiler.measure.comparison_rows import (
    accepted_rows,
    rows_by_kind,
    with_neighbours,
)

OUTPUTS = (Output("value", "float64", (-1,)),)


def kinds_of(*inputs: Input, example: Rows | None = None, model: Any = None) -> dict[str, Rows]:
    return rows_by_kind(model, Signature("regression", inputs, OUTPUTS), example)


def matrix(rows: Rows) -> np.ndarray:
    assert rows.matrix is not None
    return rows.matrix


@pytest.mark.parametrize("size", [1, 1000, 1001])
def test_the_first_rows_of_the_example_are_compared_in_order(size: int) -> None:
    example = np.arange(float(size)).reshape(-1, 1)
    rows = matrix(kinds_of(Input("a", "float64"), example=Rows(matrix=example))["example"])
    np.testing.assert_array_equal(rows, example[:1000])


def test_each_kind_has_its_number_of_rows() -> None:
    inputs = (
        Input("a", "float64", nullable=True),
        Input("city", "string", categories=("x", "y")),
        Input("b", "float64"),
    )
    assert {k: len(r) for k, r in kinds_of(*inputs).items()} == {
        "random": 500,
        "wide": 200,
        "missing": 200,
        "unknown category": 100,
    }
    assert set(kinds_of(Input("b", "float64"))) == {"random", "wide"}


def test_two_calls_give_the_same_rows() -> None:
    inputs = (Input("a", "float64", nullable=True), Input("b", "int64", categories=(1, 2)))
    first, second = kinds_of(*inputs), kinds_of(*inputs)
    for kind, rows in first.items():
        np.testing.assert_array_equal(matrix(rows), matrix(second[kind]))


def test_missing_values_are_in_about_half_of_the_nullable_cells_only() -> None:
    inputs = (Input("a", "float64", nullable=True), Input("b", "float64"))
    share = np.isnan(matrix(kinds_of(*inputs)["missing"])).mean(axis=0)
    assert 0.4 < share[0] < 0.6
    assert share[1] == 0.0


def test_unknown_categories_are_in_about_half_of_the_open_features_only() -> None:
    inputs = (
        Input("open", "int64", categories=(3, 7)),
        Input("closed", "int64", categories=(3, 7), closed=True),
        Input("plain", "float64", minimum=0.0, maximum=1.0),
    )
    rows = matrix(kinds_of(*inputs)["unknown category"])
    assert set(rows[:, 0]) == {3.0, 7.0, 8.0}  # one above the largest
    assert 0.35 < (rows[:, 0] == 8.0).mean() < 0.65
    assert set(rows[:, 1]) == {3.0, 7.0}
    assert (rows[:, 2] <= 1.0).all()
    assert "unknown category" not in kinds_of(*inputs[1:])


def test_a_boolean_has_no_unknown_category() -> None:
    assert "unknown category" not in kinds_of(Input("b", "bool", categories=(False, True)))


def test_text_gets_unknown_and_missing_values_of_its_own() -> None:
    feature = Input("city", "string", nullable=True, categories=("x", "y"))
    kinds = kinds_of(feature)
    unknown, missing = kinds["unknown category"].columns, kinds["missing"].columns
    assert unknown is not None
    assert missing is not None
    assert set(unknown[0]) == {"x", "y", "a value the model has never seen"}
    assert set(missing[0]) == {"x", "y", None}
    plain = kinds_of(Input("text", "string"))["random"].columns
    assert plain is not None
    assert set(plain[0]) == {"text"}


def test_random_numbers_are_half_example_values_and_half_between_minimum_and_maximum() -> None:
    example = Rows(matrix=np.array([[2.0], [4.0], [np.nan]]))
    rows = matrix(kinds_of(Input("a", "float64", minimum=1.0, maximum=9.0), example=example)["random"])
    known = np.isin(rows, [2.0, 4.0])
    assert 0.4 < known.mean() < 0.6
    assert 1.0 <= rows.min() < 2.0
    assert 8.0 < rows.max() <= 9.0


@pytest.mark.parametrize(
    ("feature", "example", "low", "high"),
    [
        (Input("a", "float64"), None, -3.0, 3.0),
        (Input("a", "float64"), [5.0, 7.0, np.inf], 5.0, 7.0),
        (Input("a", "float64"), [5.0, 5.0], 4.0, 6.0),  # a single value: one to both sides
        (Input("a", "float64", minimum=2.0, maximum=2.0), None, 1.0, 3.0),
        (Input("a", "float64", minimum=2.0, maximum=2.5), None, 2.0, 2.5),
        (Input("a", "float64", maximum=-5.0), None, -4.0, -2.0),  # below the default minimum of -3
    ],
)
def test_the_range_of_random_numbers(
    feature: Input, example: list[float] | None, low: float, high: float
) -> None:
    values = np.empty(0) if example is None else np.array(example)
    assert comparison_rows._range(feature, values) == (low, high)


def test_wide_rows_reach_ten_ranges_and_a_million_ranges() -> None:
    rows = matrix(kinds_of(Input("a", "float64", minimum=0.0, maximum=2.0))["wide"])
    distance = np.abs(rows - 1.0)
    near = distance <= 21.0
    assert (near & (distance > 5.0)).mean() > 0.3
    assert (rows.min() < -100.0, rows.max() > 100.0) == (True, True)
    assert np.abs(rows).max() <= 2.0 * 10.0**6
    assert near.mean() > 0.4


def test_numbers_have_the_precision_of_their_dtype() -> None:
    inputs = (Input("i", "int64"), Input("b", "bool"), Input("s", "float32"), Input("d", "float64"))
    for kind in ("random", "wide"):
        rows = matrix(kinds_of(*inputs)[kind])
        np.testing.assert_array_equal(rows[:, 0], np.rint(rows[:, 0]))
        assert set(rows[:, 1]) == {0.0, 1.0}
        np.testing.assert_array_equal(rows[:, 2], rows[:, 2].astype(np.float32))
        assert (rows[:, 3] != rows[:, 3].astype(np.float32)).any()


def tree(rows: np.ndarray, target: np.ndarray) -> DecisionTreeRegressor:
    return DecisionTreeRegressor(random_state=0).fit(rows, target)


def test_threshold_rows_hold_each_threshold_and_its_five_neighbours() -> None:
    rows = np.array([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0]])
    model = tree(rows, np.array([0.0, 1.0, 5.0]))
    inputs = (Input("a", "float64"), Input("b", "float64"))
    kinds = kinds_of(*inputs, example=Rows(matrix=rows), model=model)
    assert len(kinds["threshold"]) == 2 * 6
    expected = {float(v) for block in with_neighbours(np.array([0.5, 1.5])) for v in block}
    assert set(matrix(kinds["threshold"])[:, 0]) == expected
    assert set(matrix(kinds["threshold"])[:, 1]) == {5.0}


@pytest.mark.parametrize("count", [199, 200, 201])
def test_up_to_200_thresholds_are_compared(count: int) -> None:
    rows = np.arange(float(count + 1)).reshape(-1, 1)
    kinds = kinds_of(Input("a", "float64"), model=tree(rows, rows[:, 0]))
    assert len(kinds["threshold"]) == 6 * min(count, 200)


def test_without_an_example_random_numbers_are_thresholds_or_between_them() -> None:
    rows = np.array([[10.0], [11.0], [12.0]])
    random = matrix(kinds_of(Input("a", "float64"), model=tree(rows, rows[:, 0]))["random"])
    assert 0.4 < np.isin(random, [10.5, 11.5]).mean() < 0.6
    assert (random.min(), random.max()) == (10.5, 11.5)


def test_neighbours_are_the_next_numbers_of_both_precisions() -> None:
    blocks = [b.tolist() for b in with_neighbours(np.array([0.1]))]
    single = float(np.float32(0.1))
    assert blocks == [
        [0.1],
        [0.09999999999999999],
        [0.10000000000000002],
        [single],
        [single - 2.0**-27],
        [single + 2.0**-27],
    ]


# ---- integers with enforced bounds ----

BYTE = Input("a", "int64", minimum=0, maximum=255, enforced=True)


def test_integers_at_their_bounds_are_compared() -> None:
    signature = Signature("regression", (BYTE, Input("b", "float64")), OUTPUTS)
    matrix = rows_by_kind(None, signature, None)["extreme"].matrix
    assert matrix is not None
    assert matrix[:2, 0].tolist() == [0, 255]
    assert set(matrix[:32, 0].tolist()) - {0.0, 1.0, 2.0, 3.0} == {254.0, 255.0}
    assert len(np.unique(matrix[:, 1])) > 2
    between = matrix[32:, 0]
    assert (between == np.rint(between)).all()
    assert len(np.unique(between)) > 20
    assert between.min() < 50 < 200 < between.max()


def test_random_integers_stay_within_the_example_and_never_leave_the_bounds() -> None:
    signature = Signature("regression", (BYTE,), OUTPUTS)
    kinds = rows_by_kind(None, signature, Rows(np.array([[7.0], [9.0], [200.0]])))
    assert kinds["random"].matrix is not None
    assert kinds["wide"].matrix is not None
    assert (kinds["random"].matrix.min(), kinds["random"].matrix.max()) == (7, 200)
    assert kinds["wide"].matrix.min() >= 0
    assert kinds["wide"].matrix.max() <= 255


def test_the_accepted_rows_are_some_of_each_kind() -> None:
    kinds = {
        "example": Rows(np.arange(1000.0)[:, None]),
        "wide": Rows(np.full((10, 1), -1.0)),
        "extreme": Rows(np.full((10, 1), -2.0)),
    }

    def answer(rows: Rows) -> Outputs:
        assert rows.matrix is not None
        if (rows.matrix == 0).any():
            raise ValueError
        return {"value": rows.matrix[:, 0]}

    accepted = accepted_rows(answer, kinds).matrix
    assert accepted is not None
    assert accepted[:, 0].tolist() == [*np.linspace(0, 999, 64).astype(int)[1:], *[-2.0] * 10]
