from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.compiler.tflite.float32_thresholds import (
    MAX_FLOAT32,
    compared_numbers,
    float_at_rank,
    float_rank,
    largest_input,
)
from service.compiler.tflite.graph_columns import RawColumns
from service.runtime.column_steps import ColumnStep
from service.runtime.nodes import round_down

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
