from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.compiler.tflite.float32_thresholds import LARGEST, _back, _float, _rank, _seen, down
from service.compiler.tflite.graph_columns import RawColumns, Step

doubles = st.floats(allow_nan=False)
singles = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(doubles, st.floats(width=32, allow_nan=False))
def test_a_float32_is_above_a_double_when_it_is_above_the_double_rounded_down(limit: float, x: float) -> None:
    assert (x > limit) == (np.float32(x) > down(np.array([limit]))[0])


@given(singles)
def test_the_order_of_floats_is_the_order_of_their_ranks(x: float) -> None:
    rank = np.array([_rank(np.float32(x))])
    assert _float(rank)[0] == np.float32(x)
    if abs(x) < LARGEST:
        assert _float(rank + 1)[0] > np.float32(x)


@given(
    st.floats(-1e6, 1e6),
    st.floats(1e-3, 1e6),
    st.floats(-10, 10),
    singles,
    st.sampled_from([np.float32, np.float64]),
)
def test_a_moved_threshold_splits_where_the_scaled_one_does(
    mean: float, scale: float, limit: float, x: float, kept: type[np.floating]
) -> None:
    chain = RawColumns(np.array([0]), (Step("subtract", np.array([mean])), Step("divide", np.array([scale]))))
    threshold = _back(chain, np.array([limit]), True, kept)
    near = threshold.astype(np.float32)
    for value in (np.array([x], np.float32), near, np.nextafter(near, np.float32(np.inf))):
        assert (value[0] > threshold[0]) == (_seen(chain, value, True, kept)[0] > limit)
